r"""Converts a vision encoder to a checkpoint, or back to a Hugging Face model.

    rice convert SOURCE OUT
    rice convert clip SOURCE OUT
    rice convert clip --export CHECKPOINT OUT

SOURCE is
    a Hugging Face folder with `config.json` and `model.safetensors`, or
    that `model.safetensors` itself, of a CLIP, Chinese-CLIP, SigLIP (also
    SigLIP 2 of a fixed resolution), DINOv2 (also with registers), DINOv3, Swin,
    TimeSformer or X-CLIP;
    an open_clip folder with `open_clip_config.json` and its weights;
    OpenAI's `ViT-*.pt`, or another `.pt`, `.pth` or `.safetensors` file with
    these names.
The family is detected from its files. No code in SOURCE is run. OUT is a new
directory, from which training starts with `--config.model.init_from=OUT`; it
holds the encoder's settings too. `--export` writes `model.safetensors`
(float16) and `config.json`, as read by transformers'
`CLIPVisionModelWithProjection.from_pretrained(OUT)`, or, for an encoder with a
stem of convolutions, with names of our own. `rice convert reference` converts
the reference implementation's checkpoints, `rice convert text` text towers.

OpenAI's models compute QuickGELU, most of open_clip's have the same names and
compute GELU. A state dict without a configuration beside it does not say which,
so it needs `--activation`, and `--heads` if it is wider than 1024.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from rice_jax.config import EncoderConfig, TextTowerConfig
from rice_jax.convert import hub
from rice_jax.convert.hub_families import to_hugging_face
from rice_jax.convert.hugging_face import (
    FAMILIES,
    OTHERS,
    from_hugging_face,
    read_hugging_face,
    read_json,
    read_pixels,
)
from rice_jax.convert.names import CLASSIFIER_IGNORED, OPENAI_IGNORED, SWIN_IGNORED, XCLIP_IGNORED
from rice_jax.convert.openai import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, from_open_clip, from_openai, read_open_clip
from rice_jax.convert.own import to_own
from rice_jax.convert.tensors import ConvertError, read_safetensors, write_safetensors
from rice_jax.convert.torch_files import read_torch
from rice_jax.convert.vit import about, config_of, settings, with_projection
from rice_jax.files import write_lines
from rice_jax.models.weights import CheckpointError, load_weights, save_weights

CLIP_SWITCHES = {"activation", "mlp_ratio", "epsilon", "projection"}  # what may differ between encoders of CLIP
WIDEST = 1024  # of the encoders that have a head for each 64 channels; wider ones of open_clip have fewer heads


def convert(source: Path, out: Path, activation: str | None = None, heads: int | None = None) -> str:
    """Writes the checkpoint `out` from another program's `source`; returns a line that describes it.

    Args:
        source: the model's file or directory.
        out: a new directory.
        activation: of a model whose files do not name it, as `config.model.activation`.
        heads: of a model whose files do not tell; None = one per 64 channels.

    Raises:
        ConvertError: `source` is not an encoder that rice_jax computes; or its activation is unknown, or it or the
            number of heads is another than the files say.
    """
    if not source.exists():
        raise ConvertError(f"{source}: not found")
    state, params, config = read_source(source, activation, heads)
    check_given(source, config, activation, heads)
    rest = hub.read_rest(source if source.is_dir() else source.parent)  # of a folder that `rice export hf` wrote
    if rest.projection is not None:
        params, config = _project(params, config, rest.projection, source)
    saved = {**rest.config, "model": settings(config) | rest.config.get("model", {})}
    save_weights(out, {"encoder": params, **rest.params}, saved)
    if rest.calibration:
        write_lines(out / hub.CALIBRATION, [json.dumps(rest.calibration, indent=2)])
    left_out = f"{_num_ignored(state)} other tensors of {source} (text tower, classifier) left out"
    return f"{out}: {about(params, config)}; {left_out}"


def read_source(
    source: Path, activation: str | None = None, heads: int | None = None
) -> tuple[Mapping[str, np.ndarray], PyTree, EncoderConfig]:
    """Reads an encoder of any family.

    Returns:
        All tensors of its file; its parameters and settings.
    """
    folder = source if source.is_dir() else source.parent
    beside = folder / "config.json", folder / OPEN_CLIP_CONFIG
    if source.suffix in (".pt", ".pth") and not source.is_dir():
        state, classes = read_torch(source)
        return state, *from_openai(state, **told(source, state, found_activation(source, classes), activation, heads))
    if not source.is_dir() and source.suffix != ".safetensors":
        raise ConvertError(
            f"{source}: expected a directory with model.safetensors and config.json, a .safetensors file, or a .pt file"
        )
    is_open_clip = source.name in OPEN_CLIP_WEIGHTS or (source.is_dir() and not _is_known(beside[0]))
    if beside[1].is_file() and is_open_clip:
        state, values = read_open_clip(folder)
        return state, *from_open_clip(state, values)
    if not source.is_dir() and not beside[0].is_file():
        state = read_safetensors(source)
        if any(name.startswith("visual.") for name in state):
            return state, *from_openai(state, **told(source, state, None, activation, heads))
    state, values = read_hugging_face(source)
    params, config = from_hugging_face(state, values)
    return state, params, dataclasses.replace(config, pixels=read_pixels(folder) or config.pixels)


def export(checkpoint: Path, out: Path) -> str:
    """Writes the encoder of a rice_jax checkpoint as a Hugging Face model, or with our own names if it has a stem.

    Returns a line that describes it.

    Raises:
        ConvertError: a value exceeds the range of float16, or `out` is not empty.
    """
    params, saved = load_weights(checkpoint)
    if "model" not in saved or "encoder" not in params:
        raise ConvertError(f"{checkpoint}: found no encoder, expected a run or a converted encoder")
    if saved["model"].get("architecture", "vit") != "vit":
        raise ConvertError(
            f"{checkpoint}: found architecture={saved['model']['architecture']!r}, expected an encoder that "
            "transformers' CLIP can compute; `rice export hf` writes other families"
        )
    config = config_of(saved["model"])
    if config.stem == "patches" and (other := config.switches.keys() - CLIP_SWITCHES):
        raise ConvertError(
            f"{checkpoint}: found an encoder with "
            f"{', '.join(f'{name}={config.switches[name]!r}' for name in sorted(other))}, expected one that "
            "transformers' CLIP can compute; `rice export hf` writes other families"
        )
    write = to_hugging_face if config.stem == "patches" else to_own
    state, values = write(params["encoder"], config)
    with np.errstate(over="ignore"):
        halves = {name: x.astype(np.float16) for name, x in state.items()}
    for name, x in halves.items():
        if not np.isfinite(x).all():
            raise ConvertError(f"{name}: found a value beyond float16, up to {np.abs(state[name]).max()}")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ConvertError(f"{out}: exists and is not empty; choose another directory or delete it")
    write_safetensors(out / "model.safetensors", halves)
    write_lines(out / "config.json", [json.dumps(values | {"dtype": "float16"}, indent=2)])
    return f"{out}: {about(params['encoder'], config)}, as float16"


def main(arguments: list[str] | None = None, prog: str = "python -m rice_jax.convert.clip") -> None:
    """Runs the command; the module's docstring is its help."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument(
        "--export", action="store_true", help="SOURCE is a rice_jax checkpoint, OUT a Hugging Face model"
    )
    parser.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu", "gelu_tanh"),
        help="what the model's MLPs compute; needed if SOURCE is a state dict, which does not name it",
    )
    parser.add_argument(
        "--quick_gelu", dest="activation", action="store_const", const="quick_gelu", help="--activation=quick_gelu"
    )
    parser.add_argument(
        "--heads", type=int, help="number of heads, if SOURCE is a state dict (default: one per 64 channels)"
    )
    values = parser.parse_args(arguments)
    try:
        if values.export:
            print(export(values.source, values.out))
        else:
            print(convert(values.source, values.out, values.activation, values.heads))
    except (ConvertError, CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")


def found_activation(source: Path, classes: Mapping[str, str]) -> str | None:
    """The activation that a TorchScript archive with OpenAI's names shows; None if the file holds a state dict."""
    found = {kind for name, kind in classes.items() if re.fullmatch(r"visual\.transformer\..*\.mlp\.gelu", name)}
    if found - {"QuickGELU", "GELU"} or len(found) > 1:
        raise ConvertError(f"{source}: found the activations {', '.join(sorted(found))}, expected QuickGELU or GELU")
    return {"QuickGELU": "quick_gelu", "GELU": "gelu"}[found.pop()] if found else None


def told(
    source: Path, state: Mapping[str, np.ndarray], found: str | None, activation: str | None, heads: int | None
) -> dict[str, Any]:
    """What tensors with OpenAI's names do not show of their encoder.

    Args:
        source: the model's file, for errors.
        state: its tensors.
        found: the activation that it names; None = it names none.
        activation, heads: as in `convert`.

    Raises:
        ConvertError: they are not known.
    """
    activation = known_activation(source, found, activation)
    patches = state.get("visual.conv1.weight")
    if heads is None and patches is not None and patches.ndim and patches.shape[0] > WIDEST:
        raise ConvertError(
            f"{source}: found a width of {patches.shape[0]} and no number of heads in this file; add --heads (16 in "
            "open_clip's ViT-H, ViT-g and ViT-bigG)"
        )
    if heads is not None and (heads < 1 or (patches is not None and patches.ndim and patches.shape[0] % heads)):
        raise ConvertError(f"{source}: found --heads={heads}, expected a divisor of the width")
    return {"activation": activation} | ({"heads": heads} if heads else {})


def known_activation(source: Path, found: str | None, given: str | None) -> str:
    """The activation that a model's file names, or else the one that the user does.

    Raises:
        ConvertError: neither does.
    """
    if not (found or given):
        raise ConvertError(
            f"{source}: found no activation in this file; OpenAI's models compute QuickGELU, most of open_clip's GELU; "
            "if this model uses QuickGELU, add --quick_gelu, if it uses GELU, --activation=gelu"
        )
    return found or given or ""


def check_given(
    source: Path, config: EncoderConfig | TextTowerConfig, activation: str | None, heads: int | None
) -> None:
    """Raises a ConvertError if the user names another activation or number of heads than the model has."""
    if activation not in (None, config.activation):
        raise ConvertError(
            f"{source}: its files say that it computes {config.activation!r}, found --activation={activation}"
        )
    if heads not in (None, config.heads):
        raise ConvertError(f"{source}: its files say that it has {config.heads} heads, found --heads={heads}")


def _project(params: PyTree, config: EncoderConfig, kernel: np.ndarray, source: Path) -> tuple[PyTree, EncoderConfig]:
    """Adds the projection that an exported folder holds beside the encoder."""
    if len(kernel) != config.embed_dim:
        raise ConvertError(
            f"{source}: found {len(kernel)} inputs in {hub.PROJECTION}, expected {config.embed_dim}, the encoder's "
            "width; copy the whole folder"
        )
    kernel = np.ascontiguousarray(kernel)
    return params | {"projection": {"kernel": kernel}}, with_projection(config, kernel.shape[1])


def _is_known(path: Path) -> bool:
    """Whether a `config.json` is there and describes a family of Hugging Face's."""
    return path.is_file() and str(read_json(path).get("model_type")) in (*FAMILIES, *OTHERS)


def _num_ignored(state: Mapping) -> int:
    ignored = OPENAI_IGNORED, XCLIP_IGNORED, CLASSIFIER_IGNORED, SWIN_IGNORED
    return sum(any(pattern.fullmatch(name) for pattern in ignored) for name in state)


if __name__ == "__main__":
    main()

r"""Converts the vision tower of a CLIP model to a checkpoint, or a checkpoint to a Hugging Face model.

    rice convert clip SOURCE OUT
    rice convert clip --export CHECKPOINT OUT

SOURCE is OpenAI's `ViT-*.pt`, or Hugging Face's directory with `model.safetensors` and `config.json`, or that
`model.safetensors` itself. No code in SOURCE is run. OUT is a new directory, from which training starts with
`--config.model.init_from=OUT`. `--export` writes `model.safetensors` (float16) and `config.json`, as read by
transformers' `CLIPVisionModelWithProjection.from_pretrained(OUT)`.

The blocks of OpenAI's models compute QuickGELU, and so do those of rice_jax. Most of open_clip's models have the same
names and compute GELU. A state dict does not say which, so it needs `--quick_gelu`.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rice_jax.config import VitConfig
from rice_jax.convert.names import (
    HUGGING_FACE,
    HUGGING_FACE_DEFAULTS,
    HUGGING_FACE_IGNORED,
    OPENAI,
    OPENAI_IGNORED,
)
from rice_jax.convert.tensors import (
    ConvertError,
    bullets,
    check_names,
    find_places,
    num_layers,
    parameter_shapes,
    read_safetensors,
    to_ours,
    to_theirs,
    write_safetensors,
)
from rice_jax.convert.torch_files import read_torch
from rice_jax.files import write_lines
from rice_jax.models.encoders.vit import Vit
from rice_jax.models.layers import LAYERNORM_EPSILON
from rice_jax.models.weights import CheckpointError, load_weights, save_weights


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The fields of `VitConfig` that are read from weights."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int


def from_openai(state: Mapping[str, np.ndarray]) -> tuple[PyTree, Sizes]:
    """Converts a state dict with OpenAI's names, and reads the encoder's sizes from it.

    Args:
        state: the model's state dict, any float type; the text tower's tensors are ignored.

    Returns:
        Parameters of `Vit` as a nested dict of float32 arrays, and their sizes.

    Raises:
        ConvertError: listing every unknown name, missing name and wrong shape.
    """
    num_blocks = num_layers(state, r"visual\.transformer\.resblocks\.(\d+)\.")
    where = find_places(OPENAI, {"blocks/": num_blocks})
    check_names(state, where, OPENAI_IGNORED, _what(num_blocks))
    sizes = encoder_sizes(state, "visual.")
    return to_ours(state, where, _shapes(sizes), str(sizes)), sizes


def encoder_sizes(state: Mapping[str, np.ndarray], prefix: str, heads: int | None = None) -> Sizes:
    """Reads the sizes of an encoder from tensors with OpenAI's names.

    Args:
        state: all tensors of the encoder.
        prefix: of the encoder's names, e.g. "visual.".
        heads: number of heads; None = one per 64 channels, as in OpenAI's models.

    Raises:
        ConvertError: the tensors have too few or too many axes, or `heads` is None and the width is not a multiple of
            64.
    """
    patches, positions, projection = (state[prefix + name] for name in ("conv1.weight", "positional_embedding", "proj"))
    if (patches.ndim, positions.ndim, projection.ndim) != (4, 2, 2):
        raise ConvertError(
            f"found {prefix}conv1.weight {patches.shape}, {prefix}positional_embedding {positions.shape} and "
            f"{prefix}proj {projection.shape}: expected 4, 2 and 2 axes"
        )
    width, patch_size = patches.shape[0], patches.shape[-1]
    if not width or (heads is None and width % 64):
        raise ConvertError(
            f"found a width of {width} ({prefix}conv1.weight {patches.shape}): expected a multiple of 64, since "
            "OpenAI's models have one head per 64 channels and their files do not contain the number of heads"
        )
    grid = round((positions.shape[0] - 1) ** 0.5)
    return Sizes(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        layers=num_layers(state, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\."),
        heads=width // 64 if heads is None else heads,
        embed_dim=projection.shape[1],
    )


def from_hugging_face(state: Mapping[str, np.ndarray], config: Mapping) -> tuple[PyTree, Sizes]:
    """Converts tensors with Hugging Face's names.

    Args:
        state: the tensors of `model.safetensors`, any float type; those of the text tower are ignored.
        config: `config.json`, of a CLIPModel or of its vision tower alone.

    Returns:
        Parameters of `Vit` as a nested dict of float32 arrays, and their sizes.

    Raises:
        ConvertError: the config does not describe a CLIP vision transformer that `Vit` supports; or listing every
            unknown name, missing name and wrong shape.
    """
    sizes = _hugging_face_sizes(config)
    where = find_places(HUGGING_FACE, {"blocks/": sizes.layers})
    check_names(state, where, HUGGING_FACE_IGNORED, _what(sizes.layers))
    return to_ours(state, where, _shapes(sizes), str(sizes)), sizes


def to_hugging_face(params: PyTree, sizes: Sizes) -> tuple[dict[str, np.ndarray], dict]:
    """The inverse of `from_hugging_face`.

    Args:
        params: parameters of `Vit` as a nested dict of arrays.
        sizes: of the encoder.

    Returns:
        The tensors by Hugging Face's names, in the parameters' type, and the content of `config.json`.

    Raises:
        ConvertError: the parameters are not those of a `Vit` of these sizes.
    """
    state = to_theirs(params, find_places(HUGGING_FACE, {"blocks/": sizes.layers}), _shapes(sizes), "a Vit")
    config = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "projection_dim": sizes.embed_dim,
        "num_channels": 3,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": LAYERNORM_EPSILON,
    }
    return state, config


def read_hugging_face(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads `model.safetensors` (or its directory) and the `config.json` beside it.

    Raises:
        ConvertError: one of them is missing or unreadable.
    """
    weights = path / "model.safetensors" if path.is_dir() else path
    config = weights.with_name("config.json")
    for file in (weights, config):
        if not file.is_file():
            raise ConvertError(f"{file}: not found; a Hugging Face model is a model.safetensors beside a config.json")
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConvertError(f"{config}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConvertError(f"{config}: found a {type(values).__name__}, expected an object")
    return read_safetensors(weights), values


def convert(source: Path, out: Path, quick_gelu: bool = False) -> str:
    """Writes the checkpoint `out` from OpenAI's or Hugging Face's `source`; returns a line that describes it.

    Args:
        source: the model's file or directory.
        out: a new directory.
        quick_gelu: whether a model whose file does not name its activation uses QuickGELU.

    Raises:
        ConvertError: `source` is not a CLIP model that rice_jax computes; or its activation is unknown.
    """
    if not source.exists():
        raise ConvertError(f"{source}: not found")
    if source.is_dir() or source.suffix == ".safetensors":
        state, config = read_hugging_face(source)
        params, sizes = from_hugging_face(state, config)
    elif source.suffix in (".pt", ".pth"):
        state, classes = read_torch(source)
        params, sizes = from_openai(state)
        _check_activation(source, classes, quick_gelu)
    else:
        raise ConvertError(
            f"{source}: expected a directory with model.safetensors and config.json, a .safetensors file, or a .pt file"
        )
    save_weights(out, {"encoder": params}, {"model": dataclasses.asdict(sizes)})
    return f"{out}: {about(params, sizes)}; {_num_ignored(state)} other tensors of {source} (text tower) left out"


def export(checkpoint: Path, out: Path) -> str:
    """Writes the encoder of a rice_jax checkpoint as a Hugging Face model; returns a line that describes it.

    Raises:
        ConvertError: a value exceeds the range of float16, or `out` is not empty.
    """
    params, config = load_weights(checkpoint)
    sizes = Sizes(**{field.name: config["model"][field.name] for field in dataclasses.fields(Sizes)})
    state, values = to_hugging_face(params["encoder"], sizes)
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
    return f"{out}: {about(params['encoder'], sizes)}, as float16"


def main(arguments: list[str] | None = None, prog: str = "python -m rice_jax.convert.clip") -> None:
    """Runs the command; the module's docstring is its help."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument(
        "--export", action="store_true", help="SOURCE is a checkpoint of ours, OUT a Hugging Face model"
    )
    parser.add_argument(
        "--quick_gelu",
        action="store_true",
        help="the model uses QuickGELU; needed if SOURCE is a state dict, which does not name its activation",
    )
    values = parser.parse_args(arguments)
    try:
        if values.export:
            print(export(values.source, values.out))
        else:
            print(convert(values.source, values.out, values.quick_gelu))
    except (ConvertError, CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")


def _check_activation(source: Path, classes: Mapping[str, str], quick_gelu: bool) -> None:
    """Raises a ConvertError unless the blocks of a model with OpenAI's names use QuickGELU.

    Args:
        source: the model's file, for errors.
        classes: of its modules, by name; empty if the file holds a state dict.
        quick_gelu: whether they do if the file does not tell.
    """
    found = {kind for name, kind in classes.items() if re.fullmatch(r"visual\.transformer\..*\.mlp\.gelu", name)}
    if found == {"QuickGELU"}:
        return
    if "GELU" in found:
        raise ConvertError(f"{source}: found the activation GELU, expected QuickGELU: rice_jax computes no other")
    if not quick_gelu:
        raise ConvertError(
            f"{source}: found no activation in this file, expected QuickGELU; OpenAI's models use it, most of "
            "open_clip's use GELU, which rice_jax does not compute; if this model uses QuickGELU, add --quick_gelu"
        )


def _hugging_face_sizes(config: Mapping) -> Sizes:
    vision = config.get("vision_config", config)
    # A config of a whole CLIP has the embedding width at its top level; that in `vision_config` may be a wrong default.
    values = HUGGING_FACE_DEFAULTS | dict(vision)
    if "vision_config" in config:
        values["projection_dim"] = config.get("projection_dim", HUGGING_FACE_DEFAULTS["projection_dim"])
    problems = []
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        problems.append(f"model_type {config.get('model_type')!r}: expected 'clip' or 'clip_vision_model'")
    integers = [key for key, value in HUGGING_FACE_DEFAULTS.items() if isinstance(value, int)]
    problems += [
        f"{key} {values[key]!r}: expected a positive whole number"
        for key in integers
        if not isinstance(values[key], int) or values[key] < 1
    ]
    if not problems:
        expected = {
            "hidden_act": "quick_gelu",
            "layer_norm_eps": LAYERNORM_EPSILON,
            "num_channels": 3,
            "intermediate_size": 4 * values["hidden_size"],
        }
        problems += [
            f"{key} {values[key]!r}: expected {want!r}" for key, want in expected.items() if values[key] != want
        ]
        problems += [
            f"{whole} {values[whole]} is no multiple of {part} {values[part]}"
            for whole, part in [("image_size", "patch_size"), ("hidden_size", "num_attention_heads")]
            if values[whole] % values[part]
        ]
    if problems:
        raise ConvertError("config.json: not a CLIP vision transformer that rice_jax supports:" + bullets(problems))
    return Sizes(
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        width=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        embed_dim=values["projection_dim"],
    )


def _what(num_blocks: int) -> str:
    return f"a CLIP vision transformer of {num_blocks} blocks"


def _shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    config = VitConfig(**dataclasses.asdict(sizes), dtype="float32")
    return parameter_shapes(lambda: Vit(config, rngs=nnx.Rngs(0)))


def _num_ignored(state: Mapping) -> int:
    return sum(bool(OPENAI_IGNORED.fullmatch(name) or HUGGING_FACE_IGNORED.fullmatch(name)) for name in state)


def about(params: PyTree, sizes: Sizes) -> str:
    count = sum(x.size for x in jax.tree.leaves(params))
    return (
        f"ViT of {count / 1e6:.1f} million parameters, {sizes.image_size} px, patches of {sizes.patch_size}, width "
        f"{sizes.width}, {sizes.layers} blocks of {sizes.heads} heads, embedding {sizes.embed_dim}"
    )


if __name__ == "__main__":
    main()

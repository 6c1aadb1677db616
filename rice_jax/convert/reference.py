r"""Converts checkpoints of the reference's RICE (PyTorch, MMF) in both directions.

    rice convert reference import FILE OUT
    rice convert reference export WORKDIR FILE

FILE is a `.safetensors`, `.pth`, `.pt` or `.ckpt`; writing the last three needs
PyTorch: `pip install 'rice-jax[torch]'`. It holds a state dict; an imported
file may be a whole MMF checkpoint, of which only `model` is read. No code in
the file is run. OUT is a new directory, from which training starts with
`--config.model.init_from=OUT`; WORKDIR is such a directory, or that of a run.

The reference's decoder declares embeddings that no forward pass uses. An import
drops them; an export contains their initial values: the encoder's positions, a
layer norm of ones and zeros, and zeros for the class embedding, which the
reference draws at random.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rice_jax.config import PfrConfig, PmdConfig
from rice_jax.convert.names import REFERENCE, REFERENCE_IGNORED
from rice_jax.convert.openai import encoder_sizes
from rice_jax.convert.tensors import (
    ConvertError,
    Places,
    check_names,
    find_places,
    num_layers,
    parameter_shapes,
    read_safetensors,
    to_ours,
    to_theirs,
    write_safetensors,
)
from rice_jax.convert.torch_files import read_torch, write_torch
from rice_jax.convert.vit import about, config_of, settings
from rice_jax.models.rice import Rice, RiceConfig
from rice_jax.models.weights import CheckpointError, load_weights, save_weights

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt")  # MMF writes its checkpoints as .ckpt and its last weights as .pth
_WHAT = "the reference's RICE"
_ENCODER = "image_encoder.model."
_EMBEDDINGS = "transformer.transformer.embeddings."


def from_reference(
    state: Mapping[str, np.ndarray], encoder_heads: int | None = None, pmd_heads: int | None = None
) -> tuple[PyTree, dict]:
    """Converts a state dict of the reference, and reads the sizes of the model from it.

    Args:
        state: a state dict, any float type; all names may start with `module.`. The decoder, and PFR's head, may be
            missing as a whole.
        encoder_heads: number of the encoder's heads; None = one per 64 channels, as in CLIP.
        pmd_heads: number of the decoder's heads; None = read from the number of inputs of PFR's head.

    Returns:
        Parameters of `Rice` as a nested dict of float32 arrays, and the values of `config.model` that they decide:
        its sizes and, with a decoder, `pmd` with `num_pairs` and `num_heads`.

    Raises:
        ConvertError: listing every unknown name, missing name and wrong shape; or a number of heads is impossible.
    """
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    used = [name for name in state if not REFERENCE_IGNORED.fullmatch(name)]
    parts = {"encoder", "logit_scale"}
    if any(name.startswith(("transformer.transformer.", "transformer.heads.")) for name in used):
        parts |= {"pmd"}
    if any(name.startswith("transformer.heads.rec.") for name in used):
        parts |= {"pfr"}
    num_blocks = num_layers(state, r"image_encoder\.model\.transformer\.resblocks\.(\d+)\.")
    num_pairs = (num_layers(state, r"transformer\.transformer\.transformer\.layers\.(\d+)\.") + 1) // 2
    where = _places(parts, num_blocks, num_pairs)
    check_names(state, where, REFERENCE_IGNORED, _WHAT)
    model = settings(encoder_sizes(state, _ENCODER, encoder_heads))
    if "pmd" in parts:
        model["pmd"] = {
            "num_pairs": num_pairs,
            "num_heads": _pmd_heads(state, num_pairs) if pmd_heads is None else pmd_heads,
        }
    for name, heads in (("the encoder", model["heads"]), ("PMD", model.get("pmd", {}).get("num_heads", 1))):
        if heads < 1 or model["width"] % heads:
            raise ConvertError(f"found {heads} heads of {name}: expected a divisor of the width {model['width']}")
    return to_ours(state, where, _shapes(parts, model), f"{_WHAT} of {model}"), model


def to_reference(params: PyTree, model: Mapping) -> dict[str, np.ndarray]:
    """The inverse of `from_reference`.

    Args:
        params: parameters of `Rice` as a nested dict of arrays; `pmd` and `pfr` may be missing.
        model: the second result of `from_reference`, or the `model` part of a run's configuration.

    Returns:
        The state dict without `module.`, in the parameters' type.

    Raises:
        ConvertError: the parameters are not those of a `Rice` of these sizes.
    """
    if other := config_of(model).switches:
        raise ConvertError(f"found an encoder with {other}, expected OpenAI's CLIP, which {_WHAT} computes")
    parts = {"encoder", "logit_scale"} | ({"pmd", "pfr"} & params.keys())
    num_pairs = model["pmd"]["num_pairs"] if "pmd" in parts else 0
    state = to_theirs(params, _places(parts, model["layers"], num_pairs), _shapes(parts, model), _WHAT)
    if "pmd" in parts:
        positions = state[f"{_ENCODER}positional_embedding"]
        state |= {
            f"{_EMBEDDINGS}class_embedding": np.zeros_like(positions[0]),
            f"{_EMBEDDINGS}position_embedding.weight": positions.copy(),
            f"{_EMBEDDINGS}layer_norm.weight": np.ones_like(positions[0]),
            f"{_EMBEDDINGS}layer_norm.bias": np.zeros_like(positions[0]),
        }
    return state


def import_file(file: Path, out: Path, encoder_heads: int | None = None, pmd_heads: int | None = None) -> str:
    """Writes the checkpoint `out` from a file of the reference; returns a line that describes it."""
    _require_suffix(file)
    if not file.is_file():
        raise ConvertError(f"{file}: not found")
    state = read_torch(file)[0] if file.suffix in TORCH_SUFFIXES else read_safetensors(file)
    params, model = from_reference(state, encoder_heads, pmd_heads)
    save_weights(out, params, {"model": model})
    return f"{out}: {_about(params, model)}; start with {' '.join(_flags(out, params, model))}"


def export_file(workdir: Path, file: Path) -> str:
    """Writes a file for the reference from a rice_jax checkpoint; returns a line that describes it."""
    _require_suffix(file)
    if file.exists():
        raise ConvertError(f"{file}: exists; choose another name or delete it")
    params, config = load_weights(workdir)
    if "model" not in config or "encoder" not in params:
        raise ConvertError(f"{workdir}: found no encoder, expected a run or a converted encoder")
    if (kind := config["model"].get("aggregation", {}).get("kind", "features")) != "features":
        raise ConvertError(f"{workdir}: aggregates frames by {kind!r}, expected 'features': the reference has no other")
    state = to_reference(params, config["model"])
    file.parent.mkdir(parents=True, exist_ok=True)
    (write_torch if file.suffix in TORCH_SUFFIXES else write_safetensors)(file, state)
    return f"{file}: {_about(params, config['model'])}"


def main(arguments: list[str] | None = None, prog: str = "python -m rice_jax.convert.reference") -> None:
    """Runs the command; the module's docstring is its help."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("import", help="convert a file of the reference to a rice_jax checkpoint")
    command.add_argument("file", metavar="FILE", type=Path)
    command.add_argument("out", metavar="OUT", type=Path)
    command.add_argument(
        "--encoder_heads", type=int, help="number of the encoder's heads (default: one per 64 channels)"
    )
    command.add_argument("--pmd_heads", type=int, help="number of the decoder's heads (default: read from PFR's head)")
    command.set_defaults(run=import_file)
    command = commands.add_parser("export", help="convert a rice_jax checkpoint to a file for the reference")
    command.add_argument("workdir", metavar="WORKDIR", type=Path)
    command.add_argument("file", metavar="FILE", type=Path)
    command.set_defaults(run=export_file)
    values = vars(parser.parse_args(arguments))
    try:
        print(values.pop("run")(**values))
    except (ConvertError, CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")


def _require_suffix(file: Path) -> None:
    if file.suffix not in (expected := (".safetensors", *TORCH_SUFFIXES)):
        raise ConvertError(f"{file}: found the suffix {file.suffix!r}, expected one of {', '.join(expected)}")


def _about(params: PyTree, model: Mapping) -> str:
    parts = [about(params["encoder"], config_of(model))]
    if "pmd" in params:
        parts.append(f"PMD of {2 * model['pmd']['num_pairs']} blocks of {model['pmd']['num_heads']} heads")
    return ", ".join(parts + ["PFR"] * ("pfr" in params))


def _flags(out: Path, params: PyTree, model: Mapping) -> list[str]:
    """The flags with which a run starts from these weights and computes as the reference does."""
    flags = {"init_from": out} | {f"pmd.{name}": value for name, value in model.get("pmd", {}).items()}
    if "pfr" in params:
        flags["pfr.mask_padding"] = False
    return [f"--config.model.{name}={value}" for name, value in flags.items()]


def _places(parts: set[str], num_blocks: int, num_pairs: int) -> Places:
    table = {path: entry for path, entry in REFERENCE.items() if path.partition("/")[0] in parts}
    counts = {"encoder/blocks/": num_blocks, "pmd/self_blocks/": num_pairs, "pmd/cross_blocks/": num_pairs}
    return find_places(table, counts)


def _shapes(parts: set[str], model: Mapping) -> dict[str, tuple[int, ...]]:
    config = RiceConfig(
        config_of(model),
        pmd=PmdConfig(model["pmd"]["num_pairs"], model["pmd"]["num_heads"], 0.0) if "pmd" in parts else None,
        pfr=PfrConfig(mask_padding=False, init="ones") if "pfr" in parts else None,
    )
    return parameter_shapes(lambda: Rice(config, rngs=nnx.Rngs(0)))


def _pmd_heads(state: Mapping[str, np.ndarray], num_pairs: int) -> int:
    """The number of the decoder's heads: PFR's first convolution has an input for every pair of blocks and head."""
    name = "transformer.heads.rec.0.weight"
    if name not in state:
        raise ConvertError(f"found no {name} to read the number of PMD's heads from; set it, e.g. --pmd_heads=8")
    shape = state[name].shape
    if len(shape) != 4 or shape[1] < 2 or shape[1] % num_pairs:
        raise ConvertError(
            f"{name}: found shape {shape}, expected [pairs * heads / 2, pairs * heads, 1, 1] with pairs = {num_pairs}"
        )
    return shape[1] // num_pairs


if __name__ == "__main__":
    main()

r"""Turns the vision tower of a CLIP model into a checkpoint of ours, or a checkpoint into a Hugging Face model.

    python -m rice_jax.convert.clip SOURCE OUT
    python -m rice_jax.convert.clip --export CHECKPOINT OUT

SOURCE is OpenAI's `ViT-*.pt` (needs PyTorch: `pip install 'rice-jax[torch]'`), or Hugging Face's directory with
`model.safetensors` and `config.json`, or that `model.safetensors` itself. OUT is a new directory, from which training
starts with `--config.model.init_from=OUT`. `--export` writes `model.safetensors` (float16) and `config.json`, as read
by transformers' `CLIPVisionModelWithProjection.from_pretrained(OUT)`.
"""

import argparse
import dataclasses
import json
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx, traverse_util
from jaxtyping import PyTree

from rice_jax.checkpoint import CheckpointError, load_weights, save_weights
from rice_jax.config import ModelConfig
from rice_jax.convert.names import (
    HUGGING_FACE,
    HUGGING_FACE_DEFAULTS,
    HUGGING_FACE_IGNORED,
    OPENAI,
    OPENAI_IGNORED,
)
from rice_jax.models.layers import LAYERNORM_EPSILON
from rice_jax.models.vit import Vit

_MAX_LISTED = 20  # names per kind in an error


class ConvertError(ValueError):
    """Weights that do not fit; the message says what was found and what was expected."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The fields of `ModelConfig` that weights decide."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int


def from_openai(state: Mapping[str, np.ndarray]) -> tuple[PyTree, Sizes]:
    """Converts OpenAI's names, from which the sizes follow too.

    Args:
        state: the model's state dict, any float type; the text tower's tensors may be there and are ignored.

    Returns:
        Parameters of `Vit` as a nested dict of float32 arrays, and their sizes.

    Raises:
        ConvertError: listing every unknown name, missing name and wrong shape.
    """
    _check_names(state, OPENAI, OPENAI_IGNORED, _num_layers(state, r"visual\.transformer\.resblocks\.(\d+)\."))
    patches, positions = state["visual.conv1.weight"], state["visual.positional_embedding"]
    projection = state["visual.proj"]
    if (patches.ndim, positions.ndim, projection.ndim) != (4, 2, 2):
        raise ConvertError(
            f"found visual.conv1.weight {patches.shape}, visual.positional_embedding {positions.shape} and visual.proj "
            f"{projection.shape}: expected 4, 2 and 2 axes"
        )
    width, patch_size = patches.shape[0], patches.shape[-1]
    grid = round((positions.shape[0] - 1) ** 0.5)
    if width % 64 or not width:
        raise ConvertError(
            f"found a width of {width} (visual.conv1.weight {patches.shape}): expected a multiple of 64, since "
            "OpenAI's models have a head every 64 channels and their files do not tell the number of heads"
        )
    sizes = Sizes(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        layers=_num_layers(state, r"visual\.transformer\.resblocks\.(\d+)\."),
        heads=width // 64,
        embed_dim=projection.shape[1],
    )
    return _to_ours(state, OPENAI, sizes), sizes


def from_hugging_face(state: Mapping[str, np.ndarray], config: Mapping) -> tuple[PyTree, Sizes]:
    """Converts Hugging Face's names.

    Args:
        state: the tensors of `model.safetensors`, any float type; those of the text tower are ignored.
        config: `config.json`, of a CLIPModel or of its vision tower alone.

    Returns:
        Parameters of `Vit` as a nested dict of float32 arrays, and their sizes.

    Raises:
        ConvertError: for a config that is not of a CLIP vision transformer as `Vit` is one; listing every unknown name,
            missing name and wrong shape.
    """
    sizes = _hugging_face_sizes(config)
    _check_names(state, HUGGING_FACE, HUGGING_FACE_IGNORED, sizes.layers)
    return _to_ours(state, HUGGING_FACE, sizes), sizes


def to_hugging_face(params: PyTree, sizes: Sizes) -> tuple[dict[str, np.ndarray], dict]:
    """The inverse of `from_hugging_face`.

    Args:
        params: parameters of `Vit` as a nested dict of arrays.
        sizes: theirs.

    Returns:
        The tensors by Hugging Face's names, in the parameters' type, and the content of `config.json`.

    Raises:
        ConvertError: the parameters are not those of a `Vit` of these sizes.
    """
    flat, shapes = traverse_util.flatten_dict(params, sep="/"), _expected_shapes(sizes)
    if flat.keys() != shapes.keys():
        different = [
            f"{path}: {'missing' if path in shapes else 'unknown'}" for path in sorted(flat.keys() ^ shapes.keys())
        ]
        raise ConvertError("not the parameters of a Vit:" + _bullets(different))
    state = {}
    for path, expected in shapes.items():
        value = np.asarray(flat[path])
        if value.shape != expected:
            raise ConvertError(f"parameter {path}: found shape {value.shape}, expected {expected}")
        layout, names = HUGGING_FACE[path]
        for block in range(sizes.layers) if path.startswith("blocks/") else [None]:
            theirs = layout.to_theirs(value if block is None else value[block])
            for name, part in zip(names, np.split(theirs, len(names)), strict=True):
                state[name.format(block)] = np.ascontiguousarray(part)
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


def read_openai(path: Path) -> dict[str, np.ndarray]:
    """Reads the state dict of a `.pt` file: a TorchScript archive, or a plain state dict. Runs no pickled code.

    Raises:
        ConvertError: PyTorch is missing, or the file holds something else.
    """
    try:
        import torch
    except ImportError as error:
        raise ConvertError(
            f"{path}: reading it needs PyTorch: pip install 'rice-jax[torch]' (a Hugging Face model needs none)"
        ) from error
    try:
        if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ConvertError(
            f"{path}: PyTorch cannot read it as a TorchScript archive or as a state dict of tensors: {error}"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConvertError(f"{path}: found a {type(state).__name__}, expected a state dict of tensors")
    return {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in state.items()}


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
    try:
        return safetensors.numpy.load_file(weights), values
    except (safetensors.SafetensorError, OSError) as error:
        raise ConvertError(f"{weights}: not a safetensors file: {error}") from error


def convert(source: Path, out: Path) -> str:
    """Writes the checkpoint `out` from OpenAI's or Hugging Face's `source`; returns a line that says what it holds."""
    if not source.exists():
        raise ConvertError(f"{source}: not found")
    if source.is_dir() or source.suffix == ".safetensors":
        state, config = read_hugging_face(source)
        params, sizes = from_hugging_face(state, config)
    elif source.suffix in (".pt", ".pth"):
        state = read_openai(source)
        params, sizes = from_openai(state)
    else:
        raise ConvertError(
            f"{source}: expected a directory with model.safetensors and config.json, a .safetensors file, or a .pt file"
        )
    save_weights(out, {"encoder": params}, {"model": dataclasses.asdict(sizes)})
    return f"{out}: {_about(params, sizes)}; {_num_ignored(state)} other tensors of {source} (text tower) left out"


def export(checkpoint: Path, out: Path) -> str:
    """Writes the encoder of a checkpoint of ours as a Hugging Face model; returns a line that says what it holds.

    Raises:
        ConvertError: a value does not fit float16, or a file is in the way.
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
    (out / "model.safetensors").write_bytes(safetensors.numpy.save(halves, metadata={"format": "pt"}))
    (out / "config.json").write_text(json.dumps(values | {"dtype": "float16"}, indent=2) + "\n", encoding="utf-8")
    return f"{out}: {_about(params['encoder'], sizes)}, as float16"


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument(
        "--export", action="store_true", help="SOURCE is a checkpoint of ours, OUT a Hugging Face model"
    )
    values = parser.parse_args(arguments)
    try:
        print((export if values.export else convert)(values.source, values.out))
    except (ConvertError, CheckpointError) as error:
        sys.exit(f"error: {error}")


def _num_layers(state: Mapping, pattern: str) -> int:
    """One more than the highest block number, so that a gap shows up as missing names; at least one."""
    return 1 + max((int(found[1]) for name in state if (found := re.match(pattern, name))), default=0)


def _hugging_face_sizes(config: Mapping) -> Sizes:
    vision = config.get("vision_config", config)
    # A whole CLIP says its embedding width at the top; the copy inside `vision_config` may be a stale default.
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
        raise ConvertError("config.json is not of a CLIP vision transformer of our kind:" + _bullets(problems))
    return Sizes(
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        width=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        embed_dim=values["projection_dim"],
    )


def _their_names(names: list[str], path: str, layers: int) -> list[list[str]]:
    """The names that make one tensor of ours: a list a block, or a single one if it is not of the blocks."""
    blocks = range(layers) if path.startswith("blocks/") else [None]
    return [[name.format(block) for name in names] for block in blocks]


def _check_names(state: Mapping, table: Mapping, ignored: re.Pattern, layers: int) -> None:
    wanted = {
        name for path, (_, names) in table.items() for block in _their_names(names, path, layers) for name in block
    }
    missing = sorted(wanted - state.keys())
    unknown = sorted(name for name in state.keys() - wanted if not ignored.fullmatch(name))
    if missing or unknown:
        message = f"not a CLIP vision transformer of {layers} blocks:"
        if missing:
            message += f"\n{len(missing)} tensors are missing:" + _bullets(missing)
        if unknown:
            message += f"\n{len(unknown)} tensors have an unknown name:" + _bullets(unknown)
        raise ConvertError(message)


def _to_ours(state: Mapping[str, np.ndarray], table: Mapping, sizes: Sizes) -> PyTree:
    flat, problems = {}, []
    for path, expected in _expected_shapes(sizes).items():
        layout, names = table[path]
        blocks = _their_names(names, path, sizes.layers)
        shape = expected[1:] if path.startswith("blocks/") else expected
        theirs = layout.to_theirs(np.empty(shape, np.float32)).shape
        theirs = (theirs[0] // len(names), *theirs[1:])
        tensors = {name: np.asarray(state[name]) for block in blocks for name in block}
        wrong = [
            f"{name}: found shape {x.shape}, expected {theirs}" for name, x in tensors.items() if x.shape != theirs
        ]
        wrong = wrong or [
            f"{name}: found values that are not finite" for name, x in tensors.items() if not np.isfinite(x).all()
        ]
        if wrong:
            problems += wrong
            continue
        values = [
            layout.to_ours(np.concatenate([tensors[name].astype(np.float32) for name in block])) for block in blocks
        ]
        flat[path] = np.stack(values) if path.startswith("blocks/") else np.ascontiguousarray(values[0])
    if problems:
        raise ConvertError(f"tensors that do not fit {sizes}:" + _bullets(problems))
    return traverse_util.unflatten_dict(flat, sep="/")


def _expected_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """{path: shape} of every parameter of a `Vit`, asked of the model itself so that no list can fall behind it."""
    config = ModelConfig(**dataclasses.asdict(sizes), logit_scale=1.0, dtype="float32", remat=False, init_from="")
    model = nnx.eval_shape(lambda: Vit(config, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return {path: value.shape for path, value in traverse_util.flatten_dict(params, sep="/").items()}


def _num_ignored(state: Mapping) -> int:
    return sum(bool(OPENAI_IGNORED.fullmatch(name) or HUGGING_FACE_IGNORED.fullmatch(name)) for name in state)


def _about(params: PyTree, sizes: Sizes) -> str:
    count = sum(x.size for x in jax.tree.leaves(params))
    return (
        f"ViT of {count / 1e6:.1f} million parameters, {sizes.image_size} px, patches of {sizes.patch_size}, width "
        f"{sizes.width}, {sizes.layers} blocks of {sizes.heads} heads, embedding {sizes.embed_dim}"
    )


def _bullets(lines: list[str]) -> str:
    rest = len(lines) - _MAX_LISTED
    return "".join(f"\n  {line}" for line in lines[:_MAX_LISTED]) + (f"\n  and {rest} more" if rest > 0 else "")


if __name__ == "__main__":
    main()

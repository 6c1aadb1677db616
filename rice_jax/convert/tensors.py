"""Reads and writes the files of other programs, and converts tensors by the tables of `names`."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx, traverse_util
from jaxtyping import PyTree

from rice_jax.config import ConfigError
from rice_jax.config.fields import build
from rice_jax.convert.names import Layout, Table
from rice_jax.files import replacing

_MAX_LISTED = 20  # of each kind of problem listed in an error


class Place(NamedTuple):
    """Where a parameter is in another program's file.

    Attributes:
        layout: of its tensors.
        blocks: their names in each block; a tensor outside the blocks has a single entry.
        is_stacked: whether the parameter's first axis is the block.
    """

    layout: Layout
    blocks: list[list[str]]
    is_stacked: bool


Places = dict[str, Place]  # by our path


class ConvertError(ValueError):
    """Weights that cannot be converted; the message says what was found and what was expected."""


def require_possible(group: type, values: Mapping[str, Any], what: str, path: str = "config.model") -> None:
    """Refuses settings in another program's files that no encoder can have.

    Args:
        group: class of the settings.
        values: {name: value}.
        what: the family, for errors.
        path: of the group, for errors.

    Raises:
        ConvertError: a value has the wrong type or breaks its constraint.
    """
    try:
        build(group, values, path)
    except ConfigError as error:
        raise ConvertError(f"not {what} that rice_jax computes: {error}") from error


def find_places(table: Table, num_blocks: Mapping[str, int]) -> Places:
    """Expands the names of all blocks; `num_blocks` is {prefix of our path: number of blocks}."""
    written = {}
    for path, (layout, names) in table.items():
        num = next((num for start, num in num_blocks.items() if path.startswith(start)), None)
        blocks = [[name.format(i, even=2 * i, odd=2 * i + 1) for name in names] for i in range(num or 1)]
        written[path] = Place(layout, blocks, is_stacked=num is not None)
    return written


def parameter_places(table: Table, shapes: Mapping[str, tuple[int, ...]]) -> Places:
    """The names of a model's parameters; where names have braces, the parameter's first axis is the block."""
    blocks = {path: shape[0] for path, shape in shapes.items() if "{" in "".join(table[path][1])}
    return find_places({path: table[path] for path in shapes}, blocks)


def check_names(state: Iterable[str], places: Places, ignored: re.Pattern, expected: str) -> None:
    """Raises a ConvertError, "not <expected>", that lists the missing and unknown names, if there are any."""
    wanted = {name for place in places.values() for names in place.blocks for name in names}
    missing = sorted(wanted - set(state))
    unknown = sorted(name for name in set(state) - wanted if not ignored.fullmatch(name))
    if missing or unknown:
        message = f"not {expected}:"
        if missing:
            message += f"\n{len(missing)} tensors are missing:" + bullets(missing)
        if unknown:
            message += f"\n{len(unknown)} tensors have an unknown name:" + bullets(unknown)
        raise ConvertError(message)


def to_ours(
    state: Mapping[str, np.ndarray], places: Places, shapes: Mapping[str, tuple[int, ...]], expected: str
) -> PyTree:
    """Gathers our parameters.

    Args:
        state: tensors by their names, any float type; the names have been checked.
        places: of each parameter.
        shapes: of each parameter.

    Returns:
        Nested dict of float32 arrays.

    Raises:
        ConvertError: "tensors that do not fit <expected>", each with its wrong shape or as not finite.
    """
    flat, problems = {}, []
    for path, shape in shapes.items():
        layout, blocks, is_stacked = places[path]
        one = layout.to_theirs(np.empty(shape[1:] if is_stacked else shape, np.float32))
        theirs = _split(one, len(blocks[0]))[0].shape
        tensors = {name: np.asarray(state[name]) for names in blocks for name in names}
        wrong = [
            f"{name}: found shape {x.shape}, expected {theirs}" for name, x in tensors.items() if x.shape != theirs
        ]
        wrong = wrong or [
            f"{name}: found values that are not finite" for name, x in tensors.items() if not np.isfinite(x).all()
        ]
        if wrong:
            problems += wrong
            continue
        values = [layout.to_ours(_join([tensors[name].astype(np.float32) for name in names])) for names in blocks]
        flat[path] = np.stack(values) if is_stacked else np.asarray(values[0], order="C")
    if problems:
        raise ConvertError(f"tensors that do not fit {expected}:" + bullets(problems))
    return traverse_util.unflatten_dict(flat, sep="/")


def to_theirs(
    params: PyTree, places: Places, shapes: Mapping[str, tuple[int, ...]], expected: str
) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`, in the parameters' type.

    Raises:
        ConvertError: the parameters have other names, "not the parameters of <expected>", or other shapes.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    if different := sorted(flat.keys() ^ shapes.keys()):
        lines = [f"{path}: {'missing' if path in shapes else 'unknown'}" for path in different]
        raise ConvertError(f"not the parameters of {expected}:" + bullets(lines))
    state: dict[str, np.ndarray] = {}
    for path, shape in shapes.items():
        value = np.asarray(flat[path])
        if value.shape != shape:
            raise ConvertError(f"parameter {path}: found shape {value.shape}, expected {shape}")
        layout, blocks, is_stacked = places[path]
        for names, block in zip(blocks, value if is_stacked else [value], strict=True):
            parts = _split(layout.to_theirs(block), len(names))
            state |= {name: np.asarray(part, order="C") for name, part in zip(names, parts, strict=True)}
    return state


def parameter_shapes(create: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
    """{path: shape} of every parameter, computed from the model itself."""
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(create), nnx.Param))
    return {path: value.shape for path, value in traverse_util.flatten_dict(params, sep="/").items()}


def num_layers(state: Iterable[str], pattern: str) -> int:
    """One more than the highest block number, so that a gap shows up as missing names; at least one."""
    return 1 + max((int(found[1]) for name in state if (found := re.match(pattern, name))), default=0)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a `.safetensors` file; a ConvertError if it is not one."""
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ConvertError(f"{path}: not a safetensors file: {error}") from error
    except (AttributeError, KeyError) as error:  # numpy has no such type
        raise ConvertError(f"{path}: found tensors of a type that cannot be read, expected float32: {error}") from error


def read_sharded(path: Path) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` file, or those that its index names; a ConvertError if one is none."""
    if path.suffix != ".json":
        return read_safetensors(path)
    try:
        files = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConvertError(f"{path}: not an index of safetensors files: {error!r}") from error
    if wrong := [file for file in files if not isinstance(file, str) or not file or Path(file).name != file]:
        raise ConvertError(f"{path}: found the file {wrong[0]!r}, expected names of safetensors files beside it")
    return {name: tensor for file in files for name, tensor in read_safetensors(path.with_name(file)).items()}


def write_safetensors(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes tensors as a `.safetensors` file that names PyTorch as its origin, which some readers require."""
    with replacing(path) as partial:
        partial.write_bytes(safetensors.numpy.save(dict(state), metadata={"format": "pt"}))


def bullets(lines: list[str]) -> str:
    """The first lines of a list, and how many more there are."""
    rest = len(lines) - _MAX_LISTED
    return "".join(f"\n  {line}" for line in lines[:_MAX_LISTED]) + (f"\n  and {rest} more" if rest > 0 else "")


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]  # a scalar cannot be concatenated


def _split(x: np.ndarray, num: int) -> list[np.ndarray]:
    return np.split(x, num) if num > 1 else [x]

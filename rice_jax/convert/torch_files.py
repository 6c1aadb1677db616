"""Reads PyTorch's files without PyTorch and without running code that they hold; writes them with PyTorch."""

import collections
import dataclasses
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from rice_jax.convert.tensors import ConvertError
from rice_jax.files import replacing

_TYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_SCRIPT = "__torch__."  # start of the classes of TorchScript's modules
_OLD_MAGIC = 0x1950A86A20F9469CFC6C  # the first value in a file that is no ZIP archive


def read_torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the tensors of a `.pt` or `.pth` file and runs no code in it, neither pickled nor TorchScript's.

    The file is a TorchScript archive, a plain state dict, or a dict with one at `model` or `state_dict`. Other objects
    in the file are not created; inert ones stand for them.

    Returns:
        The tensors by name, in the file's type. The classes of a TorchScript archive's modules by name, such as
        `{"mlp.gelu": "QuickGELU"}`; empty for other files, which do not hold them.

    Raises:
        ConvertError: the file holds something else, or is damaged.
    """
    with path.open("rb") as file:
        try:
            content, read = (_open_archive if zipfile.is_zipfile(file) else _open_old)(file)
            classes: dict[str, str] = {}
            if isinstance(content, _StandIn) and content.kind.startswith(_SCRIPT):
                members = dict(_members(content, ""))
                modules = {name: value for name, value in members.items() if isinstance(value, _StandIn)}
                classes = {name: module.kind.rpartition(".")[2] for name, module in modules.items()}
                content = {name: value for name, value in members.items() if isinstance(value, _Tensor)}
            state = _state_dict(content, path)
            return {name: tensor.array(read) for name, tensor in state.items()}, classes
        except ConvertError:
            raise
        except Exception as error:  # damaged pickles raise anything
            raise ConvertError(
                f"{path}: not a TorchScript archive or a state dict of tensors, or a damaged one: "
                f"{type(error).__name__}: {error}"
            ) from error


def write_torch(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict as PyTorch reads it; a ConvertError if PyTorch is missing."""
    torch = _import_torch(path)
    with replacing(path) as partial:
        torch.save({name: torch.tensor(x) for name, x in state.items()}, partial)


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The place of tensors' values in a file; `size` is in elements."""

    key: str
    dtype: np.dtype
    size: int


_Read = Callable[[_Storage], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor whose values have not been read; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, read: _Read) -> np.ndarray:
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        values = read(self.storage)[self.offset :]
        return np.lib.stride_tricks.as_strided(values, self.shape, [n * values.itemsize for n in self.strides])


class _StandIn:
    """Stands for an object or a function that is not created: takes any call, state and content, and does nothing."""

    kind = ""  # module and name of what it stands for
    state: object = None

    def __new__(cls, *_: object) -> Any:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __call__(self, *_: object) -> Any:
        return self

    append = extend = add = __setitem__ = __call__


class _Unpickler(pickle.Unpickler):
    """Creates tensors, dicts and plain values, and a `_StandIn` for everything else."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _first
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        return type("_StandIn", (_StandIn,), {"kind": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        what, dtype, key, _, size = pid[:5]
        if what != "storage" or not isinstance(dtype, np.dtype) or any(pid[5:]):
            raise ValueError(f"found {what} {getattr(dtype, 'kind', dtype)}, expected one of {', '.join(_TYPES)}")
        return self.storages.setdefault(key, _Storage(key, dtype, size))


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: object) -> _Tensor:
    """Stands for `torch._utils._rebuild_tensor_v2`, and checks that the values lie in the storage."""
    tensor = _Tensor(storage, offset, tuple(shape), tuple(strides))
    steps = [(num - 1) * stride for num, stride in zip(tensor.shape, tensor.strides, strict=True)]
    if min((offset, *tensor.shape, *tensor.strides)) < 0 or offset + sum(steps) >= max(storage.size, 1):
        raise ValueError(f"a tensor of shape {tensor.shape} lies outside of its {storage.size} values")
    return tensor


def _first(value: object, *_: object) -> object:
    return value


def _open_archive(file: io.BufferedIOBase) -> tuple[Any, _Read]:
    """Returns the pickled content of an archive, and a function that reads a storage."""
    archive = zipfile.ZipFile(file)
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
    root = pickled.removesuffix("data.pkl")

    def member(name: str) -> bytes:
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # PyTorch compresses none; it may be a bomb
            raise ValueError(f"{name} is compressed")
        return archive.read(name)

    if f"{root}byteorder" in archive.namelist() and member(f"{root}byteorder") != b"little":
        raise ValueError("written by a big-endian machine")
    content = _Unpickler(io.BytesIO(member(pickled))).load()
    return content, lambda storage: np.frombuffer(member(f"{root}data/{storage.key}"), storage.dtype, storage.size)


def _open_old(file: io.BufferedIOBase) -> tuple[Any, _Read]:
    """Does the same for a file of PyTorch before 1.6, in which pickles are followed by the storages."""
    file.seek(0)
    if _Unpickler(file).load() != _OLD_MAGIC:
        raise ValueError("an unknown format")
    _, system = _Unpickler(file).load(), _Unpickler(file).load()
    if not system["little_endian"]:
        raise ValueError("written by a big-endian machine")
    unpickler = _Unpickler(file)
    content = unpickler.load()
    places = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        places[key] = file.tell() + 8  # after the number of values
        file.seek(places[key] + storage.size * storage.dtype.itemsize)

    def read(storage: _Storage) -> np.ndarray:
        file.seek(places[storage.key])
        return np.frombuffer(file.read(storage.size * storage.dtype.itemsize), storage.dtype, storage.size)

    return content, read


def _members(module: _StandIn, prefix: str) -> Iterator[tuple[str, object]]:
    """Yields the name and value of each attribute of a TorchScript module and of the modules in it."""
    if not isinstance(module.state, dict):
        raise ValueError(f"{prefix or 'the module'} restores its tensors by code of its own, which is not run")
    for name, value in module.state.items():
        yield f"{prefix}{name}", value
        if isinstance(value, _StandIn) and value.kind.startswith(_SCRIPT):
            yield from _members(value, f"{prefix}{name}.")


def _state_dict(content: object, path: Path) -> Mapping[str, _Tensor]:
    """Returns the state dict that a file's content is or holds at `model` or `state_dict`."""
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ConvertError(f"{path}: found a {_kind(content)}, expected a state dict of tensors; save it alone")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise ConvertError(
                f"{path}: found a {_kind(value)} at {name!r}, expected a state dict of tensors; save it alone"
            )
    return content


def _kind(value: object) -> str:
    return value.kind if isinstance(value, _StandIn) else type(value).__name__


def _import_torch(path: Path) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise ConvertError(
            f"{path}: needs PyTorch: pip install 'rice-jax[torch]' (a .safetensors file needs none)"
        ) from error
    return torch

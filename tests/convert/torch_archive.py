"""Writes the files that PyTorch writes, without PyTorch."""

import dataclasses
import struct
import zipfile

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


@dataclasses.dataclass
class Call:
    """What unpickling would call; as a module of TorchScript it has a state and no arguments."""

    module: str
    name: str
    arguments: tuple = ()
    state: object = None


@dataclasses.dataclass
class View:
    """A tensor on a part of `base`, in elements."""

    base: np.ndarray
    offset: int
    shape: tuple
    strides: tuple


def module(kind, **members):
    """A TorchScript module of this class."""
    qualifier, _, name = f"__torch__.{kind}".rpartition(".")
    return Call(qualifier, name, state={"training": False, **members})


def script(state, kinds):
    """The modules that hold a state dict, and `kinds`, {module's name: its class}, below them."""
    root = module("model.___torch_mangle_7.Multimodal")
    for path, value in {**state, **{f"{name}.training": False for name in kinds}}.items():
        *parents, leaf = path.split(".")
        parent = root
        for depth, name in enumerate(parents):
            kind = kinds.get(".".join(parents[: depth + 1]), "torch.nn.modules.module.Module")
            parent = parent.state.setdefault(name, module(kind))
        parent.state[leaf] = value
    return root


def write_archive(path, content, code="", compression=zipfile.ZIP_STORED):
    """Writes a file as `torch.save` does, or as TorchScript does if there is code."""
    storages = []
    pickled = b"\x80\x02" + _pickled(content, storages) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled, compression)
        for key, values in enumerate(storages):
            archive.writestr(f"archive/data/{key}", values.tobytes())
        archive.writestr("archive/version", "3\n")
        if code:
            archive.writestr("archive/code/__torch__/model.py", code, zipfile.ZIP_DEFLATED)
    return path


def write_old(path, content):
    """Writes a file as `torch.save` did before PyTorch 1.6."""
    storages = []
    head = [b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", b"M\xe9\x03", _pickled({"little_endian": True}, [])]
    head += [_pickled(content, storages), b"(" + b"".join(_pickled(str(i), []) for i in range(len(storages))) + b"l"]
    data = [struct.pack("<q", values.size) + values.tobytes() for values in storages]
    path.write_bytes(b"".join([*(b"\x80\x02" + pickled + b"." for pickled in head), *data]))
    return path


def _pickled(value, storages):
    """The opcodes that create a value."""

    def call(module, name, arguments, opcode=b"R"):
        return f"c{module}\n{name}\n".encode() + _pickled(arguments, storages) + opcode

    if isinstance(value, np.ndarray):
        steps = tuple(n // value.itemsize for n in np.empty(value.shape, value.dtype).strides)
        return _pickled(View(value, 0, value.shape, steps), storages)
    if isinstance(value, View):
        storages.append(np.ascontiguousarray(value.base))
        kind = f"ctorch\n{STORAGES[value.base.dtype.name]}\n".encode()
        place = (str(len(storages) - 1), "cpu", value.base.size)
        storage = b"(" + _pickled("storage", []) + kind + b"".join(_pickled(x, []) for x in place) + b"tQ"
        rest = b"".join(_pickled(x, []) for x in (value.offset, value.shape, value.strides, False))
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"ccollections\nOrderedDict\n)RtR"
    if isinstance(value, Call):
        made = call(value.module, value.name, value.arguments, b"R" if value.state is None else b"\x81")
        return made if value.state is None else made + _pickled(value.state, storages) + b"b"
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(x, storages) for pair in value.items() for x in pair) + b"u"
    if isinstance(value, tuple | list):
        return b"(" + b"".join(_pickled(x, storages) for x in value) + (b"t" if isinstance(value, tuple) else b"l")
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    return f"I{value}\n".encode() if isinstance(value, int) else f"V{value}\n".encode()

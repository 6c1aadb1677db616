import os
import zipfile

import ml_dtypes
import numpy as np
import pytest

from rice_jax.convert.tensors import ConvertError
from rice_jax.convert.torch_files import read_torch
from tests.convert.torch_archive import Call, View, module, write_archive, write_old

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
STATE = {
    "float": ARRAY,
    "half": ARRAY.astype(np.float16),
    "brain": ARRAY.astype(ml_dtypes.bfloat16),
    "scalar": np.array(7),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": View(ARRAY, 0, (4, 3), (1, 4)),
    "part": View(ARRAY, 5, (2,), (3,)),
    "repeated": View(ARRAY, 1, (2, 2), (0, 1)),
}
EXPECTED = STATE | {
    "transposed": ARRAY.T,
    "part": np.float32([5, 8]),
    "repeated": np.float32([[1, 2], [1, 2]]),
}


@pytest.mark.parametrize("write", [write_archive, write_old])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_state_dict(tmp_path, write, key):
    other = {"epoch": 3, "config": Call("omegaconf", "DictConfig", ({"lr": [1]},))}
    state, classes = read_torch(write(tmp_path / "x.pt", other | {key: STATE} if key else STATE))
    assert state.keys() == EXPECTED.keys() and classes == {}
    for name, x in EXPECTED.items():
        np.testing.assert_array_equal(state[name], x, strict=True)


def test_parameters(tmp_path):
    content = {"w": Call("torch._utils", "_rebuild_parameter", (ARRAY, True, {}))}
    np.testing.assert_array_equal(read_torch(write_archive(tmp_path / "x.pt", content))[0]["w"], ARRAY)


def test_torchscript_archive(tmp_path):
    gelu = module("clip.___torch_mangle_3.QuickGELU")
    root = module("model.Net", w=ARRAY, mask=None, visual=module("model.Block", mlp=module("Seq", gelu=gelu, b=ARRAY)))
    state, classes = read_torch(write_archive(tmp_path / "x.pt", root, code="class Net(Module):"))
    assert state.keys() == {"w", "visual.mlp.b"}
    assert classes == {"visual": "Block", "visual.mlp": "Seq", "visual.mlp.gelu": "QuickGELU"}


@pytest.mark.parametrize("write", [write_archive, write_old])
@pytest.mark.parametrize("place", ["root", "model", "tensor", "beside", "state", "class"])
def test_no_pickled_code_is_run(tmp_path, write, place):
    ran = tmp_path / "ran"
    evil = Call("os", "mkdir", (str(ran),))
    content = {
        "root": evil,
        "model": {"model": evil},
        "tensor": {"w": ARRAY, "v": evil},
        "beside": {"model": {"w": ARRAY}, "config": evil},
        "state": Call("pathlib", "Path", (), {"x": evil}),
        "class": Call("builtins", "exec", (f"import os; os.mkdir({str(ran)!r})",)),
    }[place]
    file = write(tmp_path / "x.pt", content)
    if place == "beside":
        assert read_torch(file)[0].keys() == {"w"}
    else:
        with pytest.raises(ConvertError, match="found a .*, expected a state dict of tensors"):
            read_torch(file)
    assert not ran.exists()


def test_no_torchscript_is_run(tmp_path):
    """A module that is restored by code in the archive: PyTorch would run `__setstate__`."""
    code = "def __setstate__(self, state): torch.save(state, 'ran')"
    root = module("model.Net")
    root.state = (ARRAY, False)
    with pytest.raises(ConvertError, match="restores its tensors by code of its own, which is not run"):
        read_torch(write_archive(tmp_path / "x.pt", root, code))
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.parametrize(
    "tensor",
    [
        View(ARRAY, 0, (13,), (1,)),
        View(ARRAY, 1, (3, 4), (4, 1)),
        View(ARRAY, -1, (2,), (1,)),
        View(ARRAY, 11, (2,), (-1,)),
        View(ARRAY, 0, (2,), (2**62,)),
        View(ARRAY, 0, (3, 4), (4,)),
    ],
)
def test_tensor_outside_of_its_storage(tmp_path, tensor):
    with pytest.raises(ConvertError, match=r"x\.pt: not a TorchScript archive or a state dict"):
        read_torch(write_archive(tmp_path / "x.pt", {"w": tensor}))


def test_repeated_values_take_no_memory(tmp_path):
    state, _ = read_torch(write_archive(tmp_path / "x.pt", {"w": View(ARRAY, 0, (2**40,), (0,))}))
    assert state["w"].shape == (2**40,)


def test_compressed_archive(tmp_path):
    """PyTorch writes none, and a small one can hold terabytes."""
    with pytest.raises(ConvertError, match=r"data\.pkl is compressed"):
        read_torch(write_archive(tmp_path / "x.pt", {"w": ARRAY}, compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("write", [write_archive, write_old])
def test_file_that_is_cut(tmp_path, write):
    content = write(tmp_path / "x.pt", {"w": ARRAY}).read_bytes()
    for size in range(0, len(content) - 1, 7):
        (tmp_path / "cut.pt").write_bytes(content[:size])
        with pytest.raises(ConvertError, match=r"cut\.pt: not a TorchScript archive"):
            read_torch(tmp_path / "cut.pt")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {3: ARRAY}, Call("nets", "Net", (), {"w": ARRAY})])
def test_something_else(tmp_path, content):
    with pytest.raises(ConvertError, match="found a .*, expected a state dict of tensors; save it alone"):
        read_torch(write_archive(tmp_path / "x.pt", content))

"""Conversions of CLIP models from PyTorch's files."""

import pathlib
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from rice_jax.convert import clip
from rice_jax.models.weights import load_weights
from tests.convert.test_clip import SIZES, openai_micro, with_files
from tests.convert.torch_archive import script, write_archive

QUICK_GELU = {f"visual.transformer.resblocks.{i}.mlp.gelu": "model.___torch_mangle_2.QuickGELU" for i in range(2)}
GELU = dict.fromkeys(QUICK_GELU, "torch.nn.modules.activation.GELU")


def test_openai_archive(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # not needed
    state = {name: x.astype(np.float16) for name, x in openai_micro().items()}
    path = write_archive(tmp_path / "ViT.pt", script(state, QUICK_GELU), code="class Multimodal(Module):")
    clip.main([str(path), str(tmp_path / "out")])
    params, config = load_weights(tmp_path / "out")
    assert config == {"model": SIZES}
    expected, _ = clip.from_openai(state)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], expected)


def test_archive_with_gelu(tmp_path):
    path = write_archive(tmp_path / "open.pt", script(openai_micro(), GELU), code="class CLIP(Module):")
    with pytest.raises(SystemExit, match=r"open\.pt: its files say that it computes 'gelu', found --activation=quick"):
        clip.main([str(path), str(tmp_path / "out"), "--quick_gelu"])
    assert not (tmp_path / "out").exists()
    clip.main([str(path), str(tmp_path / "out")])
    assert load_weights(tmp_path / "out")[1] == {"model": SIZES | {"activation": "gelu"}}


def test_archive_with_another_activation(tmp_path):
    kinds = dict.fromkeys(QUICK_GELU, "torch.nn.modules.activation.Hardswish")
    path = write_archive(tmp_path / "open.pt", script(openai_micro(), kinds), code="class CLIP(Module):")
    with pytest.raises(SystemExit, match=r"open\.pt: found the activations Hardswish, expected QuickGELU or GELU"):
        clip.main([str(path), str(tmp_path / "out")])


@pytest.mark.parametrize("key", [None, "state_dict"])
def test_state_dict_needs_its_activation(tmp_path, key):
    state = {name: x.astype(ml_dtypes.bfloat16) for name, x in openai_micro().items()}
    path = str(write_archive(tmp_path / "open.pt", {key: state} if key else state))
    with pytest.raises(SystemExit, match="if this model uses QuickGELU, add --quick_gelu"):
        clip.main([path, str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    clip.main([path, str(tmp_path / "out"), "--quick_gelu"])
    params, _ = load_weights(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], clip.from_openai(state)[0])


@pytest.mark.parametrize("kind", ["TorchScript", "state dict"])
def test_pt_file(tmp_path, kind):
    torch = pytest.importorskip("torch")
    path = tmp_path / "ViT.pt"
    state = {name: torch.tensor(x).half() for name, x in openai_micro().items()}
    if kind == "TorchScript":
        torch.jit.script(_module(torch, state)).save(str(path))
    else:
        torch.save(state, path)
    clip.main([str(path), str(tmp_path / "out"), *["--quick_gelu"] * (kind == "state dict")])
    params, config = load_weights(tmp_path / "out")
    assert config == {"model": SIZES}
    expected, _ = clip.from_openai({name: x.float().numpy() for name, x in state.items()})
    np.testing.assert_array_equal(params["encoder"]["blocks"]["down"]["kernel"], expected["blocks"]["down"]["kernel"])


def _module(torch, state):
    """A module with these buffers, and activations as in OpenAI's archives."""

    class QuickGELU(torch.nn.Module):
        pass

    root = torch.nn.Module()
    for name, value in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        module.register_buffer(leaf, value)
    for block in root.visual.transformer.resblocks.children():
        block.mlp.add_module("gelu", QuickGELU())
    return root


def test_pt_file_runs_no_pickled_code(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "ViT.pt"
    torch.save({"visual.proj": _Touch(tmp_path / "ran")}, path)
    with pytest.raises(SystemExit, match=r"found a .* at 'visual\.proj', expected a state dict of tensors"):
        clip.main([str(path), str(tmp_path / "out")])
    assert not (tmp_path / "ran").exists()


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04 no model"])
def test_pt_file_that_is_none(tmp_path, content):
    with pytest.raises(SystemExit, match=r"ViT\.pt: not a TorchScript archive or a state dict of tensors"):
        clip.main([str(with_files(tmp_path / "source", ViT__pt=content) / "ViT.pt"), str(tmp_path / "out")])


def test_pt_file_of_something_else(tmp_path):
    path = write_archive(tmp_path / "ViT.pt", {"epoch": 3})
    with pytest.raises(SystemExit, match="found a int at 'epoch', expected a state dict of tensors"):
        clip.main([str(path), str(tmp_path / "out")])

"""Encoders that transformers has no class for, written and read back."""

import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from rice_jax.config import VitConfig
from rice_jax.convert.clip import ConvertError, convert, export
from rice_jax.convert.vit import settings
from rice_jax.models.encoders.vit import Vit
from rice_jax.models.weights import load_weights, save_weights

CONFIG = VitConfig(
    stem="mobilenet",
    image_size=64,
    patch_size=16,
    width=32,
    layers=1,
    heads=2,
    embed_dim=8,
    pixels="imagenet",
    dtype="float32",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(Vit(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)))
    save_weights(folder / "ours", {"encoder": params}, {"model": settings(CONFIG) | {"frozen_stages": 4}})
    assert "stem mobilenet" in export(folder / "ours", folder / "exported")
    return folder / "exported", params


def test_an_encoder_with_a_stem_is_written_as_float16_and_read_back(exported, tmp_path):
    folder, params = exported
    convert(folder, tmp_path / "again")
    again, config = load_weights(tmp_path / "again")
    assert config == {"model": settings(CONFIG)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16)), again["encoder"], params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, values: state.pop("stem.stage_0.scale"), "stem/stage_0/scale: missing"),
        (lambda state, values: state.update(x=np.zeros(2, np.float16)), "x: unknown"),
        (
            lambda state, values: values.update(width=64),
            "patch_embedding/kernel: found shape (1280, 32), expected (1280, 64)",
        ),
        (lambda state, values: values.update(patch_size=8), "config.json: config.model.patch_size: found 8 with "),
        (
            lambda state, values: values.update(stem="resnet"),
            "config.json: config.model.stem: found 'resnet', expected ",
        ),
        (
            lambda state, values: values.update(patch_size="a"),
            "config.json: config.model.patch_size: found 'a' (str), expected int",
        ),
        (lambda state, values: values.pop("width"), "config.json: 'width' is missing"),
        (
            lambda state, values: state["stem.stage_0.scale"].fill(np.nan),
            "stem/stage_0/scale: found values that are not",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(exported, change, message, tmp_path):
    folder, _ = exported
    state = {name: tensor.copy() for name, tensor in safetensors.numpy.load_file(folder / "model.safetensors").items()}
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(state, values)
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConvertError, match=re.escape(message)):
        convert(tmp_path, tmp_path / "out")

"""The worked examples of docs/extending.md run as they stand there."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax import config as settings
from rice_jax.config import AggregationConfig, ConfigError, LossConfig, MeshConfig, VitConfig
from rice_jax.models import layers, rice
from rice_jax.models.aggregation import Aggregation, transformer
from rice_jax.models.create import create_model, create_params, start_decoder
from rice_jax.models.encoders import ENCODERS, FrameEncoder, vit
from rice_jax.models.rice import RiceConfig
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks import contrast, retrieval
from rice_jax.tasks.task import Task
from rice_jax.types import Embeddings
from tests.fixtures import ROOT
from tests.settings import model_of, small_config

# What the examples use is defined or imported there.
MODULES = settings, layers, rice, transformer, vit, contrast, retrieval


@pytest.fixture(scope="module")
def names():
    """What the page's blocks of Python define; the entry in a dict is left out."""
    found = {name: value for module in MODULES for name, value in vars(module).items() if name[0] != "_"}
    found |= {"_accuracy": contrast._accuracy}
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(re.sub(r"^CONTRASTS.*", "", block, flags=re.MULTILINE), found)
    return found


def test_the_loss(names):
    image, video = np.random.default_rng(0).standard_normal((2, 5, 3))
    image, video = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, video))
    embeddings, keys = Embeddings(jnp.float32(image), jnp.float32(video)), jnp.array([0, 1, 2, 0, 4])
    loss, metrics = names["margin"](None, embeddings, keys, LossConfig(), None)
    pairs = [(i, j) for i, j in np.ndindex(5, 5) if keys[i] != keys[j]]
    excess = [max(0, names["MARGIN"] - image[i] @ video[i] + image[i] @ video[j]) for i, j in pairs]
    np.testing.assert_allclose(loss, sum(excess) / 5, rtol=1e-5)
    assert metrics.keys() == {"margin", "accuracy"}


def test_the_encoder(names):
    config = VitConfig(image_size=16, patch_size=8, width=8, layers=2, heads=2, embed_dim=6, dtype="float32")
    encoder, pictures = names["Mixer"](config, rngs=nnx.Rngs(0)), jnp.ones((3, 16, 16, 3))
    assert isinstance(encoder, FrameEncoder)
    tokens, feature = jax.eval_shape(lambda: encoder(pictures))
    assert (tokens.shape, feature.shape) == ((3, 5, 8), (3, 6))
    with pytest.raises(ConfigError, match="cannot leave out patches"):
        encoder(pictures, jnp.ones((3, 4), bool))


def test_what_the_encoder_cannot_do_is_refused(names, monkeypatch):
    monkeypatch.setitem(ENCODERS, "mixer", names["Mixer"])
    settings = {"model__architecture": "mixer", "loss__pmd_weight": 0.0}
    mesh = create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    params = jax.eval_shape(lambda: create_params(model_of(small_config(**settings)), mesh, 0))
    assert "layers" in params["encoder"]
    for changes, message in (
        (
            {"loss__pmd_weight": 1.0},
            r"pmd_weight: found 1\.0 with .*'mixer', expected 0: PMD and PFR attend to patches",
        ),
        ({"model__ipd": "boxes"}, "ipd_use: found 'mask' with .*'mixer', which cannot leave out patches"),
        ({"task": "detection"}, "architecture: found 'mixer' with config.task='detection', expected 'vit': a detector"),
    ):
        with pytest.raises(ConfigError, match=message):
            small_config(**settings | changes)


def test_no_decoder_starts_from_an_encoder_that_is_no_vit():
    """Whatever the encoder's parts are called."""
    pmd = {"self_blocks": {"qkv": {"kernel": jnp.zeros((1, 2, 6))}}}
    params = {"encoder": {"blocks": {"places": {"kernel": jnp.ones((2, 5, 5))}}}, "pmd": pmd}
    assert start_decoder(params, RiceConfig(VitConfig(architecture="mixer"))) is params


def test_the_aggregation(names):
    largest = names["Largest"](AggregationConfig(), 2, rngs=nnx.Rngs(0))
    assert isinstance(largest, Aggregation)
    found = largest(jnp.array([[[1.0, -5.0], [-2.0, -3.0], [9.0, 9.0]]]), jnp.array([[True, True, False]]))
    assert found.tolist() == [[1, -3]]


def test_the_task(names):
    task, mesh = names["Margin"](), create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    config = small_config(loss__pmd_weight=0.0, model__aggregation__kind="attention")
    task.check(config)
    assert isinstance(task, Task) and names["get_config"]().task == "margin"
    rows = {
        "image": jnp.zeros((4, 16, 16, 3), jnp.uint8),
        "video": jnp.zeros((4, 3, 16, 16, 3), jnp.uint8),
        "frame_mask": jnp.ones((4, 3), bool),
        "image_key": jnp.arange(4),
    }
    model, loss = task.model(config), task.loss(config, mesh)
    params = jax.eval_shape(lambda: create_params(model, mesh, 0))
    _, metrics = jax.eval_shape(lambda params: loss(create_model(model, mesh), params, rows, jnp.int32(0)), params)
    assert metrics.keys() == {"loss", "accuracy"}
    assert params.keys() == {"encoder", "aggregation"}


@pytest.mark.parametrize(
    "ignored", [{}, {"loss__kind": "triplet"}, {"loss__mask_same_image": False}, {"train__grad_cache_chunks": 2}]
)
def test_the_task_refuses_what_it_does_not_read(names, ignored):
    config = small_config(**{"loss__pmd_weight": 0.0} | ignored if ignored else {})
    with pytest.raises(ConfigError, match="expected their defaults, but pmd_weight=0, with config.task='retrieval'"):
        names["Margin"]().check(config)

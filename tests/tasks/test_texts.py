"""The contrasts of texts in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.config import MeshConfig
from rice_jax.losses.contrastive import contrastive_loss
from rice_jax.models.create import create_model, create_params
from rice_jax.parallel.mesh import create_mesh
from tests.models.test_text_in_pmd import BATCH, MISSING, TOWER, batch, loss_and_gradients
from tests.settings import model_of, small_config

DIM = 16  # of images and videos
WEIGHTS = {"loss__image_title_weight": 0.5, "loss__video_speech_weight": 0.25, "loss__title_speech_weight": 2.0}
SETTINGS = TOWER | WEIGHTS | {"model__text_tower__embed_dim": DIM, "loss__pmd_weight": 0.0, "loss__pfr_weight": 0.0}


def subject(devices=1):
    """Settings, devices, structure and parameters of a model without a decoder."""
    config, mesh = small_config(**SETTINGS), create_mesh(MeshConfig(-1, 1), jax.devices()[:devices])
    return config, mesh, create_model(model_of(config), mesh), create_params(model_of(config), mesh, seed=0)


@pytest.fixture(scope="module")
def one():
    return subject()


def test_the_losses_are_those_of_the_pairs_that_are_there(one):
    _, _, graphdef, params = one
    metrics, _ = loss_and_gradients(*one, batch("tower"))
    model = nnx.merge(graphdef, params)
    (image, video), tokens = model(batch("tower"))
    there = {name: np.setdiff1d(np.arange(BATCH), missing) for name, missing in MISSING.items()}
    both = np.intersect1d(there["title"], there["speech"])
    title, speech = tokens.title.embedding, tokens.speech.embedding
    expected = {
        "image_title": contrastive_loss(image[there["title"]], title[there["title"]], jnp.float32(4.0)),
        "video_speech": contrastive_loss(video[there["speech"]], speech[there["speech"]], jnp.float32(4.0)),
        "title_speech": contrastive_loss(title[both], speech[both], jnp.float32(4.0)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    for name, pairs in (("image_title", there["title"]), ("video_speech", there["speech"]), ("title_speech", both)):
        assert 0 < metrics[f"{name}_share"] == len(pairs) / BATCH < 1
    added = sum(WEIGHTS[f"loss__{name}_weight"] * value for name, value in expected.items())
    np.testing.assert_allclose(metrics["loss"], metrics["icl"] + added, rtol=1e-5)


def test_a_batch_without_any_text_has_no_loss_of_texts(one):
    rows = batch("tower")
    rows |= {name: jnp.zeros(BATCH, bool) for name in ("title_mask", "speech_mask")}
    metrics, gradients = loss_and_gradients(*one, rows)
    assert metrics["loss"] == metrics["icl"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients)) and not any(
        map(np.any, jax.tree.leaves(gradients["text"]))
    )


@pytest.mark.slow
def test_many_devices_and_chunks_give_the_losses_and_gradients_of_one(one):
    more = subject(devices=4)
    expected, expected_gradients = loss_and_gradients(*one, batch("tower"))
    found, gradients = loss_and_gradients(*more[:3], one[3], batch("tower"), num_chunks=2)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients, expected_gradients)
    assert np.abs(expected_gradients["text"]["blocks"]["qkv"]["kernel"]).max() > 1e-6

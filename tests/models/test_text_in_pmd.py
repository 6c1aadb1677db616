"""Titles and speech in the decoder, beyond what `tests/test_golden_text.py` compares with recordings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.config import MeshConfig
from rice_jax.eval.rerank import matcher
from rice_jax.models.create import create_model, create_params
from rice_jax.models.rice import Rice
from rice_jax.parallel.mesh import create_mesh, global_batch, parameter_shardings
from rice_jax.tasks.retrieval import retrieval_loss
from tests.settings import model_of, small_config

BATCH, FRAMES, TEXT = 8, 3, 12
EMBEDDINGS = {"model__text": "embeddings", "model__text_dim": TEXT, "data__texts": "texts"}
TOWER = {"model__text": "tower", "model__text_init_from": "text", "model__text_tower__layers": 1}
TOWER |= {"model__text_tower__width": 16, "model__text_tower__heads": 2, "model__text_tower__embed_dim": TEXT}
TOWER |= {"model__text_tower__vocab_size": 20, "model__text_tower__context": 6, "model__text_tower__mlp_width": 16}
NEGATIVES = jnp.stack([jnp.roll(jnp.arange(BATCH), shift) for shift in (1, 3)], axis=1)
MISSING = {"title": [0, 3, 5], "speech": [0, 1, 6]}  # pair 0 has neither


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def batch(texts: str = "embeddings") -> dict:
    rng = np.random.default_rng(0)
    rows = {
        "image": rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8),
        "video": rng.integers(0, 256, (BATCH, FRAMES, 16, 16, 3), np.uint8),
        "frame_mask": np.arange(FRAMES) < rng.integers(1, FRAMES + 1, (BATCH, 1)),
        "patch_mask": rng.random((BATCH, FRAMES, 4)) < 0.7,
        "image_key": np.arange(BATCH, dtype=np.int32),
    }
    for name, missing in MISSING.items():
        mask = ~np.isin(np.arange(BATCH), missing)
        vectors = unit(rng.standard_normal((BATCH, TEXT))).astype(np.float32)
        ids = rng.integers(1, 20, (BATCH, 6), np.int32)
        lengths = rng.integers(2, 7, (BATCH, 1))
        if texts == "embeddings":
            rows |= {name: vectors, f"{name}_mask": mask}
        if texts == "tower":
            rows |= {f"{name}_ids": ids, f"{name}_token_mask": np.arange(6) < lengths, f"{name}_mask": mask}
    return jax.tree.map(jnp.asarray, rows)


def large(params: dict) -> dict:
    """Weights of texts so large that every text shows."""
    rng = np.random.default_rng(1)
    pmd = dict(params["pmd"])
    pmd["text"] = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32)), pmd["text"])
    return params | {"pmd": pmd}


def subject(num_pairs: int = 1, settings: dict = EMBEDDINGS, devices: int = 1):
    """Settings, structure and parameters."""
    mesh = create_mesh(MeshConfig(data=devices, fsdp=1), jax.devices()[:devices])
    config = small_config(model__layers=2 * num_pairs, model__pmd__num_pairs=num_pairs, **settings)
    model = model_of(config)
    params = create_params(model, mesh, seed=0)
    return config, mesh, create_model(model, mesh), large(params) if config.model.text != "off" else params


def image_queries(graphdef, params, rows):
    return jax.jit(lambda params, rows: nnx.merge(graphdef, params).encode_images(rows).queries)(params, rows)


def attention(graphdef):
    return lambda params, rows: nnx.merge(graphdef, params).attention_maps(rows)


def matches(graphdef, params, rows):
    @jax.jit
    def run(params, rows):
        model = nnx.merge(graphdef, params)
        _, tokens = model(rows)
        return model.match_batch(rows, tokens, NEGATIVES)

    return run(params, rows)


@pytest.mark.parametrize("num_pairs", [1, 2])
def test_a_pair_without_texts_equals_the_model_without_texts(num_pairs):
    _, _, graphdef, params = subject(num_pairs)
    _, _, plain, _ = subject(num_pairs, {})
    rest = {name: value for name, value in params["pmd"].items() if name != "text"}
    expected = matches(plain, params | {"pmd": rest}, batch("none"))
    found = matches(graphdef, params, batch())
    without = matches(graphdef, params, batch("none"))
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)  # products of other shapes
    for own in (found, without):
        equal(own.cosine[0, 0], expected.cosine[0, 0])
        equal(own.attention[0], expected.attention[0])
    equal(without.cosine, expected.cosine)
    has_text = np.ones(BATCH, bool)
    has_text[0] = False
    assert (np.abs(found.cosine - expected.cosine)[has_text, 0] > 1e-4).all(), "texts count where they are"


@pytest.mark.parametrize(("texts", "num_pairs"), [("embeddings", 2), ("tower", 1)])
def test_the_match_of_inference_is_that_of_training(num_pairs, texts):
    """Videos bring their own speech, also as others' negatives; an image's side holds its title."""
    _, _, graphdef, params = subject(num_pairs, TOWER if texts == "tower" else EMBEDDINGS)
    rows = batch(texts)
    expected = matches(graphdef, params, rows).cosine
    queries = image_queries(graphdef, params, rows)
    assert queries.shape[1] == (1 if num_pairs == 1 else 6)
    given = {**rows, "queries": jnp.stack([queries] * BATCH)}
    del given["image"]
    found = np.asarray(jax.jit(matcher(graphdef))(params, given))  # [video, image]
    for image in range(BATCH):
        videos = [image, *NEGATIVES[image].tolist()]
        np.testing.assert_allclose(found[videos, image], expected[image], rtol=1e-4, atol=1e-5)


def test_pictures_that_are_encoded_again_bring_their_titles():
    _, _, graphdef, params = subject()
    rows = batch()
    candidates = np.array([[1, 0], [2, 5], *[[0, 3]] * (BATCH - 2)])
    queries = image_queries(graphdef, params, rows)
    kept = {name: value for name, value in rows.items() if not name.startswith(("image", "title"))}
    images = {name: rows[name][candidates] for name in ("image", "title", "title_mask")}
    expected = jax.jit(matcher(graphdef))(params, kept | {"queries": queries[candidates]})
    found = jax.jit(matcher(graphdef))(params, kept | {"images": images})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_attention_maps_leave_texts_out():
    _, _, graphdef, params = subject()
    rows = batch()
    maps = jax.jit(attention(graphdef))(params, rows)
    assert maps.shape == (BATCH, 4, FRAMES, 4)
    maps_of_training = matches(graphdef, params, rows).attention
    assert maps_of_training.shape == (BATCH, 2, 5, FRAMES * 5)
    expected = maps_of_training.mean(axis=1).reshape(BATCH, 5, FRAMES, 5)[:, 1:, :, 1:]
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)
    sums = np.asarray(maps_of_training).sum(axis=-1)
    spoken = np.asarray(rows["speech_mask"])
    assert (sums[spoken] < 1 - 1e-4).all(), "speech has a share, and nothing is normalized again"
    np.testing.assert_allclose(sums[~spoken], 1, rtol=1e-5)


def loss_and_gradients(config, mesh, graphdef, params, rows, num_chunks=1):
    placed = jax.device_put(params, parameter_shardings(mesh, params))

    @jax.jit
    def differentiate(params, rows):
        function = lambda params: retrieval_loss(  # noqa: E731
            graphdef, params, rows, config.loss, 1, jax.random.key(0), num_chunks, mesh
        )
        return jax.value_and_grad(function, has_aux=True)(params)

    (_, metrics), gradients = differentiate(placed, global_batch(mesh, jax.tree.map(np.asarray, rows)))
    return metrics, gradients


@pytest.mark.slow
@pytest.mark.parametrize(("texts", "num_chunks"), [("embeddings", 1), ("tower", 2)])
def test_many_devices_and_chunks_give_the_losses_and_gradients_of_one(texts, num_chunks):
    settings = TOWER if texts == "tower" else EMBEDDINGS
    one, more = subject(1, settings), subject(1, settings, devices=8 // num_chunks)
    expected, expected_gradients = loss_and_gradients(*one, batch(texts))
    found, gradients = loss_and_gradients(*more[:3], one[3], batch(texts), num_chunks)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients, expected_gradients)
    for part in ("title", "speech"):
        assert np.abs(expected_gradients["pmd"]["text"][part]["kernel"]).max() > 1e-4
    if texts == "tower":
        assert np.abs(expected_gradients["text"]["blocks"]["qkv"]["kernel"]).max() > 1e-6


def test_the_other_parts_start_from_the_same_weights():
    plain, texts = (
        create_params(model_of(small_config(**settings)), create_mesh(MeshConfig()), 0) for settings in ({}, TOWER)
    )
    kept = {name: value for name, value in texts.items() if name != "text"}
    kept["pmd"] = {name: value for name, value in texts["pmd"].items() if name != "text"}
    jax.tree.map(np.testing.assert_array_equal, kept, plain)
    title = texts["pmd"]["text"]["title"]
    assert not np.any(title["bias"]) and 0.015 < np.std(title["kernel"]) < 0.025
    assert "text" in Rice.PRETRAINED and "pmd" not in Rice.PRETRAINED  # learning rates

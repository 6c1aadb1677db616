import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.eval import attention
from rice_jax.eval.embed import compile_rows, compute_rows
from rice_jax.input.ground_truth import read_gallery_index, read_query_index
from rice_jax.input.pipeline import eval_batches
from rice_jax.input.transforms import Box
from rice_jax.models.rice import Rice
from rice_jax.pages import album
from rice_jax.parallel.mesh import create_mesh
from tests.pages.reports import evaluated
from tests.settings import model_of, small_config


@pytest.fixture(scope="module")
def pairs(shop):
    """Data settings, rows of two of the queries, and of an image for each."""
    return dataclasses.replace(small_config().input, data_dir=str(shop)), [1, 3], [5, 2]


def test_pairs_are_of_the_chosen_rows(pairs):
    data, queries, images = pairs
    [batch] = attention.attention_batches(data, 8, queries, images)
    [gallery], [videos] = eval_batches(data, "gallery", 8), eval_batches(data, "query", 8)
    assert batch["mask"].tolist() == [True, True] + [False] * 6
    assert batch["index"][:2].tolist() == [0, 1]
    np.testing.assert_array_equal(batch["image"][:2], gallery["image"][images])
    np.testing.assert_array_equal(batch["video"][:2], videos["video"][queries])


@pytest.mark.parametrize("num_pairs", [1, 2])
def test_maps_are_those_that_training_looks_at(pairs, num_pairs):
    data, queries, images = pairs
    config = small_config(model__layers=4, model__pmd__num_pairs=num_pairs)
    model = Rice(model_of(config), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    mesh = create_mesh(config.mesh)  # eight devices
    function = compile_rows(attention.attention_maps(graphdef), params, mesh)
    found = compute_rows(function, params, attention.attention_batches(data, 8, queries, images), 2, mesh)

    [batch] = attention.attention_batches(data, 8, queries, images)
    batch = jax.tree.map(lambda rows: jnp.asarray(rows[:2]), batch)
    _, tokens = model(batch["image"], batch["video"], batch["frame_mask"])
    matches = model.match(tokens, batch["frame_mask"], jnp.array([[1], [0]]))
    maps = np.asarray(matches.attention).mean(axis=1).reshape(2, 5, 3, 5)[:, 1:, :, 1:]
    assert found.shape == (2, 4, 3, 4) and found.dtype == np.uint8
    np.testing.assert_allclose(found, 255 * maps / maps.max(axis=(2, 3), keepdims=True), atol=0.51)
    assert (found.max(axis=(2, 3)) == 255).all()


def test_of_many_patches_several_become_one(pairs):
    data, queries, images = pairs
    config = small_config(model__image_size=80, data__resize=90)
    data = dataclasses.replace(config.input, data_dir=data.data_dir)
    graphdef, params = nnx.split(Rice(model_of(config), rngs=nnx.Rngs(0)))
    [batch] = attention.attention_batches(data, 2, queries, images)
    assert jax.eval_shape(attention.attention_maps(graphdef), params, batch).shape == (2, 64, 3, 64)


def test_queries_without_a_true_image_have_none(shop):
    ranked, *_ = evaluated(shop)
    rows = {(gallery, truths[0]): 7 for gallery, truths in zip(ranked.gallery_ids[1:], ranked.truths[1:], strict=True)}
    found = attention.true_images([2, 0, 1], ranked, rows)
    assert list(found.items()) == [(place, ranked.truths[place][0]) for place in (1, 2)]


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({}, (0.1, 0.1, 0.9, 0.9)),
        ({"ipd": "boxes", "ipd_use": "mask"}, (0.1, 0.1, 0.9, 0.9)),
        # Around the box 0.4 wide and 0.2 high with a quarter of 0.4 on each side, then the middle of that.
        ({"ipd": "boxes", "ipd_use": "crop", "ipd_margin": 0.25}, (0.16, 0.26, 0.64, 0.74)),
    ],
)
def test_windows_are_what_the_model_sees(shop, settings, window):
    data = dataclasses.replace(small_config().input, data_dir=str(shop), **settings)
    queries, (gallery_ids, image_ids) = read_query_index(data), read_gallery_index(data)
    rows = {pair: row for row, pair in enumerate(zip(gallery_ids, image_ids, strict=True))}
    pictures = album.Album(data.data_dir, data.query, data.gallery, rows, 3)
    weights = np.arange(4 * 3 * 4, dtype=np.uint8).reshape(1, 4, 3, 4)
    seen = attention.Attention(data, {1: queries[1].image_ids[0]}, weights)
    frames = [{"truths": [Box(0.2, 0.4, 0.6, 0.6)], "found": []}, {"truths": [], "found": []}]
    shown = seen.of(1, queries[1].gallery_id, frames, pictures)
    assert seen.of(0, queries[0].gallery_id, frames, pictures) is None
    assert shown["grid"] == 2 and shown["image"]["thumbnail"]
    assert shown["windows"][0][:4] == pytest.approx(window)
    assert shown["windows"][1][:4] == shown["window"][:4] == pytest.approx((0.1, 0.1, 0.9, 0.9))

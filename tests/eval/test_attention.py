import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.eval import attention
from rice_jax.eval.embed import compile_rows, compute_rows
from rice_jax.input.pipeline import eval_batches
from rice_jax.models.rice import Rice
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
    match = nnx.jit(lambda model, batch: model.match_batch(batch, model(batch)[1], jnp.array([[1], [0]])))
    maps = np.asarray(match(model, batch).attention).mean(axis=1).reshape(2, 5, 3, 5)[:, 1:, :, 1:]
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

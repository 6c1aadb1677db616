"""The scores of products that have several images."""

import numpy as np
import pytest
import scipy.special

from rice_jax.eval import pooling
from rice_jax.eval.pooling import Pooling, inflation, pool
from rice_jax.eval.products import Products


def exact(scores, sharpness):
    if sharpness == 0:
        return scores.mean(axis=-1)
    return scipy.special.logsumexp(sharpness * scores, axis=-1, b=1 / scores.shape[-1]) / sharpness


@pytest.mark.parametrize("sharpness", [0.0, 0.5, 20.0, 4000.0])
def test_pooled_scores(sharpness):
    scores = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    edges = np.array([0, 1, 4, 7])
    found = pool(scores, edges, sharpness)
    assert found.dtype == np.float32 and np.array_equal(found[:, 0], scores[:, 0]), "one image: bit for bit"
    for product, own in enumerate(np.split(scores.astype(np.float64), edges[1:-1], axis=1)):
        np.testing.assert_allclose(found[:, product], exact(own, sharpness), atol=1e-3 if sharpness == 0 else 1e-6)
        assert np.all(found[:, product] <= own.max(axis=1) + 1e-6)
    np.testing.assert_array_equal(found[1], pool(scores[1], edges, sharpness))
    of_images = Pooling(np.arange(8), sharpness, np.zeros(7, np.float32))
    for method in (of_images.scores, of_images.cosines):
        assert method(scores).dtype == np.float32 and np.array_equal(method(scores), scores), "one image each"


@pytest.mark.parametrize("block", [2, 64])
def test_what_several_images_add_to_a_cosine(monkeypatch, block):
    monkeypatch.setattr(pooling, "BLOCK", block)
    vectors = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    products = Products(np.array([2, 0, 1, 6, 3, 4, 5]), np.array([0, 1, 4, 7]), np.arange(3))
    found = inflation(vectors, products, 1.5)
    assert found[0] == 0 and found.dtype == np.float32
    for product in (1, 2):
        own = products.images(product)
        cosines = vectors[[row for row in range(7) if row not in own]].astype(np.float64) @ vectors[own].T
        assert found[product] == pytest.approx((exact(cosines, 1.5) - cosines.mean(axis=1)).mean(), rel=1e-4)
    one = Products(np.arange(7), np.arange(8), np.arange(7))
    np.testing.assert_array_equal(inflation(vectors, one, 1.5), np.zeros(7, np.float32))
    alone = Products(np.arange(7), np.array([0, 7]), np.arange(1))
    assert inflation(vectors, alone, 1.5).tolist() == [0], "there is no other product"


def test_some_of_many_pictures_stand_for_clips(monkeypatch):
    """The mean over some of them is near that over all."""
    vectors = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    products = Products(np.arange(400), np.arange(0, 401, 4), np.arange(100))
    every = inflation(vectors, products, 5.0)
    monkeypatch.setattr(pooling, "NUM_PICTURES", 101)
    some = inflation(vectors, products, 5.0)
    assert not np.array_equal(some, every) and np.abs(some - every).max() < 0.3 * every.min()


def test_an_image_that_does_not_show_the_product_costs_little():
    """Less than of the mean, and several images that show it cost nothing."""
    edges, found = np.array([0, 4]), np.array([0.7, 0.7, 0.7, 0.1], np.float32)
    [pooled] = pool(found, edges, 5.0)
    assert found.mean() < pooled < found.max()
    assert pool(np.full(4, 0.7, np.float32), edges, 5.0) == pytest.approx([0.7])

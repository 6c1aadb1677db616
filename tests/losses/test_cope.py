"""COPE's loss: which pairs and rows count, and with what weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rice_jax.losses.contrastive import different_images
from rice_jax.losses.cope import PAIRS, Centers, Pair, cope_loss
from rice_jax.losses.cosface import cosface_loss
from rice_jax.losses.smoothed import smoothed_contrastive_loss
from rice_jax.models.aggregation.mean import embed

PRODUCT = jnp.array([3, 0, 3, 5])


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(0)
    names = "page", "video", "live", "page_text"
    return {name: embed(jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)) for name in names}


@pytest.fixture(scope="module")
def centers():
    return Centers(jnp.asarray(np.random.default_rng(1).standard_normal((8, 6)), jnp.float32), num_classes=6)


def test_the_loss_is_the_weighted_sum_of_its_pairs_and_classifications(views, centers):
    pairs = Pair("page", "video", 2.0), Pair("page_text", "live", 0.5)
    found = cope_loss(views, PRODUCT, {}, pairs, centers, {"live": 3.0})
    mask = different_images(PRODUCT)
    first = smoothed_contrastive_loss(views["page"], views["video"], mask)
    second = smoothed_contrastive_loss(views["page_text"], views["live"], mask)
    third = cosface_loss(views["live"], PRODUCT, centers.centers, num_classes=6)
    assert set(found) == {"loss", "page-video", "page_text-live", "class-live"}
    np.testing.assert_allclose(found["page-video"], first, rtol=1e-6)
    np.testing.assert_allclose(found["loss"], 2 * first + 0.5 * second + 3 * third, rtol=1e-6)


def test_by_default_the_three_domains_are_contrasted_alike(views):
    found = cope_loss(views, PRODUCT, {})
    assert set(found) == {"loss", *map(str, PAIRS)}
    np.testing.assert_allclose(found["loss"], sum(found[str(pair)] for pair in PAIRS), rtol=1e-6)


def test_a_product_without_a_domain_has_the_losses_of_the_others(views, centers):
    """What stands in the place of a missing item changes neither the loss nor the gradient of anything else."""
    real = {"live": jnp.array([True, False, True, True])}

    def loss(live):
        return cope_loss(views | {"live": live}, PRODUCT, real, centers=centers, classified={"page": 1.0, "live": 1.0})

    found, gradient = loss(views["live"]), jax.grad(lambda live: loss(live)["loss"])(views["live"])
    other = loss(views["live"].at[1].set(views["page"][0]))
    assert {name: float(value) for name, value in found.items()} == {name: float(x) for name, x in other.items()}
    assert not np.any(gradient[1]) and np.all(np.any(gradient[jnp.array([0, 2, 3])] != 0, axis=1))
    rows = jnp.array([0, 2, 3])
    alone = smoothed_contrastive_loss(views["page"][rows], views["live"][rows], different_images(PRODUCT[rows]))
    np.testing.assert_allclose(found["page-live"], alone, rtol=1e-6)
    np.testing.assert_allclose(found["page-video"], cope_loss(views, PRODUCT, {})["page-video"], rtol=1e-6)


def test_an_unknown_view_and_missing_centers_are_refused(views):
    with pytest.raises(ValueError, match="^loss: found live_text, expected some of live, page, page_text, video$"):
        cope_loss(views, PRODUCT, {}, [Pair("live_text", "page")])
    with pytest.raises(ValueError, match="^loss: found page to classify, expected a model with centers of classes$"):
        cope_loss(views, PRODUCT, {}, classified={"page": 1.0})

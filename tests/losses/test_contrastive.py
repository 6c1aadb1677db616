import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from rice_jax.losses.contrastive import contrastive_loss, different_images, masked_contrastive_loss


def unit(rng, *shape):
    x = rng.standard_normal(shape).astype(np.float32)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def expected_loss(image, video, scale, keep):
    logits = np.where(keep, scale**2 * np.asarray(image, np.float64) @ np.asarray(video, np.float64).T, -np.inf)
    rows = logsumexp(logits, axis=1) - np.diag(logits)
    columns = logsumexp(logits, axis=0) - np.diag(logits)
    return (rows.mean() + columns.mean()) / 2


def test_value_and_gradient_against_scipy():
    rng = np.random.default_rng(0)
    image, video = unit(rng, 6, 8), unit(rng, 6, 8)
    keep = np.ones((6, 6), bool)
    np.testing.assert_allclose(
        jax.jit(contrastive_loss)(image, video, jnp.float32(4.0)), expected_loss(image, video, 4, keep), 1e-6
    )
    gradient = jax.jit(jax.grad(contrastive_loss))(image, video, jnp.float32(4.0))
    step = 1e-4
    for i, j in [(0, 0), (3, 5), (5, 7)]:
        moved = np.array(image, np.float64)
        moved[i, j] += step
        above = expected_loss(moved, video, 4, keep)
        moved[i, j] -= 2 * step
        numeric = (above - expected_loss(moved, video, 4, keep)) / (2 * step)
        np.testing.assert_allclose(gradient[i, j], numeric, rtol=1e-3)


def test_pairs_of_the_same_image_are_no_negatives():
    rng = np.random.default_rng(1)
    image, video, key = unit(rng, 5, 8), unit(rng, 5, 8), np.array([7, 3, 7, 1, 3], np.int32)
    keep = (key[:, None] != key[None]) | np.eye(5, dtype=bool)
    loss = jax.jit(contrastive_loss)(image, video, jnp.float32(3.0), different_images(jnp.array(key)))
    np.testing.assert_allclose(loss, expected_loss(image, video, 3, keep), rtol=1e-6)
    gradient = jax.jit(jax.grad(contrastive_loss, argnums=1))(
        image, video, jnp.float32(3.0), different_images(jnp.array([2, 2, 2, 2, 2]))
    )
    assert not np.any(gradient), "with no negative left there is nothing to learn"


def test_no_device_rounds_the_embeddings():
    """What an accelerator does by default does not show on a CPU."""
    rows = jax.ShapeDtypeStruct((6, 8), jnp.float32)
    step = jax.value_and_grad(contrastive_loss, argnums=(0, 1))
    products = str(jax.make_jaxpr(step)(rows, rows, 4.0)).split("dot_general[")[1:]
    assert len(products) == 3
    assert all(
        "precision=(Precision.HIGHEST, Precision.HIGHEST)" in product.split("\n    ]")[0] for product in products
    )


def test_a_masked_loss_is_that_of_the_pairs_that_are_there():
    rng, scale = np.random.default_rng(2), jnp.float32(3.0)
    one, other, key = unit(rng, 6, 8), unit(rng, 6, 8), jnp.array([7, 3, 7, 1, 3, 3])
    mask, there = jnp.array([True, False, True, True, True, False]), np.array([0, 2, 3, 4])
    broken = one.at[1].set(jnp.nan)  # masked rows have no meaning
    loss = jax.jit(jax.value_and_grad(masked_contrastive_loss, argnums=(0, 1)))
    found, (first, second) = loss(broken, other, scale, mask, different_images(key))
    expected, (of_one, of_other) = jax.value_and_grad(contrastive_loss, argnums=(0, 1))(
        one[there], other[there], scale, different_images(key[there])
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(first[there], of_one, atol=1e-6)
    np.testing.assert_allclose(second[there], of_other, atol=1e-6)
    assert not np.any(first[jnp.array([1, 5])]) and not np.any(second[jnp.array([1, 5])])
    everything = masked_contrastive_loss(one, other, scale, jnp.ones(6, bool))
    np.testing.assert_allclose(everything, contrastive_loss(one, other, scale), rtol=1e-6)
    nothing, gradients = loss(one, other, scale, jnp.zeros(6, bool))
    assert nothing == 0 and not any(map(np.any, gradients))

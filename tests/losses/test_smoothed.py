import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from rice_jax.losses.contrastive import different_images
from rice_jax.losses.smoothed import smoothed_contrastive_loss


def units(rows=6, width=8):
    x = np.random.default_rng(0).standard_normal((2, rows, width))
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def expected_loss(first, second, keep):
    """A loop in float64 over the rows of both directions."""
    cosines, losses = np.asarray(first, np.float64) @ np.asarray(second, np.float64).T, []
    for logits, kept in ((cosines / 0.05, keep), (cosines.T / 0.05, keep.T)):
        rows = [i for i in range(len(logits)) if kept[i, i]]
        for i in rows:
            log_probabilities = log_softmax(logits[i, kept[i]])
            own = int(kept[i, :i].sum())
            losses.append(-0.9 * log_probabilities[own] - 0.1 * log_probabilities.mean())
    return np.mean(losses)


def test_value_and_gradient_against_scipy():
    first, second = units()
    keep = np.ones((6, 6), bool)
    loss, gradient = jax.value_and_grad(smoothed_contrastive_loss)(first, second)
    np.testing.assert_allclose(loss, expected_loss(first, second, keep), rtol=1e-5)
    step = 1e-6
    for i, j in [(0, 0), (3, 5), (5, 7)]:
        moved = np.array(first, np.float64)
        moved[i, j] += step
        above = expected_loss(moved, second, keep)
        moved[i, j] -= 2 * step
        np.testing.assert_allclose(gradient[i, j], (above - expected_loss(moved, second, keep)) / (2 * step), rtol=1e-3)


def test_rows_of_the_same_product_are_no_negatives_and_rows_left_out_change_nothing():
    first, second = units()
    product, real = jnp.asarray([7, 3, 7, 1, 3, 2]), jnp.asarray([True, True, True, False, True, True])
    keep = np.asarray(different_images(product)) | np.eye(6, dtype=bool)
    keep &= np.outer(real, real)
    loss = lambda first: smoothed_contrastive_loss(first, second, different_images(product), real)  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(first)
    np.testing.assert_allclose(value, expected_loss(first, second, keep), rtol=1e-5)
    assert (np.abs(gradient).max(axis=1) > 0).tolist() == real.tolist()
    none = lambda first: smoothed_contrastive_loss(first, second, real=jnp.zeros(6, bool))  # noqa: E731
    assert none(first) == 0 and not np.any(jax.grad(none)(first))

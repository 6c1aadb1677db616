import jax
import jax.numpy as jnp
import numpy as np

from rice_jax.losses.triplet import triplet_loss

PRODUCT = np.array([0, 0, 1, 1, 2, 2])
SAME = PRODUCT[:, None] == PRODUCT
ROWS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def expected_loss(rows, same, other) -> float:
    """By definition, row by row, in float64."""
    losses = []
    for i, row in enumerate(rows):
        distance = np.linalg.norm(rows - row, axis=1)
        furthest = max((distance[j] for j in np.flatnonzero(same[i])), default=0.0)
        nearest = min((distance[j] for j in np.flatnonzero(other[i])), default=np.inf)
        losses.append(np.logaddexp(0, furthest - nearest))
    return float(np.mean(losses))


def test_value_mask_and_gradient_against_the_definition():
    left_out = SAME | (np.add.outer(np.arange(6), np.arange(6)) == 5)  # pairs that are neither
    for other in (~SAME, ~left_out):
        value, gradient = jax.jit(jax.value_and_grad(triplet_loss))(jnp.asarray(ROWS), SAME, other)
        exact = ROWS.astype(np.float64)
        np.testing.assert_allclose(value, expected_loss(exact, SAME, other), rtol=1e-6)
        step = 1e-6
        for place in [(0, 0), (3, 2), (5, 3)]:
            moved = exact.copy()
            moved[place] += step
            above = expected_loss(moved, SAME, other)
            moved[place] -= 2 * step
            numeric = (above - expected_loss(moved, SAME, other)) / (2 * step)
            np.testing.assert_allclose(gradient[place], numeric, rtol=1e-3, atol=1e-6)
    assert expected_loss(exact, SAME, ~SAME) != expected_loss(exact, SAME, ~left_out)


def test_rows_without_another_and_equal_rows_have_a_finite_gradient():
    results = jax.jit(jax.value_and_grad(triplet_loss))
    value, gradient = results(jnp.asarray(ROWS), SAME, np.zeros_like(SAME))
    assert value == 0 and not np.any(gradient)
    value, gradient = results(jnp.ones((6, 4)), SAME, ~SAME)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert np.isfinite(gradient).all()

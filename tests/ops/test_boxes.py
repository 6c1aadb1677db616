import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rice_jax.ops.boxes import area, giou, iou, to_centers, to_corners


def brute(a, b, steps=200):
    """IoU and GIoU by counting points of a fine grid."""
    points = (np.arange(steps) + 0.5) / steps
    x, y = np.meshgrid(points, points)

    def inside(box):
        return (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])

    hull = inside([*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])]).sum()
    shared, union = (inside(a) & inside(b)).sum(), (inside(a) | inside(b)).sum()
    return shared / union, shared / union - (hull - union) / hull


@pytest.mark.parametrize(
    ("a", "b", "expected_iou", "expected_giou"),
    [
        ((0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.5, 0.5), 1.0, 1.0),
        ((0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 1.0), 1 / 3, 1 / 3),
        ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), 0.0, -0.5),
        ((0.0, 0.0, 0.1, 1.0), (0.9, 0.0, 1.0, 1.0), 0.0, -0.8),
        ((0.2, 0.2, 0.4, 0.4), (0.0, 0.0, 1.0, 1.0), 0.04, 0.04),
        ((0.3, 0.3, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3), 0.0, 0.0),  # two points
    ],
)
def test_overlap_of_boxes_by_hand(a, b, expected_iou, expected_giou):
    for first, second in ((a, b), (b, a)):
        assert float(jax.jit(iou)(jnp.array(first), jnp.array(second))) == pytest.approx(expected_iou, abs=1e-6)
        assert float(jax.jit(giou)(jnp.array(first), jnp.array(second))) == pytest.approx(expected_giou, abs=1e-6)


def test_overlap_of_every_pair_is_that_of_counted_points():
    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.integers(0, 41, (count, 2, 2)) / 40, axis=1).reshape(count, 4) for count in (5, 7))
    a, b = (np.where(boxes[:, [2, 3, 2, 3]] > boxes[:, [0, 1, 0, 1]], boxes, [0, 0, 1, 1]) for boxes in (a, b))
    pairs = iou(jnp.array(a)[:, None], jnp.array(b)[None]), giou(jnp.array(a)[:, None], jnp.array(b)[None])
    expected = np.array([[brute(x, y) for y in b] for x in a])
    np.testing.assert_allclose(np.stack(pairs, axis=-1), expected, atol=1e-5)


def test_corners_and_centers_are_each_others_inverse():
    corners = jnp.array([[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]])
    np.testing.assert_allclose(to_centers(corners), [[0.3, 0.55, 0.4, 0.7], [0.5, 0.5, 1.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(to_corners(to_centers(corners)), corners, atol=1e-6)
    np.testing.assert_allclose(area(jnp.array([[0.2, 0.2, 0.4, 0.7], [0.4, 0.2, 0.2, 0.7]])), [0.1, 0.0], atol=1e-6)


@pytest.mark.parametrize("function", [iou, giou])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((0.3, 0.3, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3)),
        ((0.3, 0.3, 0.3, 0.3), (0.1, 0.1, 0.5, 0.5)),
        ((0.3, 0.1, 0.3, 0.9), (0.3, 0.2, 0.3, 0.8)),  # lines
        ((0.5, 0.5, 0.2, 0.2), (0.1, 0.1, 0.5, 0.5)),  # inside out
        ((0.1, 0.1, 0.3, 0.3), (0.3, 0.3, 0.5, 0.5)),  # touch in a corner
        ((0.1, 0.1, 0.3, 0.3), (0.1, 0.1, 0.3, 0.3)),
    ],
)
def test_gradients_at_degenerate_boxes_are_small_and_finite(function, a, b):
    gradients = jax.jit(jax.grad(function, argnums=(0, 1)))(jnp.array(a), jnp.array(b))
    assert np.isfinite(gradients).all() and np.abs(gradients).max() < 100


@pytest.mark.parametrize("function", [iou, giou])
def test_gradients_are_those_of_finite_differences(function):
    a, b = jnp.array([0.1, 0.2, 0.6, 0.7]), jnp.array([0.3, 0.1, 0.9, 0.5])
    check_grads(
        lambda a, b: function(jnp.asarray(a), jnp.asarray(b)),
        (a, b),
        order=1,
        modes="rev",
        atol=2e-2,
        rtol=2e-2,
        eps=1e-3,
    )

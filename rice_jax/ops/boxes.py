"""Boxes as arrays of four numbers, and how much two of them overlap.

Corners are left, top, right, bottom; centers are center x, center y, width, height; all in shares of the picture.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

# A smaller area counts as 0: its overlap with anything is 0, without the gradient, which would be huge.
NO_AREA = 1e-9


def to_corners(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """Corners from centers."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def to_centers(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """Centers from corners."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def area(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B"]:
    """Area of corners; 0 where right < left or bottom < top."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(a: Float[Array, "*A 4"], b: Float[Array, "*B 4"]) -> Float[Array, "*C"]:
    """Intersection over union of corners, 0..1; 0 where both have no area.

    Args:
        a, b: of shapes that broadcast: `a[:, None]` and `b[None]` give every pair.
    """
    shared, union = _shared_and_union(a, b)
    return _ratio(shared, union)


def giou(a: Float[Array, "*A 4"], b: Float[Array, "*B 4"]) -> Float[Array, "*C"]:
    """Generalized IoU of corners, -1..1: IoU less the share of the common hull that neither box covers.

    Args:
        a, b: of shapes that broadcast.

    Source: Rezatofighi et al. 2019, "Generalized Intersection over Union", algorithm 1.
    """
    shared, union = _shared_and_union(a, b)
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    hull = area(jnp.concatenate([low, high], axis=-1))
    return _ratio(shared, union) - _ratio(hull - union, hull)


def _shared_and_union(a: Array, b: Array) -> tuple[Array, Array]:
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    shared = area(jnp.concatenate([low, high], axis=-1))
    return shared, area(a) + area(b) - shared


def _ratio(part: Array, whole: Array) -> Array:
    # Replaced before the division too: a gradient must be finite even where it is multiplied by 0 afterwards.
    some = whole > NO_AREA
    return jnp.where(some, part / jnp.where(some, whole, 1), 0)

"""DETR's loss: every true box should be predicted by exactly one query."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32

from rice_jax.ops.assignment import assign
from rice_jax.ops.boxes import giou, to_centers, to_corners


def detection_loss(
    logits: Float[Array, "B T Q"],
    predicted: Float[Array, "B T Q 4"],
    boxes: Float[Array, "B T M 4"],
    box_mask: Bool[Array, "B T M"],
    frame_mask: Bool[Array, "B T"],
    *,
    no_object_weight: float,
    l1_weight: float,
    giou_weight: float,
) -> dict[str, Float[Array, ""]]:
    """Classification, L1 and GIoU losses of the global batch after the assignment of least cost.

    Args:
        logits: of a product against none, float32. The softmax over these two classes is the sigmoid of one logit.
        predicted: center x, center y, width, height, 0..1, float32.
        boxes: true boxes, corners, 0..1; M <= Q.
        box_mask: True = a box, False = padding.
        frame_mask: True = a frame, False = padding, which does not count.
        no_object_weight: weight of a query without a box in the classification; a query with a box has 1.
        l1_weight, giou_weight: of the boxes' losses, also in the cost of the assignment; the class has 1.

    Returns:
        The weighted sum `loss`, and its parts before their weights: `class`, the weighted mean over all queries of all
        frames; `l1`, summed over the four numbers, and `giou` (1 - GIoU, 0..2), the mean over all boxes of the batch.

    Source: Carion et al. 2020, "End-to-End Object Detection with Transformers", equations 1 and 2 and appendix A.2.
    """
    box_mask = box_mask & frame_mask[..., None]
    centers = to_centers(boxes)
    cost = (
        -jax.nn.sigmoid(logits)[..., None]
        + l1_weight * jnp.abs(predicted[..., :, None, :] - centers[..., None, :, :]).sum(axis=-1)
        - giou_weight * giou(to_corners(predicted)[..., :, None, :], boxes[..., None, :, :])
    )  # [B, T, Q, M]
    query = assign(cost, box_mask)
    has_box = assigned_queries(query, box_mask, logits.shape[-1])

    weight = jnp.where(has_box, 1.0, no_object_weight) * frame_mask[..., None]
    entropy = optax.sigmoid_binary_cross_entropy(logits, has_box.astype(logits.dtype))
    found = jnp.take_along_axis(predicted, query[..., None], axis=2)  # [B, T, M, 4]
    l1 = jnp.abs(found - centers).sum(axis=-1)
    overlap = giou(to_corners(found), boxes)
    num_boxes = jnp.maximum(box_mask.sum(), 1)
    parts = {
        "class": (weight * entropy).sum() / jnp.maximum(weight.sum(), 1e-6),
        "l1": jnp.where(box_mask, l1, 0).sum() / num_boxes,
        "giou": jnp.where(box_mask, 1 - overlap, 0).sum() / num_boxes,
    }
    return {"loss": parts["class"] + l1_weight * parts["l1"] + giou_weight * parts["giou"], **parts}


def assigned_queries(
    query: Int32[Array, "*B M"], box_mask: Bool[Array, "*B M"], num_queries: int
) -> Bool[Array, "*B Q"]:
    """Which queries have a box."""
    return (jax.nn.one_hot(query, num_queries, dtype=bool) & box_mask[..., None]).any(axis=-2)

"""The training step of a detector."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from rice_jax.config import Config, DetectionLossConfig
from rice_jax.losses.detection import detection_loss
from rice_jax.ops.boxes import iou, to_corners
from rice_jax.train.state import TrainState
from rice_jax.train.steps import Metrics, Step, update
from rice_jax.types import DetectionBatch


def detection_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, config: Config) -> Step:
    """The step that trains a detector on frames with boxes.

    Returns:
        A pure function; metrics are scalars: loss, summed over the decoder's layers; class, l1 and giou of the last
        layer before their weights; accuracy, see `top_accuracy`; gradient_norm.
    """

    def step(state: TrainState, batch: DetectionBatch) -> tuple[TrainState, Metrics]:
        return update(state, optimizer, lambda params: detector_loss(graphdef, params, batch, config.loss.detection))

    return step


def detector_loss(
    graphdef: nnx.GraphDef, params: PyTree, batch: DetectionBatch, config: DetectionLossConfig
) -> tuple[Float[Array, ""], Metrics]:
    """Total loss over the global batch, and what is reported of it.

    Every layer answers for itself, with an assignment of its own.

    Source: DETR, section 3.2, "auxiliary decoding losses".
    """
    found = nnx.merge(graphdef, params)(batch["video"], batch["frame_mask"])
    layers = jax.vmap(
        lambda logits, boxes: detection_loss(
            logits,
            boxes,
            batch["boxes"],
            batch["box_mask"],
            batch["frame_mask"],
            no_object_weight=config.no_object_weight,
            l1_weight=config.l1_weight,
            giou_weight=config.giou_weight,
        )
    )(found.logits, found.boxes)
    metrics = {name: values[-1] for name, values in layers.items()}
    loss = metrics["loss"] = layers["loss"].sum()
    metrics["accuracy"] = top_accuracy(found.logits[-1], found.boxes[-1], batch["boxes"], batch["box_mask"])
    return loss, metrics


def top_accuracy(
    logits: Float[Array, "B T Q"],
    predicted: Float[Array, "B T Q 4"],
    boxes: Float[Array, "B T M 4"],
    box_mask: Bool[Array, "B T M"],
) -> Float[Array, ""]:
    """Share of the frames with a box in which the highest score's box has an IoU of at least 0.5 with one.

    Args:
        logits: of the scores.
        predicted: centres.
        boxes: corners.
        box_mask: True = a box.
    """
    best = jnp.argmax(logits, axis=-1)[..., None, None]
    overlap = iou(to_corners(jnp.take_along_axis(predicted, best, axis=2)), boxes)  # [B, T, M]
    hit, asked = (jnp.where(box_mask, overlap, 0) >= 0.5).any(axis=-1), box_mask.any(axis=-1)
    return (hit & asked).sum() / jnp.maximum(asked.sum(), 1)

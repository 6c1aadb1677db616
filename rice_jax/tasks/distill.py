"""The losses of distillation in task "retrieval"."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rice_jax.config import LossConfig
from rice_jax.losses.distillation import direct_loss, relational_loss
from rice_jax.models.similarity import LearnedScale
from rice_jax.train.steps import Batch, Metrics
from rice_jax.types import Embeddings


def distill(
    model: LearnedScale, embeddings: Embeddings, batch: Batch, config: LossConfig
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted losses over the images and videos of the global batch.

    Args:
        model: with a head, if `config.distill_direct_weight` is set.
        embeddings: of the batch.
        batch: with `teacher` and `teacher_mask`.
        config: the weights.

    Returns:
        The loss, and the metrics: the unweighted `distill` and `distill_direct`; `taught`, the share of images and
        videos of which there is a teacher's embedding.
    """
    rows = jnp.concatenate(embeddings)  # images, then videos
    teacher, mask = (jnp.concatenate([x[:, 0], x[:, 1]]) for x in (batch["teacher"], batch["teacher_mask"]))
    loss, metrics = jnp.zeros(()), {"taught": mask.mean()}
    if config.distill_weight:
        metrics["distill"] = relational_loss(rows, teacher, mask, config.distill_temperature)
        loss += config.distill_weight * metrics["distill"]
    if config.distill_direct_weight:
        mapped = jnp.matmul(rows, model.teacher_head.kernel[...], precision=jax.lax.Precision.HIGHEST)
        metrics["distill_direct"] = direct_loss(mapped, teacher, mask)
        loss += config.distill_direct_weight * metrics["distill_direct"]
    return loss, metrics

"""Contrast of two sets of embeddings with smoothed labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rice_jax.losses.contrastive import MASKED_LOGIT, similarity

TEMPERATURE, SMOOTHING = 0.05, 0.1


def smoothed_contrastive_loss(
    first: Float[Array, "B E"],
    second: Float[Array, "B E"],
    negative_mask: Bool[Array, "B B"] | None = None,
    real: Bool[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Mean of the cross entropies both ways over the global batch, with smoothed labels.

    Args:
        first: unit-length embeddings, float32; row i belongs to row i of `second`.
        second: unit-length embeddings, float32.
        negative_mask: True where rows i and j may be contrasted; the diagonal always is. None = everywhere.
        real: False = a row that is left out, since one side lacks it; None = all are real. Without any the loss is 0.

    Returns:
        Scalar loss, float32.

    Source: COPE's contrastive loss, cosines / 0.05 and a smoothing of 0.1.
    Differs: `negative_mask`, `real`. Labels are smoothed over what is contrasted.
    """
    size = len(first)
    own = jnp.eye(size, dtype=bool)
    keep = jnp.ones((size, size), bool) if negative_mask is None else negative_mask | own
    real = jnp.ones(size, bool) if real is None else real
    keep &= real[:, None] & real
    logits = similarity(first, second) / TEMPERATURE
    return (_cross_entropy(logits, keep, own) + _cross_entropy(logits.T, keep.T, own)) / 2


def _cross_entropy(logits: Float[Array, "B B"], keep: Bool[Array, "B B"], own: Bool[Array, "B B"]) -> Float[Array, ""]:
    count = jnp.maximum(keep.sum(axis=1), 1)
    log_probabilities = jax.nn.log_softmax(jnp.where(keep, logits, MASKED_LOGIT))
    labels = (1 - SMOOTHING) * own + SMOOTHING / count[:, None]
    losses = -jnp.where(keep, labels * log_probabilities, 0).sum(axis=1)
    real = jnp.diagonal(keep)
    return jnp.where(real, losses, 0).sum() / jnp.maximum(real.sum(), 1)

"""PMD's loss: tells an image's own video from the most similar others."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from rice_jax.losses.contrastive import MASKED_LOGIT


def matching_loss(
    cosine: Float[Array, "B K"], scale: float, negative_mask: Bool[Array, "B N"] | None = None
) -> Float[Array, ""]:
    """Cross entropy of the own video, which comes first, among the candidates.

    Args:
        cosine: of K = 1 + N candidates, -1 to 1, float32.
        scale: logits are scale · cosine.
        negative_mask: True = a negative to learn from; None = all N.

    Returns:
        Scalar loss, the mean over the batch, float32.

    Source: docs/reference.md, section 3.
    """
    logits = scale * cosine
    if negative_mask is not None:
        logits = logits.at[:, 1:].set(jnp.where(negative_mask, logits[:, 1:], MASKED_LOGIT))
    own = jnp.zeros(logits.shape[0], jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, own).mean()


def hardest_negatives(
    similarity: Float[Array, "B B"], num_negatives: int, candidate_mask: Bool[Array, "B B"] | None = None
) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
    """The videos most similar to each image, except its own.

    Over a mesh this needs the similarities of the global batch, B² numbers from 2 · B · E gathered ones.

    Args:
        similarity: of image i and video j; no gradient flows through the choice.
        num_negatives: N, less than B.
        candidate_mask: True where video j may be a negative of image i; the diagonal never is. None = everywhere.

    Returns:
        Rows of the videos, hardest first and ties by lower row, and whether each is a candidate: False where an image
        has fewer than N.
    """
    candidates = ~jnp.eye(similarity.shape[0], dtype=bool)
    if candidate_mask is not None:
        candidates &= candidate_mask
    _, index = jax.lax.top_k(jnp.where(candidates, jax.lax.stop_gradient(similarity), -jnp.inf), num_negatives)
    return index, jnp.take_along_axis(candidates, index, axis=1)


def same_shard(batch: int, num_shards: int) -> Bool[Array, "B B"]:
    """Candidate mask that keeps negatives within equal consecutive parts of the batch."""
    part = jnp.arange(batch) // (batch // num_shards)
    return part[:, None] == part[None, :]

"""ICL, instance-level contrastive learning."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

# Large enough to vanish in a softmax, finite so that no gradient becomes NaN.
MASKED_LOGIT = -1e9


def contrastive_loss(
    image: Float[Array, "B E"],
    video: Float[Array, "B E"],
    logit_scale: Float[Array, ""],
    negative_mask: Bool[Array, "B B"] | None = None,
) -> Float[Array, ""]:
    """Mean of the image-to-video and the video-to-image cross entropy over the global batch.

    Args:
        image: unit-length embeddings, float32; row i belongs to row i of `video`.
        video: unit-length embeddings, float32.
        logit_scale: each side is multiplied by it, so logits are logit_scale² · cos.
        negative_mask: True where image i and video j may be contrasted; the diagonal always is. None = everywhere.

    Returns:
        Scalar loss, float32.

    Source: docs/reference.md, section 2; Radford et al. 2021, figure 3.
    Differs: `negative_mask`.
    """
    logits = similarity(logit_scale * image, logit_scale * video)
    positives = jnp.arange(logits.shape[0])
    if negative_mask is not None:
        keep = negative_mask | jnp.eye(logits.shape[0], dtype=bool)
        logits = jnp.where(keep, logits, MASKED_LOGIT)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return (cross_entropy(logits, positives).mean() + cross_entropy(logits.T, positives).mean()) / 2


def masked_contrastive_loss(
    one: Float[Array, "B E"],
    other: Float[Array, "B E"],
    logit_scale: Float[Array, ""],
    mask: Bool[Array, " B"],
    negative_mask: Bool[Array, "B B"] | None = None,
) -> Float[Array, ""]:
    """`contrastive_loss` of those pairs of a batch that are there; 0 if there is none.

    Args:
        one: unit-length embeddings, float32; row i belongs to row i of `other`. Masked rows have no meaning.
        other: unit-length embeddings, float32.
        logit_scale: each side is multiplied by it.
        mask: True = a pair.
        negative_mask: True where row i of `one` and row j of `other` may be contrasted; None = everywhere.
    """
    logits = similarity(
        logit_scale * jnp.where(mask[:, None], one, 0), logit_scale * jnp.where(mask[:, None], other, 0)
    )
    keep = mask[:, None] & mask[None, :]
    if negative_mask is not None:
        keep &= negative_mask | jnp.eye(len(mask), dtype=bool)
    logits = jnp.where(keep, logits, MASKED_LOGIT)
    cross_entropy, positives = optax.softmax_cross_entropy_with_integer_labels, jnp.arange(len(mask))
    losses = cross_entropy(logits, positives) + cross_entropy(logits.T, positives)
    return jnp.where(mask, losses, 0).sum() / jnp.maximum(2 * mask.sum(), 1)


def similarity(image: Float[Array, "*A E"], video: Float[Array, "B E"]) -> Float[Array, "*A B"]:
    """Inner products in full float32; by default a TPU rounds its inputs to bfloat16, and a GPU to TF32."""
    return jnp.matmul(image, video.T, precision=jax.lax.Precision.HIGHEST)


def different_images(image_key: Int[Array, " B"]) -> Bool[Array, "B B"]:
    """Negative mask that leaves out pairs with the same shop image, which are in fact positives."""
    return image_key[:, None] != image_key[None, :]

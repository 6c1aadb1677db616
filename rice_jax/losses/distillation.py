"""Distillation: embeddings learn from those of a teacher, directly or by what is similar to what."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rice_jax.losses.contrastive import MASKED_LOGIT, similarity


def relational_loss(
    embedding: Float[Array, "N E"], teacher: Float[Array, "N W"], mask: Bool[Array, " N"], temperature: float
) -> Float[Array, ""]:
    """Mean over the rows of the divergence of the embeddings' similarities from the teacher's.

    The similarities of a row to all others become a distribution by a softmax; the teacher's is the target.

    Args:
        embedding: unit length, float32.
        teacher: its embeddings of the same rows, unit length, float32; the sizes E and W may differ.
        mask: True = the teacher has the row; others are left out, as a row and as a column.
        temperature: of both softmaxes, above 0.

    Returns:
        Scalar loss, float32: the Kullback-Leibler divergence, 0 if all similarities are equal up to a constant; 0 with
        fewer than two rows.

    Source: Park et al. 2019, "Relational Knowledge Distillation"; the distributions are those of Fang et al. 2021,
        "SEED: Self-supervised Distillation for Visual Representation", equation 3.
    Differs: the other rows of the batch take the place of SEED's queue, without the row itself.
    """
    keep = mask[:, None] & mask & ~jnp.eye(len(mask), dtype=bool)
    expected, found = (
        jax.nn.log_softmax(jnp.where(keep, similarity(rows, rows) / temperature, MASKED_LOGIT))
        for rows in (jax.lax.stop_gradient(teacher), embedding)
    )
    divergence = jnp.where(keep, jnp.exp(expected) * (expected - found), 0).sum(axis=1)
    return divergence.sum() / jnp.maximum(keep.any(axis=1).sum(), 1)


def direct_loss(mapped: Float[Array, "N W"], teacher: Float[Array, "N W"], mask: Bool[Array, " N"]) -> Float[Array, ""]:
    """Mean over the rows of 1 - cosine.

    Args:
        mapped: embeddings as a head maps them to the teacher's, of any length, float32.
        teacher: its embeddings of the same rows, unit length, float32.
        mask: True = the teacher has the row; others are left out.

    Returns:
        Scalar loss, float32; 0 without a row.
    """
    square = (mapped**2).sum(axis=1)
    inverse = jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)  # zeros have no direction
    cosine = (mapped * jax.lax.stop_gradient(teacher)).sum(axis=1) * inverse
    return jnp.where(mask, 1 - cosine, 0).sum() / jnp.maximum(mask.sum(), 1)

"""The batch-hard triplet loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rice_jax.losses.contrastive import similarity

LEAST_SQUARE = 1e-12  # below it a distance has no gradient
NO_DISTANCE = 1e9  # of what is not compared; finite so that no gradient becomes NaN


def triplet_loss(
    embedding: Float[Array, "N E"], same: Bool[Array, "N N"], other: Bool[Array, "N N"]
) -> Float[Array, ""]:
    """Mean of log(1 + exp(distance of the furthest same - distance of the nearest other)).

    A row without another adds 0.

    Args:
        embedding: float32, of any length.
        same: True where rows i and j show the same product; row i itself may be among them.
        other: True where they show different ones; where neither is, they are not compared.

    Returns:
        Scalar loss, float32.

    Source: Hermans et al. 2017, "In Defense of the Triplet Loss for Person Re-Identification", with the soft margin.
    """
    squares = jnp.square(embedding).sum(axis=1)
    distance = jnp.sqrt(jnp.maximum(squares[:, None] + squares - 2 * similarity(embedding, embedding), LEAST_SQUARE))
    furthest = jnp.where(same, distance, 0).max(axis=1)
    nearest = jnp.where(other, distance, NO_DISTANCE).min(axis=1)
    return jax.nn.softplus(furthest - nearest).mean()

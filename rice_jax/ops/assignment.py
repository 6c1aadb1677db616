"""Assigns predictions to true boxes at the least total cost."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32

# Replaces a cost that is not finite, with which the search would not end; the loss is then not finite either.
UNKNOWN_COST = 1e6


def assign(cost: Float[Array, "*B Q M"], box_mask: Bool[Array, "*B M"]) -> Int32[Array, "*B M"]:
    """Assigns every box a query of its own so that the sum of the costs is least.

    Args:
        cost: of assigning query q to box m; no gradient flows through the choice. M <= Q.
        box_mask: True = a box, False = padding, which takes no query away from a box.

    Returns:
        The query of each box, all of them different; padding gets queries that are left over.

    Raises:
        ValueError: there are fewer queries than boxes.
    """
    queries, boxes = cost.shape[-2:]
    if queries < boxes:
        raise ValueError(f"assign: found {queries} queries for {boxes} boxes, expected at least one each")
    cost = jax.lax.stop_gradient(cost)
    # Padding costs the same with any query, so it does not affect the boxes.
    cost = jnp.where(box_mask[..., None, :], jnp.where(jnp.isfinite(cost), cost, UNKNOWN_COST), 0)
    assigned = jax.vmap(_assign_one)(cost.reshape(-1, queries, boxes).astype(jnp.float32))
    return assigned.reshape(box_mask.shape)


def _assign_one(cost: Float[Array, "Q M"]) -> Int32[Array, " M"]:
    queries, boxes = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(cost.shape[1], jnp.int32).at[boxes].set(queries.astype(jnp.int32))

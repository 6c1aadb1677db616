"""Which prediction answers for which true box: the assignment of least cost."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32

# In the place of a cost that is no finite number, with which the search would never end; the loss then tells.
UNKNOWN_COST = 1e6


def assign(cost: Float[Array, "*B Q M"], box_mask: Bool[Array, "*B M"]) -> Int32[Array, "*B M"]:
    """Gives every box a query of its own so that the sum of the costs is least.

    Args:
        cost: of query q answering for box m; no gradient flows through the choice. There are at least as many queries
            as boxes, M <= Q.
        box_mask: True = a box, False = padding, which takes no query away from a box.

    Returns:
        The query of each box, all of them different; of padding, queries that are left over.

    Raises:
        ValueError: there are fewer queries than boxes.
    """
    queries, boxes = cost.shape[-2:]
    if queries < boxes:
        raise ValueError(f"assign: found {queries} queries for {boxes} boxes, expected at least one each")
    cost = jax.lax.stop_gradient(cost)
    # Padding costs the same with any query, so it never decides who gets which.
    cost = jnp.where(box_mask[..., None, :], jnp.where(jnp.isfinite(cost), cost, UNKNOWN_COST), 0)
    assigned = jax.vmap(_assign_one)(cost.reshape(-1, queries, boxes).astype(jnp.float32))
    return assigned.reshape(box_mask.shape)


def _assign_one(cost: Float[Array, "Q M"]) -> Int32[Array, " M"]:
    queries, boxes = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(cost.shape[1], jnp.int32).at[boxes].set(queries.astype(jnp.int32))

"""PFR's loss: how far the rebuilt image tokens are from the real ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def reconstruction_loss(reconstruction: Float[Array, "B L D"], image_tokens: Float[Array, "B L D"]) -> Float[Array, ""]:
    """Mean squared error over all tokens and channels, float32; no gradient flows into the target.

    Source: RICE.md §4.
    """
    return jnp.mean((reconstruction - jax.lax.stop_gradient(image_tokens).astype(jnp.float32)) ** 2)

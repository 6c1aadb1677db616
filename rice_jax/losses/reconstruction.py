"""PFR's loss: the distance between rebuilt and real image tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def reconstruction_loss(reconstruction: Float[Array, "B L D"], image_tokens: Float[Array, "B L D"]) -> Float[Array, ""]:
    """Mean squared error over all tokens and channels, float32; no gradient flows into the target.

    Source: docs/reference.md, section 4.
    """
    return jnp.mean((reconstruction - jax.lax.stop_gradient(image_tokens).astype(jnp.float32)) ** 2)

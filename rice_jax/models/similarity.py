"""What training learns of the scale of similarities; each loss has its own."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# Initial scale and bias of SigLIP's loss (Zhai et al. 2023, section 3.2).
SIGMOID_LOG_SCALE, SIGMOID_BIAS = math.log(10), -10.0


class LearnedScale(nnx.Module):
    """The part of a model that a loss of `config.loss.kind` trains beside the embeddings."""

    def __init__(self, loss: str, logit_scale: float):
        """Creates the parameters of the loss.

        Args:
            loss: `config.loss.kind`.
            logit_scale: initial value, if the loss has it.
        """
        if loss == "softmax":
            self.logit_scale = nnx.Param(jnp.asarray(logit_scale, jnp.float32))
        if loss == "sigmoid":
            self.log_scale = nnx.Param(jnp.asarray(SIGMOID_LOG_SCALE, jnp.float32))
            self.logit_bias = nnx.Param(jnp.asarray(SIGMOID_BIAS, jnp.float32))

    def add_teacher_head(self, embed_dim: int, teacher_dim: int, rngs: nnx.Rngs) -> None:
        """Creates the layer that maps an embedding to a teacher's, which only a loss uses; 0 numbers = none."""
        if teacher_dim:
            self.teacher_head = nnx.Linear(embed_dim, teacher_dim, use_bias=False, rngs=rngs)

    def similarity_scale(self) -> Float[Array, ""]:
        if hasattr(self, "log_scale"):
            return jnp.exp(self.log_scale[...])
        return self.logit_scale[...] ** 2 if hasattr(self, "logit_scale") else jnp.ones(())  # a triplet has no scale

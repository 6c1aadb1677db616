"""Aggregation by learned weights of a video's frames, after an optional non-local block."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rice_jax.config import AggregationConfig
from rice_jax.models.aggregation.mean import masked_mean
from rice_jax.models.layers import MASKED_SCORE


class AttentionPooling(nnx.Module):
    """The frames' weighted sum, or their mean, after a block in which each takes from the others.

    With fresh weights it is the mean of the features: the block's last layer and the score start at zero.

    Source: Godi et al. 2022, "MovingFashion: a Benchmark for the Video-to-Shop Challenge" (SEAM: `non_local="relu"`);
    Liu et al. 2019, "Spatially and Temporally Efficient Non-local Attention Network for Video-based Person
    Re-Identification" (NVAN: `non_local="softmax"`, `pooling="mean"`); Yang et al. 2017, "Neural Aggregation Network
    for Video Face Recognition" (NAN's first attention block: `pooling="direction"`).
    Differs: NVAN's block works on places of feature maps, and has a batch norm, which starts at weight 0, as its end.
    NAN sums features of unit length.
    """

    def __init__(self, config: AggregationConfig, embed_dim: int, *, rngs: nnx.Rngs):
        settings = config.attention
        if settings.non_local != "none":
            self.block = NON_LOCAL[settings.non_local](embed_dim, rngs)
        if settings.pooling != "mean":
            self.score = nnx.Linear(embed_dim, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)
        if settings.pooling == "direction":
            self.norm = nnx.RMSNorm(embed_dim, use_scale=False, rngs=rngs)

    def __call__(self, features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        x = features.astype(jnp.float32)
        if hasattr(self, "block"):
            x = self.block(x, frame_mask)
        if not hasattr(self, "score"):
            return masked_mean(x, frame_mask)
        scored = self.norm(x) if hasattr(self, "norm") else x
        scores = jnp.where(frame_mask, self.score(scored)[..., 0], MASKED_SCORE)
        return jnp.einsum("bt,bte->be", jax.nn.softmax(scores), x)


class NonLocalLayers(nnx.Module):
    """The layers of a non-local block of half the features' size."""

    def __init__(self, embed_dim: int, rngs: nnx.Rngs):
        half = embed_dim // 2
        self.theta = nnx.Linear(embed_dim, half, rngs=rngs)
        self.phi = nnx.Linear(embed_dim, half, rngs=rngs)
        self.g = nnx.Linear(embed_dim, half, rngs=rngs)
        self.out = nnx.Linear(half, embed_dim, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def residual(self, x: Float[Array, "B T E"], weights: Float[Array, "B T T"]) -> Float[Array, "B T E"]:
        """Adds to each frame what it takes from the others."""
        return x + self.out(weights @ self.g(x))


class ReluBlock(NonLocalLayers):
    """SEAM's: a frame weighs another by the ReLU of a linear score of both, over the number of frames."""

    def __init__(self, embed_dim: int, rngs: nnx.Rngs):
        super().__init__(embed_dim, rngs)
        self.pair = nnx.Linear(2 * (embed_dim // 2), 1, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B T E"]:
        own, other = jnp.split(self.pair.kernel[...][:, 0], 2)
        scores = (self.theta(x) @ own)[:, :, None] + (self.phi(x) @ other)[:, None]  # [B, T, T]
        num_frames = frame_mask.sum(axis=1)[:, None, None]
        weights = jnp.where(frame_mask[:, None], jax.nn.relu(scores), 0) / num_frames
        return jnp.where(num_frames > 1, self.residual(x, weights), x)  # a single frame stays as it is


class SoftmaxBlock(NonLocalLayers):
    """NVAN's: a frame weighs the others by the softmax of inner products, without a factor."""

    def __call__(self, x: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B T E"]:
        scores = jnp.einsum("bth,bsh->bts", self.theta(x), self.phi(x))
        return self.residual(x, jax.nn.softmax(jnp.where(frame_mask[:, None], scores, MASKED_SCORE)))


NON_LOCAL: dict[str, type[ReluBlock] | type[SoftmaxBlock]] = {"relu": ReluBlock, "softmax": SoftmaxBlock}

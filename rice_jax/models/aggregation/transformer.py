"""Aggregation by a transformer over a video's frames, and over the differences of neighbors."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rice_jax.config import AggregationConfig, ConfigError, VitConfig
from rice_jax.models.aggregation.mean import mean_of_embeddings
from rice_jax.models.layers import fresh_block, layer_norm, stack, unstack

EPSILON = 1e-12
DIFFERENCE, FRAME = 0, 1  # rows of `type`


class FrameTransformer(nnx.Module):
    """Blocks over the frames with learned positions; their outputs are added to the features.

    With `differences`, a token between each two frames tells how they differ. With fresh weights the blocks change
    nothing, so that the aggregation is close to the mean of embeddings.

    Source: Luo et al. 2022, "CLIP4Clip", sequential transformer; Fang et al. 2021, "CLIP2Video", temporal difference
    block, which SGMN uses.
    Differs: a difference counts only if both of its frames are real, so padding never changes a result.
    """

    def __init__(self, config: AggregationConfig, embed_dim: int, *, rngs: nnx.Rngs):
        settings = config.transformer
        sizes = VitConfig(width=embed_dim, layers=settings.layers, heads=settings.heads, dtype="float32")
        normal = nnx.initializers.normal(0.01)
        self.position = nnx.Param(normal(rngs.params(), (settings.num_frames, embed_dim)))
        self.num_layers = settings.layers
        self.blocks = stack(lambda rngs: fresh_block(sizes, rngs, EPSILON), settings.layers, rngs)
        if settings.differences:
            self.type = nnx.Param(normal(rngs.params(), (2, embed_dim)))
            self.difference = fresh_block(sizes, rngs, EPSILON)
            self.ln_difference = layer_norm(sizes, rngs, EPSILON)

    def __call__(self, features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        features = features.astype(jnp.float32)
        num_frames, known = features.shape[1], self.position.shape[0]
        if num_frames > known:
            raise ConfigError(
                f"config.model.aggregation.transformer.num_frames: found {known}, expected {num_frames} or more, the "
                "frames of a video"
            )
        position = self.position[...][:num_frames]
        tokens, mask = features + position, frame_mask
        if hasattr(self, "difference"):
            tokens, mask = self.with_differences(features, tokens, position, frame_mask)
        for number in range(self.num_layers):
            tokens = unstack(self.blocks, number)(tokens, mask)
        if hasattr(self, "difference"):
            tokens = tokens[:, ::2]
        return mean_of_embeddings(features + tokens, frame_mask)

    def with_differences(
        self,
        features: Float[Array, "B T E"],
        tokens: Float[Array, "B T E"],
        position: Float[Array, "T E"],
        frame_mask: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B L E"], Bool[Array, "B L"]]:
        """The frames' tokens with a difference after each but the last, L = 2 · T - 1, and their mask."""
        frames = tokens + self.type[FRAME]
        if features.shape[1] == 1:
            return frames, frame_mask
        mask = frame_mask[:, 1:] & frame_mask[:, :-1]
        changes = self.difference(features[:, 1:] - features[:, :-1] + position[1:], mask)
        changes = 2 * jax.nn.sigmoid(self.ln_difference(changes)) - 1 + position[:-1] + self.type[DIFFERENCE]
        pairs = jnp.stack([frames[:, :-1], changes], axis=2).reshape(len(frames), -1, frames.shape[2])
        pair_mask = jnp.stack([frame_mask[:, :-1], mask], axis=2).reshape(len(frames), -1)
        append = lambda most, last: jnp.concatenate([most, last[:, -1:]], axis=1)  # noqa: E731
        return append(pairs, frames), append(pair_mask, frame_mask)

"""TimeSformer: a vision transformer in whose blocks a patch also attends to the same place in the other frames.

Source: Bertasius et al. 2021, "Is Space-Time Attention All You Need for Video Understanding?", divided space-time
attention. Checked against transformers' `TimesformerModel`.
Differs: a frame mask; the parts that `VitConfig` describes may be those of any vision transformer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from rice_jax.config import ConfigError, VitConfig
from rice_jax.models.encoders.vit import VitLayers
from rice_jax.models.layers import AttentionLayers, BlockLayers, Rotary, linear, rotate
from rice_jax.parallel.mesh import ONE_PLACE, Placement


class Timesformer(VitLayers):
    """Encoder of videos; an image is a video of one frame.

    Its tokens are CLS and registers, which all frames share, then the patches, place by place and the frames of a place
    side by side.
    """

    BETWEEN_FRAMES: tuple[str, ...] = ("blocks/temporal", "time_embedding")

    def __init__(self, config: VitConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Fresh weights, with which a frame does not yet take anything from the others but by CLS or the pooling."""
        super().__init__(config, placement=placement, rngs=rngs, create_block=DividedBlock)
        self.time_embedding = nnx.Param(jnp.zeros((config.num_frames, config.width), jnp.float32))

    def __call__(self, videos: Float[Array, "B T S S 3"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        """Encodes videos.

        Args:
            videos: normalized as `config.pixels` says; at most `config.num_frames` frames.
            frame_mask: True = a real frame; every video has at least one, and others change nothing.

        Returns:
            `ln_post(CLS) @ projection`, or the projection of the patches of all real frames, pooled together; not
            normalized, in the compute dtype.

        Raises:
            ConfigError: there are more frames than time embeddings.
        """
        x = self.apply_blocks(self.embed_videos(videos), frame_mask)
        patch_mask = jnp.tile(frame_mask, (1, self.config.num_patches))
        _, pooled = self.summarize(x, patch_mask)
        return self.projection(pooled) if self.config.projection else pooled

    @staticmethod
    def fit(params: PyTree, config: VitConfig) -> PyTree:
        """Fits the image size; a vision transformer without time gets what it lacks.

        Its attention is copied, and the layer after the copy is 0, as are the time embeddings: a video of one frame is
        encoded as that picture was.
        """
        params = VitLayers.fit(params, config)
        if "time_embedding" in params:
            return params
        blocks, width = params["blocks"], config.width
        copied = {name: blocks[name] for name in ("ln_1", "qkv", "query_bias", "value_bias", "out") if name in blocks}
        layers = blocks["out"]["bias"].shape[:1]
        zeros = {
            "kernel": np.zeros((*layers, width, width), np.float32),
            "bias": np.zeros((*layers, width), np.float32),
        }
        time = np.zeros((config.num_frames, width), np.float32)
        return params | {"time_embedding": time, "blocks": blocks | {"temporal": copied | {"dense": zeros}}}

    def embed_videos(self, videos: Float[Array, "B T S S 3"]) -> Float[Array, "B K D"]:
        """The input of the first block."""
        b, num_frames = videos.shape[:2]
        known = self.time_embedding.shape[0]
        if num_frames > known:
            raise ConfigError(
                f"config.model.num_frames: found {known}, expected {num_frames} or more, the frames of a video"
            )
        x = self.embed(videos.reshape(-1, *videos.shape[2:]))
        x = x.reshape(b, num_frames, *x.shape[1:])
        patches = x[:, :, self.num_extra :] + self.time_embedding[...][:num_frames, None].astype(x.dtype)
        return jnp.concatenate([x[:, 0, : self.num_extra], by_place(patches)], axis=1)


class DividedBlock(BlockLayers):
    """A patch attends to the same place in all frames, then to its own frame; an MLP follows."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.num_extra = config.class_token + config.registers
        self.temporal = TemporalAttention(config, rngs)

    def __call__(
        self, x: Float[Array, "B K D"], frame_mask: Bool[Array, "B T"], rotary: Rotary | None = None
    ) -> Float[Array, "B K D"]:
        """Updates all tokens.

        Args:
            x: the tokens, in the order of `Timesformer`.
            frame_mask: True = a frame to attend to.
            rotary: rotates queries and keys within a frame; None = not at all.
        """
        b, num_frames = frame_mask.shape
        extra, patches = x[:, : self.num_extra], x[:, self.num_extra :]
        patches = patches.reshape(b, -1, num_frames, x.shape[-1])
        patches = patches + self.temporal(patches, frame_mask)
        x = jnp.concatenate([extra, patches.reshape(b, -1, x.shape[-1])], axis=1)

        shared = jnp.broadcast_to(extra[:, None], (b, num_frames, *extra.shape[1:]))
        frames = jnp.concatenate([shared, patches.swapaxes(1, 2)], axis=2)
        frames = frames.reshape(-1, *frames.shape[2:])
        q, k, v = (self.split_heads(part) for part in self.project_all(self.ln_1(frames)))
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        attended = jax.nn.dot_product_attention(q, k, v)
        attended = attended.reshape(b, num_frames, *attended.shape[1:])  # [B, T, K, H, C]
        # The projection that follows is linear, so its mean over frames is that of their mean.
        mean = jnp.mean(
            attended[:, :, : self.num_extra], axis=1, where=frame_mask[:, :, None, None, None], dtype=jnp.float32
        )
        parts = [mean.astype(x.dtype), by_place(attended[:, :, self.num_extra :])]
        return self.residuals(x, jnp.concatenate(parts, axis=1))


class TemporalAttention(AttentionLayers):
    """Attention between the frames at each place, and a layer of its own after it."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.dense = linear(config, config.width, config.width, nnx.initializers.zeros, rngs)

    def __call__(self, patches: Float[Array, "B N T D"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B N T D"]:
        """What is added to the patches."""
        x = patches.reshape(-1, *patches.shape[2:])
        q, k, v = (self.split_heads(part) for part in self.project_all(self.ln_1(x)))
        mask = jnp.repeat(frame_mask, patches.shape[1], axis=0)[:, None, None]
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return self.dense(self.out(attended.reshape(x.shape))).reshape(patches.shape)


def by_place(patches: Float[Array, "B T N *D"]) -> Float[Array, "B M *D"]:
    """The patches of a video in a row, place by place."""
    return patches.swapaxes(1, 2).reshape(len(patches), -1, *patches.shape[3:])

"""X-CLIP: a vision transformer whose frames send each other messages, and a small transformer over the frames.

Source: Ni et al. 2022, "Expanding Language-Image Pretrained Models for General Video Recognition", section
3. Checked against transformers' `XCLIPModel.get_video_features`.
Differs: a frame mask; the parts that `VitConfig` describes may be those of any vision transformer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from rice_jax.config import ConfigError, VitConfig
from rice_jax.models.aggregation.mean import masked_mean
from rice_jax.models.encoders.vit import VitLayers
from rice_jax.models.layers import AttentionLayers, BlockLayers, Rotary, fresh_block, linear, rotate, stack
from rice_jax.parallel.mesh import ONE_PLACE, Placement


class Xclip(VitLayers):
    """Encoder of videos; an image is a video of one frame. Its tokens are those of all frames, frame by frame."""

    BETWEEN_FRAMES: tuple[str, ...] = ("blocks/message", "integration")

    def __init__(self, config: VitConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Fresh weights, with which a message is a copy of the frame's CLS, and the feature twice the frames' mean."""
        super().__init__(config, placement=placement, rngs=rngs, create_block=CrossFrameBlock)
        self.integration = Integration(config, rngs)

    def __call__(self, videos: Float[Array, "B T S S 3"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        """Encodes videos.

        Args:
            videos: normalized as `config.pixels` says; at most `config.num_frames` frames.
            frame_mask: True = a real frame; every video has at least one, and others change nothing.

        Returns:
            The mean of the frames' features after the transformer over them, not normalized, in the compute dtype.

        Raises:
            ConfigError: there are more frames than positions of frames.
        """
        return self.encode_rows(videos, frame_mask, (frame_mask.shape[1],))[:, 0]

    def encode_rows(
        self, videos: Float[Array, "B K S S 3"], frame_mask: Bool[Array, "B K"], lengths: tuple[int, ...]
    ) -> Float[Array, "B V E"]:
        """Encodes several videos in one row of frames; see `encoders.EncodesRows`."""
        x = self.apply_blocks(self.embed_videos(videos), _senders(frame_mask, lengths))
        return self.integration.of_rows(self.frame_features(x, frame_mask), frame_mask, lengths)

    @staticmethod
    def fit(params: PyTree, config: VitConfig) -> PyTree:
        """Interpolates positions to the image size and to the number of frames, where the weights have them."""
        params = VitLayers.fit(params, config)
        position = params.get("integration", {}).get("position")
        if position is None or len(position) == config.num_frames:
            return params
        position = jax.image.resize(jnp.asarray(position), (config.num_frames, position.shape[1]), "linear")
        return params | {"integration": params["integration"] | {"position": np.asarray(position)}}

    def embed_videos(self, videos: Float[Array, "B T S S 3"]) -> Float[Array, "B K D"]:
        """The input of the first block."""
        x = self.embed(videos.reshape(-1, *videos.shape[2:]))
        return x.reshape(len(videos), -1, x.shape[-1])

    def frame_features(self, x: Float[Array, "B K D"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B T E"]:
        """The projection of each frame's CLS or pooled patches, from the last block's output."""
        _, pooled = self.summarize(x.reshape(frame_mask.size, -1, x.shape[-1]))
        features = self.projection(pooled) if self.config.projection else pooled
        return features.reshape(*frame_mask.shape, -1)


class CrossFrameBlock(BlockLayers):
    """The tokens of a frame attend to each other and to the frame's message; an MLP follows."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.has_cls = config.class_token
        self.num_extra = config.class_token + config.registers
        self.message = Message(config, rngs)

    def __call__(
        self, x: Float[Array, "B K D"], senders: Bool[Array, "B *T T"], rotary: Rotary | None = None
    ) -> Float[Array, "B K D"]:
        """Updates all tokens.

        Args:
            x: the tokens, in the order of `Xclip`.
            senders: True = a frame (last axis) that sends messages to a frame, or to all.
            rotary: rotates queries and keys within a frame, but not the message's; None = not at all.
        """
        num_rows, num_frames = len(senders), senders.shape[-1]
        frames = x.reshape(num_rows * num_frames, -1, x.shape[-1])
        summaries = frames[:, 0] if self.has_cls else frames[:, self.num_extra :].mean(axis=1)
        messages = self.message(summaries.reshape(num_rows, num_frames, -1), senders)
        tokens = jnp.concatenate([frames, messages.reshape(len(frames), 1, -1)], axis=1)
        q, k, v = (self.split_heads(part) for part in self.project_all(self.ln_1(tokens)))
        q = q[:, :-1]  # what would become of the message is dropped
        if rotary is not None:
            q = rotate(q, rotary)
            k = jnp.concatenate([rotate(k[:, :-1], rotary), k[:, -1:]], axis=1)
        return self.residuals(frames, jax.nn.dot_product_attention(q, k, v)).reshape(x.shape)


class Message(AttentionLayers):
    """A projection of a frame's CLS, which attends to those of the other frames."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        """Fresh weights: the identity, since a random message would disturb a pretrained block."""
        super().__init__(config, rngs)
        self.out.kernel[...] = jnp.zeros_like(self.out.kernel[...])
        self.dense = linear(config, config.width, config.width, _identity, rngs)

    def __call__(self, summaries: Float[Array, "B T D"], senders: Bool[Array, "B *T T"]) -> Float[Array, "B T D"]:
        """The messages of the frames."""
        x = self.dense(summaries)
        return x + self.attend(x, senders)

    def attend(self, x: Float[Array, "B T D"], senders: Bool[Array, "B *T T"]) -> Float[Array, "B T D"]:
        """What is added to the projections."""
        q, k, v = (self.split_heads(part) for part in self.project_all(self.ln_1(x)))
        mask = senders[:, None] if senders.ndim == 3 else senders[:, None, None]
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return self.out(attended.reshape(x.shape))


class Integration(nnx.Module):
    """The transformer over the features of a video's frames."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        """Fresh weights, with which the blocks change nothing."""
        sizes = integration_sizes(config)
        self.num_layers = sizes.layers
        self.position = nnx.Param(jnp.zeros((config.num_frames, sizes.width), jnp.float32))
        self.blocks = stack(lambda rngs: fresh_block(sizes, rngs), sizes.layers, rngs)

    def __call__(self, features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        """The mean over the frames."""
        return self.of_rows(features, frame_mask, (frame_mask.shape[1],))[:, 0]

    def of_rows(
        self, features: Float[Array, "B K E"], frame_mask: Bool[Array, "B K"], lengths: tuple[int, ...]
    ) -> Float[Array, "B V E"]:
        """The means over the frames of each of V videos, which stand in a row one after the other."""
        ends = np.cumsum(lengths)[:-1]
        videos = zip(jnp.split(features, ends, axis=1), jnp.split(frame_mask, ends, axis=1), strict=True)
        rows, mask = (jnp.stack(x, axis=1) for x in zip(*(self.fill(*video) for video in videos), strict=True))
        num_rows, num_videos = mask.shape[:2]
        rows, mask = (x.reshape(num_rows * num_videos, *x.shape[2:]) for x in (rows, mask))
        means = masked_mean(self.frames(rows, mask), mask).astype(features.dtype)
        return means.reshape(num_rows, num_videos, -1)

    def frames(self, rows: Float[Array, "B F E"], mask: Bool[Array, "B F"]) -> Float[Array, "B F E"]:
        """The frames' features and what the blocks make of them, added."""
        apply = nnx.scan(lambda block, x, mask: block(x, mask), in_axes=(0, nnx.Carry, None), out_axes=nnx.Carry)
        return rows + apply(self.blocks, rows + self.position[...].astype(rows.dtype), mask)

    def fill(
        self, features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B F E"], Bool[Array, "B F"]]:
        """A row for each of the F positions, and which rows are real.

        A single frame is repeated in all rows, as if it was shown all the time. Otherwise frames have the first rows.
        """
        num_frames, known = features.shape[1], self.position.shape[0]
        if num_frames > known:
            raise ConfigError(
                f"config.model.num_frames: found {known}, expected {num_frames} or more, the frames of a video"
            )
        more = ((0, 0), (0, known - num_frames))
        rows, mask = jnp.pad(features, (*more, (0, 0))), jnp.pad(frame_mask, more)
        only = jnp.where(frame_mask[..., None], features, 0).sum(axis=1, keepdims=True)
        is_single = frame_mask.sum(axis=1, keepdims=True) == 1
        return jnp.where(is_single[..., None], only, rows), mask | is_single


def _senders(frame_mask: Bool[Array, "B K"], lengths: tuple[int, ...]) -> Bool[Array, "B *K K"]:
    """Which frames send messages to which: the real ones, to those of the same video."""
    if len(lengths) == 1:
        return frame_mask
    video = np.repeat(np.arange(len(lengths)), lengths)
    return frame_mask[:, None] & jnp.asarray(video[:, None] == video)


def integration_sizes(config: VitConfig) -> VitConfig:
    """The sizes of the blocks over the frames."""
    return VitConfig(
        width=config.embed_dim,
        layers=config.integration_layers,
        heads=config.integration_heads,
        mlp_ratio=config.integration_mlp_ratio,
        activation=config.activation,
        epsilon=config.epsilon,
        dtype=config.dtype,
    )


def _identity(_key: Array, shape: tuple[int, int], dtype=jnp.float32) -> Float[Array, "D D"]:
    return jnp.eye(*shape, dtype=dtype)

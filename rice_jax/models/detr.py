"""A detector of the intended product: a transformer decoder proposes a set of boxes from the encoder's patches.

Source: Carion et al. 2020, "End-to-End Object Detection with Transformers" (DETR): object queries, set prediction, an
output of every layer. Liu et al. 2022, "DAB-DETR": a query's position is a box, which every layer corrects; it trains
in a fraction of DETR's epochs.
Differs: layers normalize first; no dropout; the patches are a ViT's, so there is no further transformer encoder. RICE's
article names a single-frame and a multi-frame detector without details (docs/reference.md, section 6), so kind "clip"
is not from a paper.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rice_jax.config import DetectorConfig, EncoderConfig, VitConfig
from rice_jax.models.contract import SupportsDetection
from rice_jax.models.encoders import frame_encoder_class, require_patches
from rice_jax.models.layers import Block, layer_norm, linear, quick_gelu, stack, unstack
from rice_jax.models.rice import normalize
from rice_jax.parallel.mesh import ONE_PLACE, Placement
from rice_jax.types import Detections

TEMPERATURE = 20.0  # ratio of the longest to the shortest wave of a position; DAB-DETR's, DETR has 10,000


@dataclasses.dataclass(frozen=True)
class DetrConfig:
    """The parts of a detector.

    Attributes:
        encoder: of frames.
        decoder: of boxes.
    """

    encoder: EncoderConfig
    decoder: DetectorConfig


class Detector(nnx.Module):
    """RICE's encoder, and a decoder of boxes on its patches; see `models.contract`."""

    PRETRAINED = ("encoder",)
    TRAINING_ONLY = ()
    MATCH_ONLY = ()

    def __init__(self, config: DetrConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Builds the model with fresh weights."""
        encoder = require_patches(config.encoder, "a detector")
        self.pixels = encoder.pixels
        self.encoder = frame_encoder_class(encoder)(encoder, placement=placement, rngs=rngs)
        self.detector = BoxDecoder(encoder, config.decoder, placement=placement, rngs=rngs)

    @property
    def capabilities(self) -> frozenset[type]:
        return frozenset({SupportsDetection})

    def detect(self, batch: Mapping[str, Any]) -> Detections:
        video, frame_mask = batch["video"], batch["frame_mask"]
        tokens, _ = self.encoder(normalize(video.reshape(-1, *video.shape[2:]), self.pixels))
        return self.detector(tokens[:, 1:].reshape(*frame_mask.shape, -1, tokens.shape[-1]), frame_mask)


class BoxDecoder(nnx.Module):
    """Object queries that attend to each other and to the patches of their frame.

    Kind "frame": to the queries of their own frame. Kind "clip": to those of all frames; before that, every patch
    attends to the same place in the other frames, since what stays in place is rarely the product being shown.
    """

    def __init__(self, encoder: VitConfig, config: DetectorConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        # The decoder is the same for encoders of all kinds.
        own = VitConfig(width=config.width, layers=config.layers, heads=config.heads, dtype=encoder.dtype)
        width, xavier = own.width, nnx.initializers.xavier_uniform()
        self.config = config
        self.placement = placement
        self.ln_input = layer_norm(encoder, rngs)
        self.input = linear(own, encoder.width, width, xavier, rngs)
        if config.kind == "clip":
            self.time = linear(own, width, width, xavier, rngs)
            if config.temporal_layers:
                self.temporal_blocks = stack(lambda rngs: Block(own, rngs), config.temporal_layers, rngs)
        self.queries = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (config.num_queries, width)))
        self.anchors = nnx.Param(_anchors(rngs.params(), config.num_queries))
        self.position = linear(own, width, width, xavier, rngs)
        self.layers = stack(lambda rngs: DecoderLayer(own, rngs), config.layers, rngs)
        self.ln_output = layer_norm(own, rngs)
        self.score = linear(own, width, 1, xavier, rngs)
        self.box_1 = linear(own, width, width, xavier, rngs)
        self.box_2 = linear(own, width, width, xavier, rngs)
        self.box_3 = linear(own, width, 4, nnx.initializers.zeros, rngs)  # an untrained decoder returns its anchors

    def __call__(self, patches: Float[Array, "B T N D"], frame_mask: Bool[Array, "B T"]) -> Detections:
        """The outputs of all layers.

        Args:
            patches: of the encoder, in reading order.
            frame_mask: True = a frame.
        """
        memory = self.input(self.ln_input(patches))
        time = None
        if self.config.kind == "clip":
            frames = jnp.arange(frame_mask.shape[1])[:, None] / (2 * math.pi)
            time = self.time(sine_position(frames, memory.shape[-1]))[:, None]  # [T, 1, W]
            memory = self.attend_over_time(memory, time, frame_mask)
        where = sine_position(patch_centers(memory.shape[2]), memory.shape[-1]).astype(memory.dtype)  # [N, W]

        x = self.queries[...].astype(memory.dtype)
        x = jnp.broadcast_to(x, (*frame_mask.shape, *x.shape))  # [B, T, Q, W]
        reference = jnp.broadcast_to(self.anchors[...], (*x.shape[:-1], 4))  # logits, float32
        logits, boxes = [], []
        for number in range(self.config.layers):
            position = self.position(sine_position(jax.nn.sigmoid(reference), x.shape[-1]))
            if time is not None:
                position = position + time
            layer = unstack(self.layers, number)
            x = self.placement.constrain(layer(x, position, memory, where, frame_mask if time is not None else None))
            hidden = self.ln_output(x)
            change = self.box_3(jax.nn.relu(self.box_2(jax.nn.relu(self.box_1(hidden)))))
            output = reference + change.astype(jnp.float32)
            logits.append(self.score(hidden)[..., 0].astype(jnp.float32))
            boxes.append(jax.nn.sigmoid(output))
            reference = jax.lax.stop_gradient(output)  # each layer learns its own correction
        return Detections(jnp.stack(logits), jnp.stack(boxes))

    def attend_over_time(
        self, memory: Float[Array, "B T N W"], time: Float[Array, "T 1 W"], frame_mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T N W"]:
        """Lets every patch attend to the same place in the clip's other frames."""
        if not self.config.temporal_layers:
            return memory
        batch, frames, num_patches, width = memory.shape
        x = (memory + time).swapaxes(1, 2).reshape(batch * num_patches, frames, width)
        mask = jnp.repeat(frame_mask, num_patches, axis=0)
        for number in range(self.config.temporal_layers):
            x = self.placement.constrain(unstack(self.temporal_blocks, number)(x, mask))
        return x.reshape(batch, num_patches, frames, width).swapaxes(1, 2)


class DecoderLayer(nnx.Module):
    """Self attention of the queries, cross attention to the patches of their frame, an MLP; each residual."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        """Fresh weights of `config.width` and `config.heads`."""
        width, xavier = config.width, nnx.initializers.xavier_uniform()
        self.ln_1, self.ln_2, self.ln_3 = (layer_norm(config, rngs) for _ in range(3))
        self.self_attention = Attention(config, rngs)
        self.cross_attention = Attention(config, rngs)
        self.up = linear(config, width, 4 * width, xavier, rngs)
        self.down = linear(config, 4 * width, width, xavier, rngs)

    def __call__(
        self,
        x: Float[Array, "B T Q W"],
        position: Float[Array, "B T Q W"],
        memory: Float[Array, "B T N W"],
        where: Float[Array, "N W"],
        frame_mask: Bool[Array, "B T"] | None,
    ) -> Float[Array, "B T Q W"]:
        """Updates the queries.

        Args:
            x: the queries of every frame.
            position: of the queries' boxes, and in a clip of their frames.
            memory: the patches.
            where: their position.
            frame_mask: True = a frame, to whose queries all queries of the clip attend; None = queries attend to those
                of their own frame.
        """
        normed, mask = self.ln_1(x), None
        content, place = normed, normed + position
        if frame_mask is not None:
            content, place = (tokens.reshape(len(x), 1, -1, x.shape[-1]) for tokens in (content, place))
            mask = jnp.repeat(frame_mask, x.shape[2], axis=1)[:, None]  # [B, 1, T · Q]
        x = x + self.self_attention(place, place, content, mask).reshape(x.shape)
        x = x + self.cross_attention(self.ln_2(x) + position, memory + where, memory)
        return x + self.down(quick_gelu(self.up(self.ln_3(x))))


class Attention(nnx.Module):
    """Multi-head attention whose queries, keys and values come from different tokens."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        """Fresh weights of `config.width` and `config.heads`."""
        self.heads = config.heads
        width, xavier = config.width, nnx.initializers.xavier_uniform()
        self.query, self.key, self.value, self.out = (linear(config, width, width, xavier, rngs) for _ in range(4))

    def __call__(
        self,
        queries: Float[Array, "B T Q W"],
        keys: Float[Array, "B T K W"],
        values: Float[Array, "B T K W"],
        mask: Bool[Array, "B T K"] | None = None,
    ) -> Float[Array, "B T Q W"]:
        """Lets queries attend to the keys of the same B and T where `mask` is True; None = all."""
        q, k, v = self.query(queries), self.key(keys), self.value(values)
        q, k, v = (x.reshape(-1, x.shape[2], self.heads, x.shape[3] // self.heads) for x in (q, k, v))
        mask = None if mask is None else mask.reshape(-1, 1, 1, mask.shape[-1])
        return self.out(jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(queries.shape))


def sine_position(points: Float[Array, "*B C"], width: int) -> Float[Array, "*B W"]:
    """Sines and cosines of C coordinates, `width / C` of each, at waves from 1 to 20 times their range of 0..1.

    Source: DETR, appendix A.4.
    """
    waves = TEMPERATURE ** (jnp.arange(width // points.shape[-1] // 2) / (width // points.shape[-1] // 2))
    angles = 2 * math.pi * points[..., None] / waves
    both = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return both.reshape(*points.shape[:-1], width)


def patch_centers(num_patches: int) -> Float[Array, "N 2"]:
    """x and y of the patches of a square grid, in reading order, in shares of the picture."""
    grid = math.isqrt(num_patches)
    centers = (jnp.arange(grid) + 0.5) / grid
    y, x = jnp.meshgrid(centers, centers, indexing="ij")
    return jnp.stack([x.ravel(), y.ravel()], axis=-1)


def _anchors(key: Array, num_queries: int) -> Float[Array, "Q 4"]:
    """Initial boxes of the queries, as logits: centers away from the edges, half the picture wide and high."""
    centers = jax.random.uniform(key, (num_queries, 2), minval=0.2, maxval=0.8)
    return jnp.concatenate([jnp.log(centers / (1 - centers)), jnp.zeros((num_queries, 2))], axis=-1)

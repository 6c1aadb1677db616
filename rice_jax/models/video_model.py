"""A model that encodes the frames of a video together, and so has one vector of a video and none of its frames."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from rice_jax.config import ConfigError
from rice_jax.models.aggregation.mean import embed
from rice_jax.models.contract import SupportsEmbedding
from rice_jax.models.encoders import VIDEO_ENCODERS
from rice_jax.models.rice import RiceConfig, normalize
from rice_jax.models.similarity import LearnedScale
from rice_jax.parallel.mesh import ONE_PLACE, Placement
from rice_jax.types import Embeddings


class VideoModel(LearnedScale):
    """One encoder for shop images, each a video of one frame, and livestream videos; see `models.contract`.

    Of `RiceConfig` it reads the encoder and the loss: without tokens of frames it has no decoder and no head, and the
    encoder itself aggregates.
    """

    PRETRAINED = ("encoder", "logit_scale")
    TRAINING_ONLY = ("logit_scale", "log_scale", "logit_bias", "teacher_head")
    MATCH_ONLY = ()

    def __init__(self, config: RiceConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Builds the model with fresh weights."""
        super().__init__(config.loss, config.logit_scale)
        self.pixels = config.encoder.pixels
        self.encoder = VIDEO_ENCODERS[config.encoder.architecture](config.encoder, placement=placement, rngs=rngs)
        self.add_teacher_head(config.encoder.embed_dim, config.teacher_dim, rngs)

    @property
    def capabilities(self) -> frozenset[type]:
        return frozenset({SupportsEmbedding})

    def __call__(self, batch: Mapping[str, Any]) -> tuple[Embeddings, None]:
        """Encodes pairs of `image` and `video`; there are no tokens."""
        return Embeddings(self.embed_image(batch), self.embed_video(batch)), None

    def embed_image(self, batch: Mapping[str, Any]) -> Float[Array, "B E"]:
        return self._embed(batch["image"][:, None], jnp.ones((len(batch["image"]), 1), bool))

    def embed_video(self, batch: Mapping[str, Any]) -> Float[Array, "B E"]:
        if "patch_mask" in batch:
            raise ConfigError("VideoModel cannot leave out patches; set config.model.ipd_use='crop'")
        return self._embed(batch["video"], batch["frame_mask"])

    def _embed(self, videos: UInt8[Array, "B T S S 3"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        return embed(self.encoder(normalize(videos, self.pixels), frame_mask))

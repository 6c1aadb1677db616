"""A model that encodes the frames of a video together, and so has one vector of a video and none of its frames."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rice_jax.config import ConfigError
from rice_jax.models.aggregation.mean import embed
from rice_jax.models.contract import SupportsEmbedding
from rice_jax.models.encoders import VIDEO_ENCODERS
from rice_jax.models.rice import RiceConfig, normalize
from rice_jax.models.similarity import LearnedScale
from rice_jax.models.together import videos_together
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
        found = videos_together(self.encoder, {"image": self._image(batch), "video": self._video(batch)})
        return Embeddings(embed(found["image"]), embed(found["video"])), None

    def embed_image(self, batch: Mapping[str, Any]) -> Float[Array, "B E"]:
        return embed(self.encoder(*self._image(batch)))

    def embed_video(self, batch: Mapping[str, Any]) -> Float[Array, "B E"]:
        return embed(self.encoder(*self._video(batch)))

    def _image(self, batch: Mapping[str, Any]) -> tuple[Float[Array, "B 1 S S 3"], Bool[Array, "B 1"]]:
        """The shop images, each as a video of one frame, and their frame mask."""
        return normalize(batch["image"][:, None], self.pixels), jnp.ones((len(batch["image"]), 1), bool)

    def _video(self, batch: Mapping[str, Any]) -> tuple[Float[Array, "B T S S 3"], Bool[Array, "B T"]]:
        if "patch_mask" in batch:
            raise ConfigError("VideoModel cannot leave out patches; set config.model.ipd_use='crop'")
        return normalize(batch["video"], self.pixels), batch["frame_mask"]

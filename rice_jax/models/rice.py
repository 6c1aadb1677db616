"""RICE: one encoder for shop images and livestream videos, and the decoder and head that train it further."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from rice_jax.config import PIXEL_STATISTICS, AggregationConfig, EncoderConfig, PfrConfig, PmdConfig, TextConfig
from rice_jax.models.aggregation import AGGREGATIONS
from rice_jax.models.aggregation.mean import embed
from rice_jax.models.contract import (
    SupportsAttention,
    SupportsEmbedding,
    SupportsMatching,
    SupportsStreaming,
    SupportsTexts,
)
from rice_jax.models.encoders import frame_encoder_class, require_patches
from rice_jax.models.pfr import Pfr
from rice_jax.models.pmd import Pmd, between_patches
from rice_jax.models.similarity import LearnedScale
from rice_jax.models.text import TEXT_TOWERS
from rice_jax.parallel.mesh import ONE_PLACE, Placement
from rice_jax.types import EmbeddedTexts, Embeddings, EncodedFrames, EncodedImages, Matches, Tokens


@dataclasses.dataclass(frozen=True)
class RiceConfig:
    """The parts of a RICE model.

    Attributes:
        encoder: of images and frames.
        logit_scale: initial value.
        pmd: the decoder; None = there is none.
        pfr: the reconstruction head, which needs the decoder; None = there is none.
        aggregation: of a video's frames.
        loss: `config.loss.kind`, which decides what scale of similarities is learned.
        text: titles and speech, which the decoder reads, and with which embeddings are contrasted; None = there are
            none.
        teacher_dim: size of the embeddings of a teacher to which a head maps this model's; 0 = there is no head.
    """

    encoder: EncoderConfig
    logit_scale: float = 4.0
    pmd: PmdConfig | None = None
    pfr: PfrConfig | None = None
    aggregation: AggregationConfig = AggregationConfig()
    loss: str = "softmax"
    text: TextConfig | None = None
    teacher_dim: int = 0

    @property
    def embed_dim(self) -> int:
        """Size of an embedding."""
        return self.encoder.embed_dim


class Rice(LearnedScale):
    """The encoder, the aggregation, the decoder PMD and the head PFR; see `models.contract`."""

    PRETRAINED = ("encoder", "text", "logit_scale")  # the reference trains `logit_scale` at the encoder's rate, too
    TRAINING_ONLY = ("logit_scale", "log_scale", "logit_bias", "pfr", "teacher_head")
    MATCH_ONLY = ("pmd", "text")

    def __init__(self, config: RiceConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Builds the model with fresh weights."""
        super().__init__(config.loss, config.logit_scale)
        self.pixels, self.reads_texts = config.encoder.pixels, config.text is not None
        self.encoder = frame_encoder_class(config.encoder)(config.encoder, placement=placement, rngs=rngs)
        if config.pmd:
            self.pmd = Pmd(require_patches(config.encoder, "PMD"), config.pmd, placement=placement, rngs=rngs)
        if config.pmd and config.pfr:
            self.pfr = Pfr(config.encoder.width, config.pmd, config.pfr, rngs=rngs)
        # Last, so that the other parts start from the same weights with every kind.
        aggregation, embed_dim = config.aggregation, config.encoder.embed_dim
        self.aggregation = AGGREGATIONS[aggregation.kind](aggregation, embed_dim, rngs=rngs)
        if config.pmd and config.text:
            self.pmd.read_texts(config.text.embed_dim, require_patches(config.encoder, "PMD"), rngs=rngs)
        if config.text and config.text.tower:
            self.text = TEXT_TOWERS[config.text.tower.kind](config.text.tower, placement=placement, rngs=rngs)
        self.add_teacher_head(embed_dim, config.teacher_dim, rngs)

    @property
    def capabilities(self) -> frozenset[type]:
        always = {SupportsEmbedding, SupportsStreaming} | ({SupportsTexts} if self.reads_texts else set())
        return frozenset(always | ({SupportsMatching, SupportsAttention} if hasattr(self, "pmd") else set()))

    def __call__(self, batch: Mapping[str, Any]) -> tuple[Embeddings, Tokens]:
        """Encodes pairs in a single pass of the encoder over images and frames together.

        Args:
            batch: `image`, `video`, `frame_mask` and, if present, `patch_mask`, the title and the speech.
        """
        patch_mask = batch.get("patch_mask")
        pictures = jnp.concatenate([batch["image"][:, None], batch["video"]], axis=1)  # [B, 1 + T, S, S, 3]
        if patch_mask is not None:  # images are encoded whole
            patch_mask = jnp.concatenate([jnp.ones_like(patch_mask[:, :1]), patch_mask], axis=1)
        features, tokens = self._encode(pictures, patch_mask)
        embeddings = Embeddings(embed(features[:, 0]), self.aggregate(features[:, 1:], batch["frame_mask"]))
        return embeddings, Tokens(tokens[:, 0], tokens[:, 1:], self.title(batch), self.speech(batch))

    def match_batch(
        self,
        batch: Mapping[str, Any],
        tokens: Tokens,
        negatives: Int[Array, "B K"],
        *,
        num_shards: int = 1,
        dropout_key: Array | None = None,
    ) -> Matches:
        """Matches the images of a batch with their own and other videos of the batch, for training; see `Pmd`.

        Args:
            batch: `frame_mask` and, if present, `patch_mask`.
            tokens: of the batch.
            negatives: rows of other videos.
            num_shards: parts of the batch within which the negatives lie.
            dropout_key: of the cross attention's dropout; None = no dropout.
        """
        return self.pmd(
            tokens.image,
            tokens.video,
            batch["frame_mask"],
            negatives,
            patch_mask=batch.get("patch_mask"),
            title=tokens.title,
            speech=tokens.speech,
            with_attention=hasattr(self, "pfr"),
            num_shards=num_shards,
            dropout_key=dropout_key,
        )

    def reconstruct(self, batch: Mapping[str, Any], tokens: Tokens, matches: Matches) -> Float[Array, "B L D"]:
        """Rebuilds the images' tokens from their videos' ones, for training; see `Pfr`."""
        assert matches.attention is not None  # a model with PFR always returns it
        return self.pfr(matches.attention, tokens.video, batch["frame_mask"], batch.get("patch_mask"))

    def embed_image(self, batch: Mapping[str, Any]) -> Float[Array, "B E"]:
        return embed(self.encode_frames(batch["image"]).features)

    def embed_video(self, batch: Mapping[str, Any]) -> Float[Array, "B E"]:
        features, _ = self._encode(batch["video"], batch.get("patch_mask"))
        return self.aggregate(features, batch["frame_mask"])

    def encode_frames(self, pictures: UInt8[Array, "b S S 3"]) -> EncodedFrames:
        tokens, features = self.encoder(normalize(pictures, self.pixels))
        return EncodedFrames(features, tokens)

    def aggregate(self, features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        return embed(self.aggregation(features, frame_mask))

    def encode_images(self, batch: Mapping[str, Any]) -> EncodedImages:
        features, tokens = self.encode_frames(batch["image"])
        return EncodedImages(embed(features), self.pmd.image_queries(tokens, self.title(batch)))

    def video_tokens(self, batch: Mapping[str, Any]) -> Float[Array, "B T L D"]:
        return self._encode(batch["video"], batch.get("patch_mask")).tokens

    def title(self, batch: Mapping[str, Any]) -> EmbeddedTexts | None:
        return self._texts(batch, "title")

    def speech(self, batch: Mapping[str, Any]) -> EmbeddedTexts | None:
        return self._texts(batch, "speech")

    def match(
        self,
        queries: Float[Array, "B K R D"],
        tokens: Float[Array, "B T L D"],
        frame_mask: Bool[Array, "B T"],
        patch_mask: Bool[Array, "B T N"] | None = None,
        speech: EmbeddedTexts | None = None,
    ) -> Float[Array, "B K"]:
        keys_values, token_mask = self.pmd.video_side(tokens, frame_mask, patch_mask, speech)

        def cosine(queries: Float[Array, "B R D"]) -> Float[Array, " B"]:
            return self.pmd.cosine(self.pmd.decode(queries.astype(tokens.dtype), keys_values, token_mask))

        # Keys and values are not mapped over, and so not repeated for every image. Images whose side is a single row
        # go all together; those of many rows one after another, since their attention would fill the memory.
        together = queries.shape[1] if queries.shape[2] == 1 else 1
        return jax.lax.map(cosine, jnp.moveaxis(queries, 1, 0), batch_size=together).T

    def attention_maps(self, batch: Mapping[str, Any]) -> Float[Array, "B N T N"]:
        tokens, images = self.video_tokens(batch), self.encode_frames(batch["image"]).tokens
        b, num_frames, num_tokens, _ = tokens.shape
        queries = self.pmd.image_queries(images, self.title(batch), with_attention=True)
        keys_values, token_mask = self.pmd.video_side(
            tokens, batch["frame_mask"], batch.get("patch_mask"), self.speech(batch)
        )
        _, maps = self.pmd.attend(queries, keys_values, token_mask, with_attention=True)  # [B, C, L, M]
        assert maps is not None
        maps = between_patches(maps, images, tokens).mean(axis=1)
        return maps.reshape(b, num_tokens, num_frames, num_tokens)[:, 1:, :, 1:]

    def _texts(self, batch: Mapping[str, Any], name: str) -> EmbeddedTexts | None:
        """The title or the speech of a batch; None if it has none."""
        if f"{name}_mask" not in batch:
            return None
        if name not in batch:  # a text that is embedded already need not be so again
            encoded = self.text(batch[f"{name}_ids"], batch[f"{name}_token_mask"])
            return EmbeddedTexts(embed(encoded.features), batch[f"{name}_mask"])
        return EmbeddedTexts(batch[name], batch[f"{name}_mask"])

    def _encode(
        self, video: UInt8[Array, "B T S S 3"], patch_mask: Bool[Array, "B T N"] | None = None
    ) -> EncodedFrames:
        """Every frame of videos, as `Vit` encodes a picture."""
        shape = video.shape[:2]
        flat_mask = None if patch_mask is None else patch_mask.reshape(-1, patch_mask.shape[-1])
        tokens, features = self.encoder(normalize(video.reshape(-1, *video.shape[2:]), self.pixels), flat_mask)
        return EncodedFrames(features.reshape(*shape, -1), tokens.reshape(*shape, *tokens.shape[1:]))


def normalize(pictures: UInt8[Array, "*B S S 3"], pixels: str) -> Float[Array, "*B S S 3"]:
    """Bytes to an encoder's input: scaled to 0..1, then by the statistics of `config.model.pixels`; float32."""
    mean, std = PIXEL_STATISTICS[pixels]
    return (pictures.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)

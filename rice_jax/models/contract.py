"""The interface between models and the rest of the program.

A model is an `nnx.Module` made of its settings (`models.create.MODELS`). Outside `models/` it is used by the methods of
the protocols below, and never by its parts. A batch, arrays by the names of `types.Batch` or `types.DetectionBatch`, is
passed on whole, so that a model may read any of its entries. Which protocols a model fulfills may depend on its
settings, so a model lists them in `capabilities`, and `require` refuses a model that lacks one.

A model also says of its parameters, by the names of its parts (the first level of the tree of parameters):

    PRETRAINED      parts that come from a converted checkpoint; they have a learning rate of their own
    TRAINING_ONLY   parts that change neither an embedding nor a match
    MATCH_ONLY      parts that change a match, but no embedding

Whatever is in neither of the last two changes embeddings, and so counts in the fingerprint of an index.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, UInt8

from rice_jax.config import ConfigError
from rice_jax.types import Detections, EmbeddedTexts, EncodedFrames, EncodedImages


@runtime_checkable
class AnyModel(Protocol):
    """What every model has."""

    PRETRAINED: tuple[str, ...]
    TRAINING_ONLY: tuple[str, ...]
    MATCH_ONLY: tuple[str, ...]

    @property
    def capabilities(self) -> frozenset[type]:
        """The protocols of this module that the model fulfills with its settings."""


@runtime_checkable
class SupportsEmbedding(Protocol):
    """Images and videos as vectors whose inner product is their similarity."""

    def embed_image(self, batch: Mapping[str, Any]) -> Float[Array, "B E"]:
        """Embeds `image`; unit length, float32."""

    def embed_video(self, batch: Mapping[str, Any]) -> Float[Array, "B E"]:
        """Embeds `video` with its `frame_mask` and, if present, `patch_mask`; unit length, float32."""

    def similarity_scale(self) -> Float[Array, ""]:
        """The factor by which training multiplies these similarities."""


@runtime_checkable
class SupportsDomains(Protocol):
    """Embeds items of several domains, each in its own way, as vectors that can be compared."""

    def embed_domain(self, batch: Mapping[str, Any], domain: str) -> Float[Array, "B E"]:
        """Embeds items of a domain; unit length, float32.

        Args:
            batch: `video` with its `frame_mask`, and, if present, `text_ids` and `text_token_mask`, `[B, L]`, True = a
                token. An item of one picture is a video of one frame. A text without a token is missing, as all are if
                the batch has no `text_ids`.
            domain: "page", "video" (short videos) or "live" (clips of livestreams).

        Raises:
            ConfigError: there is no such domain, it has no texts, or patches are to be left out.
        """


@runtime_checkable
class SupportsStreaming(Protocol):
    """Frames can be encoded one by one and kept: a video's embedding is made of what was kept of its frames."""

    def encode_frames(self, pictures: UInt8[Array, "b S S 3"]) -> EncodedFrames:
        """Encodes frames of any videos."""

    def aggregate(self, features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        """The embedding of videos from the features of their frames, as `embed_video` gives it."""


@runtime_checkable
class SupportsTexts(Protocol):
    """Embeds titles and speech, as vectors whose inner product is their similarity."""

    def title(self, batch: Mapping[str, Any]) -> EmbeddedTexts | None:
        """The titles of the images; None if the batch has none."""

    def speech(self, batch: Mapping[str, Any]) -> EmbeddedTexts | None:
        """What is said in the videos; None if the batch has none."""


@runtime_checkable
class SupportsMatching(Protocol):
    """Tells how well an image and a video match, better than their embeddings do and at a higher cost."""

    def encode_images(self, batch: Mapping[str, Any]) -> EncodedImages:
        """Embeds `image` and computes the image's side of a match, with its title, in one pass."""

    def video_tokens(self, batch: Mapping[str, Any]) -> Float[Array, "B T L D"]:
        """The video's side of a match: `EncodedFrames.tokens` of every frame of `video`."""

    def speech(self, batch: Mapping[str, Any]) -> EmbeddedTexts | None:
        """What is said in the videos, for `match`; None if the batch has none."""

    def match(
        self,
        queries: Float[Array, "B K R D"],
        tokens: Float[Array, "B T L D"],
        frame_mask: Bool[Array, "B T"],
        patch_mask: Bool[Array, "B T N"] | None = None,
        speech: EmbeddedTexts | None = None,
    ) -> Float[Array, "B K"]:
        """Cosines of videos and K images each, -1 to 1, float32.

        Args:
            queries: of the images (`EncodedImages.queries`), of any float type.
            tokens: of the videos.
            frame_mask: True = a real frame.
            patch_mask: True = a patch to attend to; None = all.
            speech: of the videos; None = there is none.
        """


@runtime_checkable
class SupportsAttention(Protocol):
    """Shows which parts of a video's frames matter for an image."""

    def attention_maps(self, batch: Mapping[str, Any]) -> Float[Array, "B N T N"]:
        """Attention from each patch of image i to each patch of video i's frames, mean over all heads, float32."""


@runtime_checkable
class SupportsDetection(Protocol):
    """Finds the intended product in every frame."""

    def detect(self, batch: Mapping[str, Any]) -> Detections:
        """Boxes of `video` with its `frame_mask`; what it says of a padding frame has no meaning."""


# A model "that can …".
_CAN: dict[type, str] = {
    SupportsEmbedding: "embed images and videos",
    SupportsDomains: "embed items of several domains",
    SupportsStreaming: "encode a video frame by frame",
    SupportsTexts: "embed titles and speech",
    SupportsMatching: "match an image with a video",
    SupportsAttention: "show its attention",
    SupportsDetection: "find boxes",
}


def require(model: AnyModel, capability: type, purpose: str) -> None:
    """Refuses a model that lacks a capability.

    Args:
        model: with or without weights.
        capability: a protocol of this module.
        purpose: what it is needed for, the subject of the error's sentence.

    Raises:
        ConfigError: the model cannot do it.
    """
    if capability not in model.capabilities:
        raise ConfigError(
            f"{purpose} needs a model that can {_CAN[capability]}; {type(model).__name__} cannot with these settings"
        )

"""Encoders, each in a file of its own: of single frames, `ENCODERS`, or of whole videos, `VIDEO_ENCODERS`."""

from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from rice_jax.config import ConfigError, EncoderConfig, VitConfig
from rice_jax.config.model import OF_PATCHES
from rice_jax.models.encoders.swin import Swin
from rice_jax.models.encoders.timesformer import Timesformer
from rice_jax.models.encoders.vit import Vit
from rice_jax.models.encoders.xclip import Xclip
from rice_jax.parallel.mesh import Placement


@runtime_checkable
class Encoder(Protocol):
    """An `nnx.Module` with an encoder's settings."""

    def __init__(self, config: Any, *, placement: Placement, rngs: nnx.Rngs):
        """Builds the encoder with fresh weights."""

    @staticmethod
    def fit(params: PyTree, config: Any) -> PyTree:
        """Fits saved parameters to other sizes, as of the picture, where that is possible."""


@runtime_checkable
class FrameEncoder(Encoder, Protocol):
    """Encodes pictures, shop images and video frames alike."""

    def __call__(
        self, pictures: Float[Array, "B S S 3"], patch_mask: Bool[Array, "B N"] | None = None
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B E"]]:
        """Encodes pictures.

        Args:
            pictures: normalized by the model's mean and standard deviation.
            patch_mask: True = a patch that others may attend to; None = all.

        Returns:
            tokens: the picture's summary first, CLS or what stands for it, then the patches in reading order; the
                summary alone if the encoder's patches are of no use to others.
            feature: not normalized.
        """


@runtime_checkable
class VideoEncoder(Encoder, Protocol):
    """Encodes the frames of a video together; an image is a video of one frame.

    Attributes:
        BETWEEN_FRAMES: paths of the parameters that an encoder of pictures does not have.
    """

    BETWEEN_FRAMES: tuple[str, ...]

    def __call__(self, videos: Float[Array, "B T S S 3"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        """Encodes videos.

        Args:
            videos: normalized by the model's mean and standard deviation.
            frame_mask: True = a real frame; others change nothing.

        Returns:
            The videos' features, not normalized.
        """


@runtime_checkable
class EncodesRows(Protocol):
    """A `VideoEncoder` that encodes several videos in one row of frames."""

    def encode_rows(
        self, videos: Float[Array, "B K S S 3"], frame_mask: Bool[Array, "B K"], lengths: tuple[int, ...]
    ) -> Float[Array, "B V E"]:
        """Encodes videos as they would be alone.

        Args:
            videos: the frames of V videos, one video after the other.
            frame_mask: True = a real frame; others change nothing.
            lengths: the number of frames of each video, K together.
        """


# By `config.architecture`.
ENCODERS: dict[str, type[FrameEncoder]] = {"vit": Vit, "swin": Swin}
VIDEO_ENCODERS: dict[str, type[VideoEncoder]] = {"timesformer": Timesformer, "xclip": Xclip}


def encoder_class(config: EncoderConfig) -> type[Encoder]:
    """The encoder of a configuration, of frames or of videos."""
    if config.architecture in VIDEO_ENCODERS:
        return VIDEO_ENCODERS[config.architecture]
    return frame_encoder_class(config)


def between_frames(config: EncoderConfig) -> tuple[str, ...]:
    """Paths of the layers between frames, if the encoder has any."""
    return VIDEO_ENCODERS[config.architecture].BETWEEN_FRAMES if config.architecture in VIDEO_ENCODERS else ()


def frozen(config: EncoderConfig) -> tuple[str, ...]:
    """Paths of the encoder's parameters that are not trained.

    Raises:
        ConfigError: stages of a stem that the encoder does not have. (Only its weights may say what its stem is.)
    """
    if not isinstance(config, VitConfig):
        return ()
    if config.frozen_stages and config.stem != "mobilenet":
        raise ConfigError(
            f"config.model.frozen_stages: found {config.frozen_stages} with stem={config.stem!r}, expected 0"
        )
    return tuple(f"stem/stage_{number}" for number in range(config.frozen_stages))


def frame_encoder_class(config: EncoderConfig) -> type[FrameEncoder]:
    """The encoder of a configuration whose model needs frames one by one.

    Raises:
        ConfigError: there is no such architecture.
    """
    if config.architecture not in ENCODERS:
        known = ", ".join(map(repr, ENCODERS))
        raise ConfigError(f"config.model.architecture: found {config.architecture!r}, expected one of {known}")
    return ENCODERS[config.architecture]


def require_patches(config: EncoderConfig, purpose: str) -> VitConfig:
    """Refuses an encoder whose patches are of no use to others.

    Raises:
        ConfigError: naming `purpose`.
    """
    if not isinstance(config, VitConfig) or config.architecture not in OF_PATCHES:
        raise ConfigError(
            f"config.model.architecture: found {config.architecture!r}, expected {' or '.join(map(repr, OF_PATCHES))} "
            f"with {purpose}, which attends to the encoder's patches"
        )
    return config

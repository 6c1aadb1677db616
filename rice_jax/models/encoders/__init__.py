"""Frame encoders, each in a file of its own: `ENCODERS[config.architecture]`."""

from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from rice_jax.config import ConfigError, EncoderConfig, VitConfig
from rice_jax.models.encoders.swin import Swin
from rice_jax.models.encoders.vit import Vit
from rice_jax.parallel.mesh import Placement


@runtime_checkable
class FrameEncoder(Protocol):
    """An `nnx.Module` that encodes pictures, shop images and video frames alike."""

    def __init__(self, config: Any, *, placement: Placement, rngs: nnx.Rngs):
        """Builds the encoder with fresh weights."""

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

    @staticmethod
    def fit(params: PyTree, config: Any) -> PyTree:
        """Fits saved parameters to other sizes, as of the picture, where that is possible."""


ENCODERS: dict[str, type[FrameEncoder]] = {"vit": Vit, "swin": Swin}


def encoder_class(config: EncoderConfig) -> type[FrameEncoder]:
    """The encoder of a configuration.

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
    if not isinstance(config, VitConfig):
        raise ConfigError(
            f"config.model.architecture: found {config.architecture!r}, expected 'vit' with {purpose}, which attends "
            "to the encoder's patches"
        )
    return config

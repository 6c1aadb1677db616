"""Frame encoders, each in a file of its own: `ENCODERS[config.architecture]`."""

from typing import Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from rice_jax.config import ConfigError, VitConfig
from rice_jax.models.encoders.vit import Vit
from rice_jax.parallel.mesh import Placement


@runtime_checkable
class FrameEncoder(Protocol):
    """An `nnx.Module` that encodes pictures, shop images and video frames alike."""

    def __init__(self, config: VitConfig, *, placement: Placement, rngs: nnx.Rngs):
        """Builds the encoder with fresh weights."""

    def __call__(
        self, pictures: Float[Array, "B S S 3"], patch_mask: Bool[Array, "B N"] | None = None
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B E"]]:
        """Encodes pictures.

        Args:
            pictures: normalized by the model's mean and standard deviation.
            patch_mask: True = a patch that others may attend to; None = all.

        Returns:
            tokens: the picture's summary first, CLS or what stands for it, then the patches in reading order.
            feature: not normalized.
        """

    @staticmethod
    def fit(params: PyTree, config: VitConfig) -> PyTree:
        """Fits saved parameters to other sizes, as of the picture, where that is possible."""


ENCODERS: dict[str, type[FrameEncoder]] = {"vit": Vit}


def encoder_class(config: VitConfig) -> type[FrameEncoder]:
    """The encoder of a configuration.

    Raises:
        ConfigError: there is no such architecture.
    """
    if config.architecture not in ENCODERS:
        known = ", ".join(map(repr, ENCODERS))
        raise ConfigError(f"config.model.architecture: found {config.architecture!r}, expected one of {known}")
    return ENCODERS[config.architecture]

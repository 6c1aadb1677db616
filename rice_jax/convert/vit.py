"""What all converters of encoders share: our side of a conversion."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rice_jax.config import PIXEL_STATISTICS, EncoderConfig, SwinConfig, VitConfig
from rice_jax.config.model import SIZES, SWITCHES
from rice_jax.convert.names import Table
from rice_jax.convert.tensors import ConvertError, Places, check_names, parameter_places, parameter_shapes, to_ours
from rice_jax.models.encoders import encoder_class
from rice_jax.parallel.mesh import ONE_PLACE

C = TypeVar("C", VitConfig, SwinConfig)


def convert_vit(
    state: Mapping[str, np.ndarray], table: Table, config: VitConfig, ignored: re.Pattern, what: str
) -> PyTree:
    """Gathers the parameters of an encoder.

    Args:
        state: tensors by their names, any float type.
        table: of the family's names.
        config: of the encoder.
        ignored: names of other parts of their model.
        what: the family, for errors.

    Raises:
        ConvertError: settings exclude each other; or listing every unknown name, missing name and wrong shape.
    """
    for problem in config.problems():
        raise ConvertError(f"not {what} that rice_jax computes: {problem}")
    where = places(table, config)
    check_names(state, where, ignored, f"{what} of {config.layers} blocks")
    return to_ours(state, where, shapes(config), f"{what} of {settings(config)}")


def places(table: Table, config: VitConfig) -> Places:
    """Their names of each parameter of an encoder."""
    return parameter_places(table, shapes(config))


def shapes(config: VitConfig) -> dict[str, tuple[int, ...]]:
    create: Callable[..., Any] = encoder_class(config)
    return parameter_shapes(lambda: create(config, placement=ONE_PLACE, rngs=nnx.Rngs(0)))


def settings(config: EncoderConfig) -> dict[str, Any]:
    """What is saved with converted weights: sizes, and what differs from OpenAI's CLIP."""
    if isinstance(config, SwinConfig):
        shared = {name: getattr(config, name) for name in ("architecture", "image_size", "embed_dim", "pixels")}
        return shared | {"swin": config.own}
    return {name: getattr(config, name) for name in ("image_size", *SIZES)} | config.switches


def config_of(model: Mapping[str, Any]) -> VitConfig:
    """The inverse of `settings`; of a run's settings of the model, those of its encoder."""
    names = ("image_size", *SIZES, *(name for name in SWITCHES if name in model))
    return VitConfig(**{name: model[name] for name in names}, dtype="float32")


def without_projection(config: C) -> C:
    """The encoder whose feature is the pooled token or patches themselves."""
    if isinstance(config, SwinConfig):
        return dataclasses.replace(config, embed_dim=config.stages[-1][2])
    return dataclasses.replace(config, embed_dim=config.width, projection=False)


def with_projection(config: EncoderConfig, embed_dim: int) -> EncoderConfig:
    """The encoder with a projection to `embed_dim`."""
    if isinstance(config, SwinConfig):
        return dataclasses.replace(config, embed_dim=embed_dim)
    return dataclasses.replace(config, embed_dim=embed_dim, projection=True)


def find_pixels(mean: Any, std: Any, where: str) -> str:
    """The name of pixel statistics (`config.model.pixels`).

    Raises:
        ConvertError: they are none of those that rice_jax knows.
    """
    for name, known in PIXEL_STATISTICS.items():
        if np.shape(mean) == np.shape(std) == (3,) and np.allclose((mean, std), known, atol=1e-3):
            return name
    raise ConvertError(
        f"{where}: found the mean {mean} and standard deviation {std} of pixels, expected those of "
        + " or ".join(f"{name} {values}" for name, values in PIXEL_STATISTICS.items())
    )


def about(params: PyTree, config: EncoderConfig) -> str:
    millions = f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.1f} million parameters"
    if isinstance(config, SwinConfig):
        return (
            f"Swin transformer of {millions}, {config.image_size} px, patches of {config.patch_size}, width "
            f"{config.width}, stages of {config.depths} blocks of {config.heads} heads, windows of {config.window}, "
            f"embedding {config.embed_dim}, pixels {config.pixels}"
        )
    described = (
        f"ViT of {millions}, {config.image_size} px, patches of {config.patch_size}, width "
        f"{config.width}, {config.layers} blocks of {config.heads} heads, embedding {config.embed_dim}"
    )
    return ", ".join([described, *(f"{name} {value}" for name, value in config.switches.items())])

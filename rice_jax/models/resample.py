"""Crops and resizes pictures on the device, as `input.transforms.render` does on the host."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from rice_jax.types import Decoded


def show(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with the pictures that its `Decoded` entries describe, also those in a dict of the batch."""

    def shown(value: Any) -> Any:
        if isinstance(value, Mapping):
            return show(value)
        return resample(value) if isinstance(value, Decoded) else value

    return {name: shown(value) for name, value in batch.items()}


def resample(decoded: Decoded) -> UInt8[Array, "*B S S 3"]:
    """Bicubic interpolation with antialiasing; RGB, 0 to 255, zeros where there is no picture.

    Source: Pillow's `Image.resize` with `box`, except for rounding and the precision of the device's matrix products.
    """
    height, width = decoded.pixels.shape[-3:-1]
    down = weights(decoded.rows, decoded.size[..., 0], height)
    across = weights(decoded.columns, decoded.size[..., 1], width)
    pixels = jnp.einsum("...ih,...hwc->...iwc", down, decoded.pixels.astype(jnp.float32))
    pixels = _bytes(jnp.einsum("...jw,...iwc->...ijc", across, pixels))
    if decoded.color is not None:
        matrix, offset = decoded.color[..., :3], decoded.color[..., None, None, :, 3]
        pixels = _bytes(jnp.einsum("...dc,...ijc->...ijd", matrix, pixels.astype(jnp.float32)) + offset)
    return pixels


def weights(centers: Float[Array, "*B S"], length: Int[Array, "*B"], num_pixels: int) -> Float[Array, "*B S N"]:
    """The weight of each pixel in each pixel of the result.

    Args:
        centers: of the result's pixels, at equal distances, in pixels of the picture, whose first center is at 0.5.
        length: pixels of the picture; padding has weight 0.
        num_pixels: N, with padding.

    Source: Keys 1981, with a = -0.5.
    """
    places = jnp.arange(num_pixels) + 0.5
    # When shrinking, the filter is widened by the same factor, so that every pixel counts.
    scale = jnp.maximum(jnp.abs(centers[..., 1:2] - centers[..., :1]), 1)[..., None]
    x = jnp.abs(places - centers[..., None]) / scale
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    found = jnp.where(x < 1, near, jnp.where(x < 2, far, 0)) * (places < length[..., None, None])
    total = found.sum(axis=-1, keepdims=True)
    return found / jnp.where(total == 0, 1, total)


def _bytes(pixels: Float[Array, "*B"]) -> UInt8[Array, "*B"]:
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)

"""Pictures cut out and resized on the device, as `input.transforms.render` does it on the host."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from rice_jax.types import Decoded


def show(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with pictures instead of what they are to be made of."""
    return {name: resample(value) if isinstance(value, Decoded) else value for name, value in batch.items()}


def resample(decoded: Decoded) -> UInt8[Array, "*B S S 3"]:
    """Bicubic interpolation with as wide a filter as shrinking asks for; RGB, 0 to 255, zeros of pictures of no size.

    Source: Pillow's `Image.resize` with `box`, of which it differs by rounding, and by as much more as the device's
    matrix products do.
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
    """How much of each pixel is in each pixel of the result.

    Args:
        centers: of the result's pixels, at equal distances, in pixels of the picture, whose first center is at 0.5.
        length: pixels that there are; the others get nothing.
        num_pixels: N, with the others.

    Source: Keys 1981, with a = -0.5.
    """
    places = jnp.arange(num_pixels) + 0.5
    # Where pixels get fewer, the filter is as much wider as they get, so that it leaves none out.
    scale = jnp.maximum(jnp.abs(centers[..., 1:2] - centers[..., :1]), 1)[..., None]
    x = jnp.abs(places - centers[..., None]) / scale
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    found = jnp.where(x < 1, near, jnp.where(x < 2, far, 0)) * (places < length[..., None, None])
    total = found.sum(axis=-1, keepdims=True)
    return found / jnp.where(total == 0, 1, total)


def _bytes(pixels: Float[Array, "*B"]) -> UInt8[Array, "*B"]:
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)

"""Encodes inputs by name in as few passes as the encoder allows.

The gradients of an encoder's parameters are then summed over devices once, and its products are larger.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rice_jax.models.encoders import EncodesRows, VideoEncoder


def together(encode: Callable[..., Array], inputs: Mapping[str, tuple[Array, ...]]) -> dict[str, Array]:
    """Encodes inputs by name, those of equal shapes in one pass.

    Their rows take turns, so that a device keeps those that it has.
    """
    groups: dict[Any, list[str]] = {}
    for name, arrays in inputs.items():
        groups.setdefault(tuple(x.shape for x in arrays), []).append(name)
    found: dict[str, Array] = {}
    for names in groups.values():
        columns = zip(*(inputs[name] for name in names), strict=True)
        rows = (jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]) for x in columns)
        outputs = encode(*rows)
        found |= {name: outputs[number :: len(names)] for number, name in enumerate(names)}
    return found


def videos_together(
    encoder: VideoEncoder, inputs: Mapping[str, tuple[Float[Array, "B T S S 3"], Bool[Array, "B T"]]]
) -> dict[str, Float[Array, "B E"]]:
    """Encodes videos by name, which may have different numbers of frames; an image is a video of one.

    Args:
        encoder: of videos.
        inputs: normalized videos and their frame masks, as many of each name.
    """
    if len(inputs) == 1 or not isinstance(encoder, EncodesRows):
        return together(encoder, inputs)
    videos, frame_mask = (jnp.concatenate(x, axis=1) for x in zip(*inputs.values(), strict=True))
    lengths = tuple(mask.shape[1] for _, mask in inputs.values())
    features = encoder.encode_rows(videos, frame_mask, lengths)
    return {name: features[:, place] for place, name in enumerate(inputs)}

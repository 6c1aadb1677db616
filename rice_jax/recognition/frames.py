"""Encoded frames."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8


class Frames(NamedTuple):
    """Encoded frames."""

    features: Float32[np.ndarray, "b E"]  # not normalized
    tokens: Float[np.ndarray, "b L D"] | None  # only for re-ranking
    pictures: UInt8[np.ndarray, "b S S 3"] | None = None  # only for models that embed a clip from its pictures

    def take(self, rows: slice | Int[np.ndarray, " n"]) -> "Frames":
        """Selects some of the frames."""
        further = (None if array is None else array[rows] for array in (self.tokens, self.pictures))
        return Frames(self.features[rows], *further)


def join_frames(parts: Sequence[Frames]) -> Frames:
    """Concatenates frames; at least one part."""
    tokens = [part.tokens for part in parts if part.tokens is not None]
    pictures = [part.pictures for part in parts if part.pictures is not None]
    further = (np.concatenate(arrays) if arrays else None for arrays in (tokens, pictures))
    return Frames(np.concatenate([part.features for part in parts]), *further)


def fill(array: np.ndarray, num_frames: int) -> tuple[np.ndarray, Bool[np.ndarray, " T"]]:
    """Pads the frames of a clip with zeros; the mask is True for real frames."""
    filled = np.zeros((num_frames, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled, np.arange(num_frames) < len(array)

"""Encoded frames."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int


class Frames(NamedTuple):
    """Encoded frames."""

    features: Float32[np.ndarray, "b E"]  # not normalized
    tokens: Float[np.ndarray, "b L D"] | None  # only for re-ranking

    def take(self, rows: slice | Int[np.ndarray, " n"]) -> "Frames":
        """Selects some of the frames."""
        return Frames(self.features[rows], None if self.tokens is None else self.tokens[rows])


def join_frames(parts: Sequence[Frames]) -> Frames:
    """Concatenates frames; at least one part."""
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Frames(np.concatenate([part.features for part in parts]), np.concatenate(tokens) if tokens else None)


def fill(array: np.ndarray, num_frames: int) -> tuple[np.ndarray, Bool[np.ndarray, " T"]]:
    """Pads the frames of a clip with zeros; the mask is True for real frames."""
    filled = np.zeros((num_frames, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled, np.arange(num_frames) < len(array)

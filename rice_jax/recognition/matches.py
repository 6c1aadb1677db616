"""What an engine finds."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32


class Match(NamedTuple):
    """A product of the index, as a match for a clip."""

    id: str
    gallery: str
    title: str  # the first that one of its images has; "" = unknown
    # Cosine of the embeddings, or the score by frames, pooled over its images (`pooling.pool`); if it is re-ranked,
    # plus the weighted cosine by the decoder of the most similar image, or that cosine alone (`reranking.reorder`).
    score: float
    confidence: float | None  # probability that it is shown, from the embeddings; None = the index has no calibration
    image_id: str  # of the most similar image
    fields: dict[str, str] = {}  # further columns of the shop's CSV, such as its price


class Scores(NamedTuple):
    """The scores of products for a clip, each pooled over its images."""

    mean: Float32[np.ndarray, " p"]  # cosines of the clip
    frames: Float32[np.ndarray, " p"]  # by frames


class Recognition(NamedTuple):
    """The ranking of a gallery's products for a clip."""

    time: float  # of the newest frame, seconds
    products: tuple[Match, ...]  # best first
    none: float | None  # probability that none of the products is shown; None = the index has no calibration
    restarted: bool = False  # whether the stream's clock has jumped, so that this is a new window's first frame
    product: Match | None = None  # the one that is named (`Naming`); None = none of them

"""How an engine re-ranks: by score + weight · match, as an evaluation does (`eval.rerank`)."""

import logging

import numpy as np
from jaxtyping import Float32, Int

from rice_jax.index.about import About

logger = logging.getLogger(__name__)


def match_weight(about: About, *, by_frames: bool) -> float | None:
    """The weight of the decoder's cosine in the calibration of an index.

    Warns if it is missing or 0, or if the decoder was trained with texts, which it does not get here.

    Args:
        about: the index.
        by_frames: whether products are ranked by frames, and otherwise by the mean.

    Returns:
        0 or more; None = the calibration has none of this decoder, so the first products are ordered by it alone.
    """
    if about.model.text:
        logger.warning(
            "The decoder was trained with titles and speech, and gets neither here, so re-ranking may be worse than in "
            "the run's evaluation."
        )
    calibration, weight = about.calibration, None
    if calibration and calibration.match_fingerprint == about.match_fingerprint:
        weight = calibration.match_weight_by_frames if by_frames else calibration.match_weight
    if weight is None:
        logger.warning(
            "The index has no calibrated weight of its decoder, so re-ranking orders the first products by the decoder "
            "alone. To fit one, evaluate the run with config.eval.rerank (rice eval), and index its images again (rice "
            "index)."
        )
    elif weight == 0:
        logger.warning("The calibration gives the decoder no weight, so re-ranking changes nothing; leave it out.")
    return weight


def reorder(
    scores: Float32[np.ndarray, " k"], matched: Float32[np.ndarray, " k"], weight: float | None
) -> tuple[Int[np.ndarray, " k"], Float32[np.ndarray, " k"]]:
    """The new order of some products, and the scores that they have in it; ties stay in the order before.

    Args:
        scores: that the products were ranked by before.
        matched: the decoder's cosines.
        weight: of these; None = they alone count.
    """
    by = matched if weight is None else scores + weight * matched.astype(np.float64)
    order = np.argsort(-by, kind="stable")
    return order, by[order].astype(np.float32)

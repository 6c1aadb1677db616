"""Measures of the whole order of a gallery: AP, reciprocal rank, nDCG@10. A query may have several ground truths."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

NDCG_CUTOFF = 10
NAMES = ("mAP", "MRR", f"nDCG@{NDCG_CUTOFF}")  # of the means over queries


def measure_order(truth_ranks: Sequence[Sequence[int]], num_relevant: Sequence[int]) -> Float64[np.ndarray, "Q 3"]:
    """Measures where the ground truths of each query are.

    Args:
        truth_ranks: 1-based positions of each query's truths in its gallery, ascending; may be empty.
        num_relevant: number of all truths of each query, at least 1, also of those that its gallery lacks, which are
            never found.

    Returns:
        Of each query, 0 to 1, in the order of `NAMES`:
        AP: sum of the precisions i / (position of the i-th truth), divided by the number of truths.
        RR: 1 / position of the first truth.
        nDCG@10: sum of 1 / log2(1 + position) of the truths among the first 10, divided by that of the best order.

    Source: docs/training.md, "Evaluate and re-rank".
    """
    num = len(truth_ranks)
    relevant = np.asarray(num_relevant, np.int64)
    counts = np.fromiter(map(len, truth_ranks), np.int64, num)
    query = np.repeat(np.arange(num), counts)
    place = np.fromiter((place for own in truth_ranks for place in own), np.int64, counts.sum())
    order = 1 + np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)  # i of the i-th truth
    precision = np.bincount(query, order / place, num) / relevant
    reciprocal = np.bincount(query, (order == 1) / place, num)
    gain = np.bincount(query, _discount(place), num) / _best_gain(relevant)
    return np.stack([precision, reciprocal, gain], axis=1)


def expect_order(
    gallery_size: Int64[np.ndarray, " Q"], num_truths: Int64[np.ndarray, " Q"], num_relevant: Sequence[int]
) -> Float64[np.ndarray, "Q 3"]:
    """Expectations of `measure_order` for a random order of each query's gallery.

    Args:
        gallery_size: images in each query's gallery, at least 1.
        num_truths: number of ground truths among them.
        num_relevant: as in `measure_order`.

    Source: Bestgen, "Exact expected average precision of the random baseline" (2015), for AP.
    """
    kinds, kind = np.unique(np.stack([gallery_size, num_truths, num_relevant]), axis=1, return_inverse=True)
    return np.array([_expect(*of_kind) for of_kind in kinds.T.tolist()]).reshape(-1, len(NAMES))[kind.ravel()]


def _expect(size: int, truths: int, relevant: int) -> list[float]:
    if not truths:
        return [0.0] * len(NAMES)
    place = np.arange(1, size + 1)
    share = truths / size  # of the images in each place that are a truth
    truths_before = (place - 1) * (truths - 1) / max(size - 1, 1)  # of a truth in each place
    no_truth = np.cumprod((size - truths - place + 1).clip(0) / (size - place + 1))  # up to each place
    first = np.concatenate([[1.0], no_truth[:-1]]) - no_truth  # probability that it is the first truth's place
    gain = _discount(place).sum() / _best_gain(np.array([relevant]))[0]
    return [share * ((1 + truths_before) / place).sum() / relevant, (first / place).sum(), share * gain]


def _discount(place: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return (place <= NDCG_CUTOFF) / np.log2(1 + place)


def _best_gain(num_relevant: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Gain of an order whose truths come first."""
    gains = np.cumsum(_discount(np.arange(1, NDCG_CUTOFF + 1)))
    return gains[np.minimum(num_relevant, NDCG_CUTOFF) - 1]

"""Ranking by picture and text: the cosine of picture and clip, plus a weight times the cosine of title and speech.

    score = cosine(image, video) + weight · cosine(title, speech)

This is one inner product, of [image; title] and [video; weight · speech]; a missing text is 0. By frames, each frame of
a video has the video's speech.

The weight is fitted: among the products of its gallery, a query shows its truth with a probability proportional to
exp(a · cosine of the pictures + b · cosine of the texts), and the weight is b / a of the maximum-likelihood estimates.
Only queries with speech, and a title in their gallery, tell anything about it. So that no query is ranked with a weight
that it was fitted to, products are divided into halves, and each half is ranked with the weight of the other.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32

from rice_jax.eval.ranking import GalleryImages, Queries
from rice_jax.eval.scores import scores_by_frames

MAX_FACTOR = 1000.0  # of both cosines, which would grow without bound if all of a few queries were ranked correctly
MAX_WEIGHT = 100.0


@dataclasses.dataclass(frozen=True)
class PairedTexts:
    """The embeddings of texts, unit length; 0 = there is none."""

    titles: Float32[np.ndarray, "G D"]
    speech: Float32[np.ndarray, "Q D"]


def fuse(
    queries: Queries, images: GalleryImages, texts: PairedTexts, weight: float | Float[np.ndarray, " Q"]
) -> tuple[Queries, GalleryImages]:
    """Queries and images with their texts.

    Args:
        queries: to rank by the mean or by frames.
        images: of all galleries.
        texts: of the same.
        weight: of the texts, of each query or of all.
    """
    speech = texts.speech * np.asarray(np.broadcast_to(weight, len(texts.speech)), np.float32)[:, None]
    own = queries.embeddings
    if own.ndim == 3:
        speech = np.broadcast_to(speech[:, None], (*own.shape[:2], speech.shape[1]))
    return (
        dataclasses.replace(queries, embeddings=np.concatenate([own, speech], axis=-1)),
        dataclasses.replace(
            images, embeddings=np.concatenate([images.embeddings, texts.titles], axis=1), pictures=images.embeddings
        ),
    )


def fit_weight(
    queries: Queries,
    images: GalleryImages,
    texts: PairedTexts,
    *,
    among: Bool[np.ndarray, " Q"] | None = None,
    max_scores: int = 2**22,
) -> float:
    """The weight of texts that explains the queries best; 0 if none of them has a text to compare.

    Args:
        queries: to rank by the mean or by frames.
        images: of all galleries.
        texts: of the same.
        among: which queries count; None = all.
        max_scores: bounds the memory; if there are more scores, the fit uses queries at equal distances.
    """
    names = {gallery_id: np.array(images.names(own), object) for gallery_id, own in images.products.items()}
    titled = {gallery_id: texts.titles[own.rows].any() for gallery_id, own in images.products.items()}
    found: list[tuple[int, Bool[np.ndarray, " p"]]] = []
    for query, (gallery_id, truths) in enumerate(zip(queries.gallery_ids, queries.truths, strict=True)):
        if (among is None or among[query]) and texts.speech[query].any() and titled.get(gallery_id):
            truth = np.isin(names[gallery_id], images.true_products(gallery_id, truths))
            if truth.any() and not truth.all():
                found.append((query, truth))
    found = found[:: max(-(-sum(len(truth) for _, truth in found) // max_scores), 1)]
    if not found:
        return 0.0
    pairs, is_truth = [], []
    for query, truth in found:
        products = images.products[queries.gallery_ids[query]]
        cosines, pooling = queries.rows(query) @ images.embeddings[products.rows].T, images.pooling(products)
        by_mean = queries.frame_mask is None
        pictures = pooling.cosines(cosines[0]) if by_mean else pooling.scores(scores_by_frames(cosines))
        pairs.append(np.stack([pictures, pooling.scores(texts.titles[products.rows] @ texts.speech[query])], axis=1))
        is_truth.append(truth)
    return _fit(pairs, is_truth)


def cross_fitted(queries: Queries, images: GalleryImages, texts: PairedTexts) -> Float[np.ndarray, " Q"]:
    """For each query the weight that is fitted to the queries of the other half of the products.

    Args:
        queries, images, texts: as of `fit_weight`.
    """
    half = np.array(
        [
            _half(images.true_products(gallery, truths)[0])
            for gallery, truths in zip(queries.gallery_ids, queries.truths, strict=True)
        ]
    )
    weights = [fit_weight(queries, images, texts, among=half == other) for other in (1, 0)]
    return np.array(weights)[half]


def _half(product: str) -> int:
    """0 or 1, whatever other products there are."""
    return hashlib.sha256(product.encode()).digest()[0] % 2


def _fit(pairs: Sequence[Float[np.ndarray, "_ 2"]], is_truth: Sequence[Bool[np.ndarray, " _"]]) -> float:
    """b / a, by which the truths are likeliest.

    Args:
        pairs: of each query and all products of its gallery, the scores of pictures and of texts.
        is_truth: which of these it shows.
    """
    from scipy.optimize import minimize  # slow to import, and most runs only need it at their end

    starts = np.cumsum([0, *map(len, pairs[:-1])])
    sizes = [*map(len, pairs)]
    x, right = np.concatenate(pairs).astype(np.float64), np.concatenate(is_truth)

    def expectation(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        best = np.maximum.reduceat(logits, starts)
        shares = np.exp(logits - np.repeat(best, sizes))
        sums = np.add.reduceat(shares, starts)
        return best + np.log(sums), np.add.reduceat(shares[:, None] * x, starts) / sums[:, None]

    def loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x @ factors
        everything, mean = expectation(logits)
        truths, true_mean = expectation(np.where(right, logits, -1e300))
        return float((everything - truths).mean()), (mean - true_mean).mean(axis=0)

    bounds = [(1e-3, MAX_FACTOR), (0.0, MAX_FACTOR)]
    a, b = minimize(loss, [10.0, 1.0], jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(min(b / a, MAX_WEIGHT))

"""Ranking by picture and text: the cosine of picture and clip, plus a weight times the cosine of title and speech.

    score = cosine(image, video) + weight · cosine(title, speech)

This is one inner product, of [image; title] and [video; weight · speech]; a missing text is 0. By frames, each frame of
a video has the video's speech.

The weight is fitted (`eval.weight`) to all products of the queries' galleries. Only queries with speech, and a title in
their gallery, tell anything about it.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32

from rice_jax.eval.ranking import GalleryImages, Queries, product_scores
from rice_jax.eval.weight import cross_fit, fit


@dataclasses.dataclass(frozen=True)
class TextVectors:
    """The embeddings of texts, unit length; 0 = there is none."""

    titles: Float32[np.ndarray, "G D"]
    speech: Float32[np.ndarray, "Q D"]


def fuse(
    queries: Queries, images: GalleryImages, texts: TextVectors, weight: float | Float[np.ndarray, " Q"]
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
    texts: TextVectors,
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
    pairs = []
    for query, _ in found:
        products = images.products[queries.gallery_ids[query]]
        said = images.pooling(products).scores(texts.titles[products.rows] @ texts.speech[query])
        pairs.append(np.stack([product_scores(queries, images, query), said], axis=1))
    return fit(pairs, [truth for _, truth in found])


def cross_fitted(queries: Queries, images: GalleryImages, texts: TextVectors) -> Float[np.ndarray, " Q"]:
    """For each query the weight that is fitted to the queries of the other half of the products.

    Args:
        queries, images, texts: as of `fit_weight`.
    """
    named = zip(queries.gallery_ids, queries.truths, strict=True)
    products = [images.true_products(gallery, truths)[0] for gallery, truths in named]
    return cross_fit(products, lambda among: fit_weight(queries, images, texts, among=among))

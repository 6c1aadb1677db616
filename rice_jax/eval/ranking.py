"""Ranks every query's ground truth among the products of the query's own gallery."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from rice_jax.eval.nearest import Gallery, Rows, lengths_of, rank_rows
from rice_jax.eval.pooling import Pooling, inflation
from rice_jax.eval.products import Products, group_products
from rice_jax.eval.scores import scores_by_frames
from rice_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries to rank; every field has one entry per query.

    Attributes:
        embeddings: L2-normalized, finite; of each query, or of each frame to rank by frames.
        ids: the queries' names, each once.
        gallery_ids: the gallery of each query.
        truths: ground-truth image ids of each query, at least one; the products of any of them are hits.
        frame_mask: True = a real frame, at least one for each query; None = `embeddings` are of queries.
    """

    embeddings: Float32[np.ndarray, "Q E"] | Float32[np.ndarray, "Q T E"]
    ids: Sequence[str]
    gallery_ids: Sequence[str]
    truths: Sequence[Sequence[str]]
    frame_mask: Bool[np.ndarray, "Q T"] | None = None

    def rows(self, query: int) -> Float32[np.ndarray, "T E"]:
        """What a query is compared by: its frames' embeddings, or its own as the only row."""
        own = self.embeddings[query]
        return own[None] if self.frame_mask is None else own[self.frame_mask[query]]


@dataclasses.dataclass(frozen=True)
class GalleryImages:
    """The images of all galleries; the sequences but `skipped` have one entry per image.

    Attributes:
        embeddings: L2-normalized, finite.
        gallery_ids: the gallery of each image; an image may be in several galleries, in each of them once.
        ids: the images' names.
        skipped: "gallery id/image id" of images that are known to be left out of a gallery, e.g. unreadable pictures.
        product_ids: the product of each image, the same for all its images in a gallery; None = each image is a product
            by itself, of the same name.
        sharpness: of `pooling.pool`, which makes the score of a product out of those of several images.
        pictures: the pictures' part of the embeddings, by which `pooling.inflation` is estimated; None = all of it.
    """

    embeddings: Float32[np.ndarray, "G E"]
    gallery_ids: Sequence[str]
    ids: Sequence[str]
    skipped: Collection[str] = ()
    product_ids: Sequence[str] | None = None
    sharpness: float = 0.0
    pictures: Float32[np.ndarray, "G P"] | None = None

    @functools.cached_property
    def products(self) -> dict[str | None, Products]:
        """The products of each gallery, and of all under None."""
        return group_products(self.gallery_ids, self.product_ids)

    def names(self, products: Products) -> list[str]:
        """The products' ids."""
        names = self._names
        return [names[row] for row in products.rows[products.edges[:-1]].tolist()]

    def pooling(self, products: Products) -> Pooling:
        """How products are scored by their images."""
        return Pooling(products.edges, self.sharpness, self._inflation[products.numbers])

    def true_products(self, gallery_id: str, truths: Sequence[str]) -> tuple[str, ...]:
        """The products of ground-truth images; a name that no image of the gallery has stands for a product."""
        if self.product_ids is None:
            return tuple(truths)
        return tuple(self._product_of.get((gallery_id, name), name) for name in truths)

    @property
    def _names(self) -> Sequence[str]:
        return self.ids if self.product_ids is None else self.product_ids

    @functools.cached_property
    def _inflation(self) -> Float32[np.ndarray, " P"]:
        vectors = self.embeddings if self.pictures is None else self.pictures
        return inflation(vectors, self.products[None], self.sharpness)

    @functools.cached_property
    def _product_of(self) -> dict[tuple[str, str], str]:
        names = zip(self.gallery_ids, self.ids, strict=True)
        return dict(zip(names, self._names, strict=True))


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How each query was ranked in its own gallery; every field has one entry per query, in the order of the queries.

    Attributes:
        query_ids: the queries' names.
        gallery_ids: the gallery in which each query was ranked.
        truth_ranks: 1-based positions of the query's true products that are in its gallery, ascending.
        gallery_size: number of products in the query's gallery.
        truths: ids of the true products, one for each ground-truth image.
        top: the best (product id, score) pairs, best first; after `rerank.reorder` matched products have the scores
            that they were re-ordered by.
        images: the image of each product of `top` that is most similar to the query.
    """

    query_ids: tuple[str, ...]
    gallery_ids: tuple[str, ...]
    truth_ranks: tuple[tuple[int, ...], ...]
    gallery_size: Int64[np.ndarray, " Q"]
    truths: tuple[tuple[str, ...], ...]
    top: tuple[tuple[tuple[str, float], ...], ...]
    images: tuple[tuple[str, ...], ...]

    @functools.cached_property
    def rank(self) -> Int64[np.ndarray, " Q"]:
        """Position of each query's best ground truth; 0 = none of its truths is in the gallery, a miss."""
        return np.array([ranks[0] if ranks else 0 for ranks in self.truth_ranks], np.int64)

    @functools.cached_property
    def num_truths(self) -> Int64[np.ndarray, " Q"]:
        """Number of ground truths in each query's gallery."""
        return np.array([len(ranks) for ranks in self.truth_ranks], np.int64)


def rank(queries: Queries, images: GalleryImages, *, num_top: int = 10, max_scores: int = 2**22) -> Ranking:
    """Ranks each query inside its own gallery by the inner product of embeddings, or by frames (`eval.scores`).

    Products are ordered by score, highest first; that of several images is pooled (`eval.pooling`). Among equal scores,
    products that are no truth of the query come before its truths, so that a tie never helps; then gallery order
    decides. At most `max_scores` scores exist at a time, however large a gallery is, but always those of a product.

    Args:
        queries: to rank.
        images: of all galleries, in gallery order. A truth among `images.skipped` is no error; a query without another
            truth is a miss.
        num_top: number of best products to keep by name.
        max_scores: bounds the memory; the result does not depend on it.

    Returns:
        The ranking, in the order of the queries.

    Raises:
        DataError: naming the query or image, for embeddings that are not finite, a query whose gallery has no images,
            a ground truth that is not in the query's gallery, a ground truth that is not a list or is empty, and an
            id that occurs twice.

    Source: docs/reference.md, section 8.
    Differs: the reference leaves ties to a sort of scores and accepts missing truths.
    """
    query_lengths, image_lengths = _check_queries(queries), _check_images(images)
    names_of = {gallery: images.names(own) for gallery, own in images.products.items() if gallery is not None}
    truths = _check_truths(queries, images, names_of)

    num_queries = len(queries.ids)
    gallery_size = np.zeros(num_queries, np.int64)
    truth_ranks: list[tuple[int, ...]] = [()] * num_queries
    top: list[tuple[tuple[str, float], ...]] = [()] * num_queries
    shown: list[tuple[str, ...]] = [()] * num_queries

    num_frames = 1 if queries.frame_mask is None else queries.frame_mask.shape[1]
    num_rows = max(1, math.isqrt(max_scores) // num_frames)  # large blocks read the gallery less often
    for gallery_id, of_gallery in group_rows(queries.gallery_ids).items():
        products = images.products[gallery_id]
        pooling = images.pooling(products)
        gallery = Gallery(images.embeddings, image_lengths, products, pooling, queries.frame_mask is not None)
        names = names_of[gallery_id]
        position = {name: i for i, name in enumerate(names)}
        gallery_size[of_gallery] = len(names)
        for start in range(0, len(of_gallery), num_rows):
            chunk = of_gallery[start : start + num_rows]
            wanted = [(i, position[t]) for i, q in enumerate(chunk) for t in dict.fromkeys(truths[q]) if t in position]
            rows = _rows(queries, query_lengths, chunk)
            found = rank_rows(rows, np.array(wanted, np.int64).reshape(-1, 2), gallery, num_top, max_scores)
            best = found.top
            pictures = gallery.best_images(rows, best.queries, best.products).tolist()
            named = [(names[i], score) for i, score in zip(best.products.tolist(), best.scores.tolist(), strict=True)]
            ranks, own = found.ranks.tolist(), [images.ids[row] for row in pictures]
            of_truths, of_top = _slices(found.queries, len(chunk)), _slices(best.queries, len(chunk))
            for query, of_truth, of_best in zip(chunk, of_truths, of_top, strict=True):
                truth_ranks[query] = tuple(ranks[of_truth])
                top[query], shown[query] = tuple(named[of_best]), tuple(own[of_best])

    return Ranking(
        query_ids=tuple(queries.ids),
        gallery_ids=tuple(queries.gallery_ids),
        truth_ranks=tuple(truth_ranks),
        gallery_size=gallery_size,
        truths=tuple(truths),
        top=tuple(top),
        images=tuple(shown),
    )


def product_scores(queries: Queries, images: GalleryImages, query: int) -> Float32[np.ndarray, " p"]:
    """The scores of a query for all products of its gallery, in their order.

    They are computed in float32 and may differ from those of `rank` in the last bits, which a fit does not notice.

    Args:
        queries: to rank by the mean or by frames.
        images: of all galleries.
        query: its place among the queries.
    """
    products = images.products[queries.gallery_ids[query]]
    cosines, pooling = queries.rows(query) @ images.embeddings[products.rows].T, images.pooling(products)
    return pooling.cosines(cosines[0]) if queries.frame_mask is None else pooling.scores(scores_by_frames(cosines))


def group_rows(keys: Iterable[str]) -> dict[str, list[int]]:
    """{key: rows that have it, ascending}, keys in the order of their first rows."""
    groups = collections.defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    return dict(groups)


def _rows(queries: Queries, lengths: Float64[np.ndarray, "Q *T"], chunk: Sequence[int]) -> Rows:
    """What some queries are compared by."""
    own, of_own = queries.embeddings[chunk], lengths[chunk]
    if queries.frame_mask is None:
        return Rows(own, of_own, np.arange(len(chunk) + 1))
    mask = queries.frame_mask[chunk]
    edges = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    if mask.all():  # no second copy
        return Rows(own.reshape(-1, own.shape[-1]), of_own.reshape(-1), edges)
    return Rows(own[mask], of_own[mask], edges)


def _slices(queries: Int64[np.ndarray, " n"], num: int) -> list[slice]:
    """Where the entries of each query are."""
    return list(itertools.starmap(slice, itertools.pairwise(np.searchsorted(queries, np.arange(num + 1)).tolist())))


def _check_images(images: GalleryImages) -> Float64[np.ndarray, " G"]:
    """Checks the images, and returns the lengths of their embeddings."""
    if not len(images.embeddings) == len(images.gallery_ids) == len(images.ids):
        raise DataError(
            f"{len(images.embeddings)} gallery embeddings, {len(images.gallery_ids)} gallery ids and "
            f"{len(images.ids)} image ids: expected one of each for every image."
        )
    lengths = _finite_lengths(
        images.embeddings, lambda i: f"image {images.ids[i]!r} of gallery {images.gallery_ids[i]!r}"
    )
    names = images.gallery_ids, images.ids
    if len(set(zip(*names, strict=True))) == len(images.ids):
        return lengths
    seen: dict[tuple[str, str], int] = {}
    for row, (gallery_id, image_id) in enumerate(zip(*names, strict=True)):
        if (first := seen.setdefault((gallery_id, image_id), row)) != row:
            raise DataError(
                f"Image {image_id!r} is in gallery {gallery_id!r} twice (rows {first} and {row}): "
                "expected every image of a gallery once, since a second copy would lower the rank of others."
            )
    return lengths


def _check_queries(queries: Queries) -> Float64[np.ndarray, "Q *T"]:
    """Checks the queries, and returns the lengths of their embeddings."""
    ids = queries.ids
    if not len(queries.embeddings) == len(ids) == len(queries.gallery_ids) == len(queries.truths):
        raise DataError(
            f"{len(queries.embeddings)} query embeddings, {len(ids)} query ids, {len(queries.gallery_ids)} gallery ids "
            f"and {len(queries.truths)} ground truths: expected one of each for every query."
        )
    if len(set(ids)) < len(ids):
        twice = next(name for name, rows in group_rows(ids).items() if len(rows) > 1)
        raise DataError(f"Query {twice!r} is there twice: expected every query once, since each counts once.")
    lengths = _finite_lengths(queries.embeddings, lambda i: f"query {ids[i]!r}")
    if queries.frame_mask is not None and not queries.frame_mask.any(axis=1).all():
        empty = ids[int(queries.frame_mask.any(axis=1).argmin())]
        raise DataError(f"Query {empty!r} has no frame, so it cannot be ranked by frames: expected at least one.")
    return lengths


def _finite_lengths(
    embeddings: Float32[np.ndarray, "N *T E"], name_of: Callable[[int], str]
) -> Float64[np.ndarray, "N *T"]:
    lengths = lengths_of(embeddings)
    bad = np.flatnonzero(~np.isfinite(lengths).all(axis=tuple(range(1, lengths.ndim))))
    if bad.size:
        raise DataError(
            f"The embedding of {name_of(bad[0])} is not finite ({bad.size} of {len(lengths)} are not), so it cannot "
            "be ranked: expected finite numbers. Has the training diverged, or does a clip have no valid frame?"
        )
    return lengths


def _check_truths(queries: Queries, images: GalleryImages, names: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Checks the ground truths against the products of each gallery, and returns the true products of each query."""
    known, truths = {gallery_id: set(own) for gallery_id, own in names.items()}, []
    for query_id, gallery_id, wanted in zip(queries.ids, queries.gallery_ids, queries.truths, strict=True):
        if isinstance(wanted, str | bytes):
            raise DataError(
                f"The ground truth of query {query_id!r} is the string {wanted!r}: expected a list of image ids."
            )
        if not len(wanted):
            raise DataError(f"Query {query_id!r} has no ground truth: expected at least one image id.")
        if gallery_id not in known:
            raise DataError(
                f"Query {query_id!r} belongs to gallery {gallery_id!r}, which has no images; there are "
                f"{len(known)} galleries. Is the gallery data set that of these queries?"
            )
        truths.append(images.true_products(gallery_id, wanted))
        if known[gallery_id].issuperset(truths[-1]):
            continue
        for image_id, product_id in zip(wanted, truths[-1], strict=True):
            if product_id not in known[gallery_id] and f"{gallery_id}/{image_id}" not in images.skipped:
                size = len(images.products[gallery_id].rows)
                raise DataError(
                    f"Ground truth {image_id!r} of query {query_id!r} is not among the {size} images of gallery "
                    f"{gallery_id!r}, so the query cannot be a hit. Build the gallery again, or list the image among "
                    "the skipped ones."
                )
    return truths

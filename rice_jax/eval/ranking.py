"""Ranks every query's ground truth among the products of the query's own gallery."""

import collections
import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from rice_jax.eval.pooling import Pooling, inflation
from rice_jax.eval.products import Products, group_products
from rice_jax.eval.scores import center
from rice_jax.types import DataError

# Of a product: its negative score, whether it is a truth, its position. Entries sort in the order of `rank`.
Entry = tuple[float, bool, int]


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
    """

    embeddings: Float32[np.ndarray, "G E"]
    gallery_ids: Sequence[str]
    ids: Sequence[str]
    skipped: Collection[str] = ()
    product_ids: Sequence[str] | None = None
    sharpness: float = 0.0

    @functools.cached_property
    def products(self) -> dict[str | None, Products]:
        """The products of each gallery, and of all under None."""
        return group_products(self.gallery_ids, self._names)

    def names(self, products: Products) -> list[str]:
        """The products' ids."""
        return [self._names[row] for row in products.rows[products.edges[:-1]]]

    def pooling(self, products: Products) -> Pooling:
        """How products are scored by their images."""
        return Pooling(products.edges, self.sharpness, self._inflation[products.numbers])

    def true_products(self, gallery_id: str, truths: Sequence[str]) -> tuple[str, ...]:
        """The products of ground-truth images; a name that no image of the gallery has stands for a product."""
        return tuple(self._product_of.get((gallery_id, name), name) for name in truths)

    @property
    def _names(self) -> Sequence[str]:
        return self.ids if self.product_ids is None else self.product_ids

    @functools.cached_property
    def _inflation(self) -> Float32[np.ndarray, " P"]:
        return inflation(self.embeddings, self.products[None], self.sharpness)

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
        top: the best (product id, score) pairs, best first; after `rerank.reorder` the scores of matched products are
            the decoder's.
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
    _check_queries(queries)
    _check_images(images)
    _check_truths(queries, images)

    num_queries = len(queries.ids)
    gallery_size = np.zeros(num_queries, np.int64)
    truth_ranks: list[tuple[int, ...]] = [()] * num_queries
    top: list[tuple[tuple[str, float], ...]] = [()] * num_queries
    shown: list[tuple[str, ...]] = [()] * num_queries
    truths = [*map(images.true_products, queries.gallery_ids, queries.truths)]

    num_frames = 1 if queries.frame_mask is None else queries.frame_mask.shape[1]
    num_rows = max(1, math.isqrt(max_scores) // num_frames)  # large blocks convert the gallery less often
    for gallery_id, of_gallery in group_rows(queries.gallery_ids).items():
        gallery = _Gallery(images, images.products[gallery_id], queries.frame_mask is not None)
        names = images.names(gallery.products)
        position = {name: i for i, name in enumerate(names)}
        gallery_size[of_gallery] = len(names)
        for start in range(0, len(of_gallery), num_rows):
            chunk = of_gallery[start : start + num_rows]
            found = [[position[t] for t in dict.fromkeys(truths[query]) if t in position] for query in chunk]
            own = [queries.rows(query) for query in chunk]
            ranks, best = _rank_chunk(own, found, gallery, num_top, max_scores)
            for query, rows, of_truths, entries in zip(chunk, own, ranks, best, strict=True):
                truth_ranks[query] = of_truths
                top[query] = tuple((names[i], -negative) for negative, _, i in entries)
                shown[query] = tuple(images.ids[row] for row in gallery.best_images(rows, [i for _, _, i in entries]))

    return Ranking(
        query_ids=tuple(queries.ids),
        gallery_ids=tuple(queries.gallery_ids),
        truth_ranks=tuple(truth_ranks),
        gallery_size=gallery_size,
        truths=tuple(truths),
        top=tuple(top),
        images=tuple(shown),
    )


def group_rows(keys: Iterable[str]) -> dict[str, list[int]]:
    """{key: rows that have it, ascending}, keys in the order of their first rows."""
    groups = collections.defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    return dict(groups)


class _Gallery:
    """The products of a gallery, and the scores of some of them for some queries.

    A float32 matrix product gives the same pair different last bits in different blocks, so two copies of one picture
    would not tie, and ranks would depend on the blocks. Sums in float64 that are rounded once do not.
    """

    def __init__(self, images: GalleryImages, products: Products, by_frames: bool):
        self.products = products
        self._embeddings, self._pooling, self._by_frames = images.embeddings, images.pooling(products), by_frames
        self._center = center(images.embeddings, products.rows) if by_frames else 0.0

    def __len__(self) -> int:
        return len(self.products.edges) - 1

    def scores(
        self, rows: Float64[np.ndarray, "r E"], starts: Int64[np.ndarray, " q"], products: range | Sequence[int]
    ) -> Float32[np.ndarray, "q n"]:
        """Scores of queries, whose rows start at `starts`, and of some products."""
        images, edges = self._images(products)
        pooling = self._pooling._replace(edges=edges, inflation=self._pooling.inflation[products])
        scores = self._image_scores(rows, starts, images)
        return pooling.scores(scores) if self._by_frames else pooling.cosines(scores)

    def best_images(self, query: Float32[np.ndarray, "r E"], products: Sequence[int]) -> Int64[np.ndarray, " n"]:
        """The row of the image of each product that is most similar to a query."""
        images, edges = self._images(products)
        if len(edges) > len(images):
            return images  # they have one each
        [scores] = self._image_scores(query.astype(np.float64), np.zeros(1, np.int64), images)
        return images[[start + scores[start:end].argmax() for start, end in itertools.pairwise(edges)]]

    def _image_scores(
        self, rows: Float64[np.ndarray, "r E"], starts: Int64[np.ndarray, " q"], images: Int64[np.ndarray, " i"]
    ) -> Float32[np.ndarray, "q i"]:
        cosines = rows @ (self._embeddings[images].astype(np.float64) - self._center).T
        return (np.maximum.reduceat(cosines, starts) if self._by_frames else cosines).astype(np.float32)

    def _images(self, products: range | Sequence[int]) -> tuple[Int64[np.ndarray, " i"], Int64[np.ndarray, " n1"]]:
        """The rows of the products' images, and where those of each begin among them."""
        rows, edges = self.products.rows, self.products.edges
        if isinstance(products, range):
            edges = edges[products.start : products.stop + 1]
            return rows[edges[0] : edges[-1]], edges - edges[0]
        own = [self.products.images(product) for product in products]
        return np.concatenate([rows[:0], *own]), np.cumsum([0, *map(len, own)])


def _rank_chunk(
    queries: Sequence[Float32[np.ndarray, "_ E"]],
    truths: Sequence[Sequence[int]],
    gallery: _Gallery,
    num_top: int,
    max_scores: int,
) -> tuple[list[tuple[int, ...]], list[list[Entry]]]:
    """Ranks some queries of one gallery, a block of its products at a time.

    Returns:
        The ranks of each query's truths, and its best products in order.
    """
    rows = np.concatenate(queries).astype(np.float64)
    starts = np.cumsum([0, *map(len, queries[:-1])])
    first = np.zeros(1, np.int64)
    truth_scores = [
        gallery.scores(query.astype(np.float64), first, own)[0] for query, own in zip(queries, truths, strict=True)
    ]
    sorted_scores = [np.sort(own)[::-1] for own in truth_scores]
    num_truths = np.array([len(own) for own in truths])
    truth_rows = np.repeat(np.arange(len(truths)), num_truths)
    truth_columns = np.concatenate([np.array(own, np.int64) for own in truths])
    all_truth_scores = np.concatenate(truth_scores)

    # Rows with a first truth, those with a second one, …, and these truths' scores.
    with_truth = [np.flatnonzero(num_truths > place) for place in range(num_truths.max())]
    nth_scores = [np.array([sorted_scores[row][place] for row in found]) for place, found in enumerate(with_truth)]
    not_worse = np.zeros((len(queries), len(with_truth)), np.int64)
    top: list[list[Entry]] = [[] for _ in truths]
    last_of_top = np.full(len(queries), -np.inf, np.float32)
    for start, scores in _score_blocks(rows, starts, gallery, max_scores):
        # A truth must have the same score in both comparisons, or it could be ranked before or after itself.
        here = (truth_columns >= start) & (truth_columns < start + scores.shape[1])
        scores[truth_rows[here], truth_columns[here] - start] = all_truth_scores[here]
        for place, (found, nth) in enumerate(zip(with_truth, nth_scores, strict=True)):
            not_worse[found, place] += np.count_nonzero(scores[found] >= nth[:, None], axis=1)
        candidates = scores >= last_of_top[:, None]
        for row in np.flatnonzero(candidates.any(axis=1)).tolist():
            columns = np.flatnonzero(candidates[row])
            top[row] = _best(top[row], scores[row, columns], columns + start, truths[row], num_top)
            if len(top[row]) == num_top:
                last_of_top[row] = -top[row][-1][0]

    # Before a truth come all products that are no truth and not worse, and the truths before it.
    ranks = [
        tuple((1 + np.arange(len(own)) + counts[: len(own)] - (own >= own[:, None]).sum(axis=1)).tolist())
        for own, counts in zip(sorted_scores, not_worse, strict=True)
    ]
    return ranks, top


def _best(
    top: list[Entry],
    scores: Float32[np.ndarray, " n"],
    positions: Int64[np.ndarray, " n"],
    truths: Sequence[int],
    num_top: int,
) -> list[Entry]:
    """The best of the previous best and some further products, in the order of `rank`; a threshold saves a sort."""
    if (place := len(scores) - num_top) > 0:
        kept = scores >= np.partition(scores, place)[place]
        scores, positions = scores[kept], positions[kept]
    others = [(-score, i in truths, i) for score, i in zip(scores.tolist(), positions.tolist(), strict=True)]
    return heapq.nsmallest(num_top, top + others)


def _score_blocks(
    rows: Float64[np.ndarray, "r E"], starts: Int64[np.ndarray, " q"], gallery: _Gallery, max_scores: int
) -> Iterator[tuple[int, Float32[np.ndarray, "q n"]]]:
    """Yields (position of the first product, scores of the queries and a block of products)."""
    num_columns = max(1, max_scores // max(rows.shape))  # bounds the scores, and the embeddings that make them
    edges, start = gallery.products.edges, 0
    while start < len(gallery):
        end = max(start + 1, int(np.searchsorted(edges, edges[start] + num_columns, side="right")) - 1)
        yield start, gallery.scores(rows, starts, range(start, end))
        start = end


def _check_images(images: GalleryImages) -> None:
    if not len(images.embeddings) == len(images.gallery_ids) == len(images.ids):
        raise DataError(
            f"{len(images.embeddings)} gallery embeddings, {len(images.gallery_ids)} gallery ids and "
            f"{len(images.ids)} image ids: expected one of each for every image."
        )
    _check_finite(images.embeddings, lambda i: f"image {images.ids[i]!r} of gallery {images.gallery_ids[i]!r}")
    seen: dict[tuple[str, str], int] = {}
    for row, (gallery_id, image_id) in enumerate(zip(images.gallery_ids, images.ids, strict=True)):
        if (first := seen.setdefault((gallery_id, image_id), row)) != row:
            raise DataError(
                f"Image {image_id!r} is in gallery {gallery_id!r} twice (rows {first} and {row}): "
                "expected every image of a gallery once, since a second copy would lower the rank of others."
            )


def _check_queries(queries: Queries) -> None:
    ids = queries.ids
    if not len(queries.embeddings) == len(ids) == len(queries.gallery_ids) == len(queries.truths):
        raise DataError(
            f"{len(queries.embeddings)} query embeddings, {len(ids)} query ids, {len(queries.gallery_ids)} gallery ids "
            f"and {len(queries.truths)} ground truths: expected one of each for every query."
        )
    if len(set(ids)) < len(ids):
        twice = next(name for name, rows in group_rows(ids).items() if len(rows) > 1)
        raise DataError(f"Query {twice!r} is there twice: expected every query once, since each counts once.")
    _check_finite(queries.embeddings, lambda i: f"query {ids[i]!r}")
    if queries.frame_mask is not None and not queries.frame_mask.any(axis=1).all():
        empty = ids[int(queries.frame_mask.any(axis=1).argmin())]
        raise DataError(f"Query {empty!r} has no frame, so it cannot be ranked by frames: expected at least one.")


def _check_finite(embeddings: np.ndarray, name_of: Callable[[int], str]) -> None:
    # A float64 sum of float32 numbers cannot overflow, and needs no copy of the embeddings.
    bad = np.flatnonzero(~np.isfinite(embeddings.sum(axis=tuple(range(1, embeddings.ndim)), dtype=np.float64)))
    if bad.size:
        raise DataError(
            f"The embedding of {name_of(bad[0])} is not finite ({bad.size} of {len(embeddings)} are not), so it cannot "
            "be ranked: expected finite numbers. Has the training diverged, or does a clip have no valid frame?"
        )


def _check_truths(queries: Queries, images: GalleryImages) -> None:
    known = {
        gallery_id: set(images.names(own)) for gallery_id, own in images.products.items() if gallery_id is not None
    }
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
        for image_id, product_id in zip(wanted, images.true_products(gallery_id, wanted), strict=True):
            if product_id not in known[gallery_id] and f"{gallery_id}/{image_id}" not in images.skipped:
                size = len(images.products[gallery_id].rows)
                raise DataError(
                    f"Ground truth {image_id!r} of query {query_id!r} is not among the {size} images of gallery "
                    f"{gallery_id!r}, so the query cannot be a hit. Build the gallery again, or list the image among "
                    "the skipped ones."
                )

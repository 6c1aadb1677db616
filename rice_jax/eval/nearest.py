"""The ranks that float64 gives, mostly from float32 products.

A float32 matrix product gives the same pair different last bits in different blocks, so two copies of one picture would
not tie, and ranks would depend on the blocks. The score of a pair is therefore a sum in float64, in an order that
depends on nothing else, rounded once. It is computed only where it decides: if the float32 product is farther from the
score to compare with than the two can differ (`Gallery.error`), that product decides.

The error of a float32 product of `E` numbers is at most gamma(E) · |a| · |b|, gamma(n) = n u / (1 - n u), u = 2^-24, in
any order of summation and with or without fused multiply-add (Higham, "Accuracy and Stability of Numerical Algorithms",
2002, section 3.1), as long as nothing overflows or underflows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int64

from rice_jax.eval.pooling import LEAST_SHARPNESS, Pooling
from rice_jax.eval.products import Products
from rice_jax.eval.scores import center

UNIT = 2.0**-24  # unit roundoff of float32
SMALLEST = 2.0**-126  # normal number of float32
LARGEST = 2.0**126  # that a product may become without overflow
PART = 2**16  # numbers that are made float64 at a time: they stay in the processor's cache


class Rows(NamedTuple):
    """What some queries are compared by: each query's embedding, or those of its frames."""

    vectors: Float32[np.ndarray, "r E"]
    lengths: Float64[np.ndarray, " r"]  # of the vectors
    edges: Int[np.ndarray, " q1"]  # where the rows of each query begin, and their number

    def __len__(self) -> int:
        return len(self.edges) - 1


class Block(NamedTuple):
    """Approximate scores of some queries for a range of products.

    Without frames, `scores` and `cosines` may be one array.
    """

    start: int  # position of the first product
    scores: Float32[np.ndarray, "q n"]
    cosines: Float32[np.ndarray, "r i"]  # of rows and images; with frames, minus the center's


class Entries(NamedTuple):
    """Products of queries with their scores."""

    queries: Int64[np.ndarray, " n"]
    products: Int64[np.ndarray, " n"]
    scores: Float32[np.ndarray, " n"]
    are_truths: Bool[np.ndarray, " n"]

    def take(self, which: Int64[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "Entries":
        """Selects some of the entries."""
        return Entries(*(values[which] for values in self))


class Found(NamedTuple):
    """How some queries are ranked."""

    queries: Int64[np.ndarray, " t"]  # of the truths, ascending
    ranks: Int64[np.ndarray, " t"]  # of the truths, ascending for each query
    top: Entries  # the first products of each query, in order


class Gallery:
    """The products of a gallery, and their scores for some queries."""

    def __init__(
        self,
        vectors: Float32[np.ndarray, "G E"],
        lengths: Float64[np.ndarray, " G"],
        products: Products,
        pooling: Pooling,
        by_frames: bool,
    ):
        self.products = products
        self._vectors, self._pooling, self._by_frames = vectors, pooling, by_frames
        self._center = center(vectors, products.rows) if by_frames else None
        self._length = float(lengths[products.rows].max())
        if self._center is not None:
            self._length += float(np.linalg.norm(self._center))  # bounds that of a vector minus the center
        self._sizes = np.diff(products.edges)
        self._pools = len(products.rows) > len(self)

    def __len__(self) -> int:
        return len(self._sizes)

    def error(self, rows: Rows) -> Float64[np.ndarray, " q"]:
        """Bounds how far a product's score by `approximate` and a float32 limit near it can be off, for each query.

        Beyond the float32 product's own error, it allows for 16 roundings to float32: of both scores, of the center, of
        the difference from it, and of the limits. The second term covers numbers so small that they lose bits or are
        taken for 0. Pooling changes a score by no more than its images' scores, and rounds in float64 and to float32.
        """
        num = rows.vectors.shape[1] + 16
        of_rows = np.maximum.reduceat(rows.lengths, rows.edges[:-1])
        error = num * UNIT / (1 - num * UNIT) * of_rows * self._length
        error += 4 * num * SMALLEST * (1 + of_rows + self._length)
        if self._pools:
            sharpness = max(self._pooling.sharpness, LEAST_SHARPNESS)
            error += (self._sizes.max() + 16) * 2.0**-51 / sharpness
            if not self._by_frames:
                error += 4 * UNIT * np.abs(self._pooling.inflation).max()
        return error

    def approximate(self, rows: Rows, products: range) -> Block:
        """The scores of some products, each at most `error` off. With frames, so is each frame's cosine."""
        edges = self.products.edges[products.start : products.stop + 1]
        images = self.products.rows[edges[0] : edges[-1]]
        follow = images[-1] - images[0] == len(images) - 1 and (np.diff(images) == 1).all()
        vectors = self._vectors[images[0] : images[-1] + 1] if follow else self._vectors[images]
        own = rows.vectors
        if max(1, rows.lengths.max()) * self._length >= LARGEST:
            own, vectors = own.astype(np.float64), vectors.astype(np.float64)
        if self._center is not None:
            vectors = vectors - self._center.astype(vectors.dtype)
        cosines = (own @ vectors.T).astype(np.float32, copy=False)
        of_images = cosines
        if self._by_frames:
            of_images = np.stack([of_query.max(axis=0) for of_query in np.split(cosines, rows.edges[1:-1])])
        inflation = self._pooling.inflation[products.start : products.stop]
        return Block(products.start, self._pool(of_images, edges - edges[0], inflation), cosines)

    def exact(
        self,
        rows: Rows,
        queries: Int64[np.ndarray, " n"],
        products: Int64[np.ndarray, " n"],
        block: Block | None = None,
    ) -> Float32[np.ndarray, " n"]:
        """The scores of some pairs of a query and a product; they depend on nothing but the pair.

        Given the block of these products, only frames whose approximate cosine is near the largest are summed; the
        result is the same.
        """
        if not self._pools:
            return self._of_images(rows, queries, products, block)
        places, edges = self._images(products)
        of_images = self._of_images(rows, np.repeat(queries, np.diff(edges)), places, block)
        return self._pool(of_images, edges, self._pooling.inflation[products])

    def best_images(
        self, rows: Rows, queries: Int64[np.ndarray, " n"], products: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """The row of the image that is most similar to the query, of each pair of a query and a product."""
        if not self._pools or not len(products):
            return self.products.rows[products]
        places, edges = self._images(products)
        scores = self._of_images(rows, np.repeat(queries, np.diff(edges)), places)
        best = np.repeat(np.maximum.reduceat(scores, edges[:-1]), np.diff(edges))
        are_best = np.flatnonzero(scores == best)
        return self.products.rows[places[are_best[np.searchsorted(are_best, edges[:-1])]]]

    def _pool(
        self, scores: Float32[np.ndarray, "*B i"], edges: Int[np.ndarray, " n1"], inflation: Float32[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "*B n"]:
        if not self._pools:
            return scores
        pooling = self._pooling._replace(edges=edges, inflation=inflation)
        return pooling.scores(scores) if self._by_frames else pooling.cosines(scores)

    def _of_images(
        self,
        rows: Rows,
        queries: Int64[np.ndarray, " n"],
        places: Int64[np.ndarray, " n"],
        block: Block | None = None,
    ) -> Float32[np.ndarray, " n"]:
        """The scores of pairs of a query and an image, which is given by its place in `products.rows`."""
        images = self.products.rows[places]
        if self._center is None or not len(places):
            return self._sums(rows.vectors, queries, images).astype(np.float32)
        own, starts = _ranges(rows.edges[queries], np.diff(rows.edges)[queries])
        pairs = np.repeat(np.arange(len(places)), np.diff(starts))
        if block is not None:
            cosines = block.cosines[own, (places - self.products.edges[block.start])[pairs]]
            # Twice: the largest may be too large by the error, and the best too small.
            least = np.maximum.reduceat(cosines, starts[:-1]) - 2 * self.error(rows)[queries]
            may_be_best = ~(cosines < _round(least)[pairs])  # all, if the error is not a number
            own, pairs = own[may_be_best], pairs[may_be_best]
            starts = np.searchsorted(pairs, np.arange(len(places) + 1))
        sums = self._sums(rows.vectors, own, images[pairs])
        return np.maximum.reduceat(sums, starts[:-1]).astype(np.float32)

    def _sums(
        self, vectors: Float32[np.ndarray, "r E"], rows: Int64[np.ndarray, " n"], images: Int64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """The products of pairs of rows, each summed in the same order; that of a matrix product would vary."""
        sums, part = np.empty(len(rows)), max(1, PART // vectors.shape[1])
        for start in range(0, len(rows), part):
            some = slice(start, start + part)
            own = self._vectors[images[some]].astype(np.float64)
            if self._center is not None:
                own -= self._center
            np.vecdot(vectors[rows[some]].astype(np.float64), own, out=sums[some])
        return sums

    def _images(self, products: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " i"], Int64[np.ndarray, " n1"]]:
        """The places of the products' images, and where those of each begin among them."""
        return _ranges(self.products.edges[products], self._sizes[products])


def rank_rows(
    rows: Rows,
    truths: Int64[np.ndarray, "t 2"],
    gallery: Gallery,
    num_top: int,
    max_scores: int,
) -> Found:
    """Ranks some queries in one gallery, a block of its products at a time, in the order of `ranking.rank`.

    Args:
        rows: of the queries.
        truths: pairs of a query and one of its true products, each once.
        gallery: the products.
        num_top: number of first products to find.
        max_scores: largest number of scores at a time.
    """
    queries, products = truths.T
    scores = gallery.exact(rows, queries, products)
    own = Entries(queries, products, scores, np.ones(len(truths), bool)).take(np.lexsort((-scores, queries)))
    places = _places(own.queries)
    by_place = [np.flatnonzero(places == place) for place in range(int(places.max(initial=-1)) + 1)]
    others_before = np.zeros(len(own.queries), np.int64)  # products that are no truth and stand before each truth
    error, top = gallery.error(rows), own
    last_of_top = np.full(len(rows), np.finfo(np.float32).min)
    for block in _score_blocks(rows, gallery, max_scores):
        start, scores = block.start, block.scores
        here = (own.products >= start) & (own.products < start + scores.shape[1])
        scores[own.queries[here], own.products[here] - start] = -np.inf  # only others are counted
        for of_place in by_place:
            nth = own.take(of_place)
            high, low = (_round(nth.scores + sign * error[nth.queries]) for sign in (1, -1))
            own_scores = scores if len(high) == len(scores) else scores[nth.queries]
            are_before = own_scores >= high[:, None]
            row, column = _pairs((own_scores < low[:, None]) == are_before)
            unsure = row[gallery.exact(rows, nth.queries[row], column + start, block) >= nth.scores[row]]
            others_before[of_place] += are_before.sum(axis=1) + np.bincount(unsure, minlength=len(high))
        row, column = _pairs(_candidates(scores, last_of_top, error, num_top))
        column += start
        exact = gallery.exact(rows, row, column, block)
        top = _first(top, Entries(row, column, exact, np.zeros(len(row), bool)), num_top)
        last = top.take(_places(top.queries) == num_top - 1)
        last_of_top[last.queries] = _round(last.scores - error[last.queries])
    return Found(own.queries, 1 + places + others_before, top)


def lengths_of(vectors: Float32[np.ndarray, "*n E"]) -> Float64[np.ndarray, "*n"]:
    """The lengths of embeddings; of any float32 numbers, their squares' sum in float64 is finite."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    found, part = np.empty(len(flat)), max(1, PART // flat.shape[1])
    for start in range(0, len(flat), part):
        own = flat[start : start + part].astype(np.float64)
        np.vecdot(own, own, out=found[start : start + part])
    return np.sqrt(found).reshape(vectors.shape[:-1])


def _candidates(
    block: Float32[np.ndarray, "q n"],
    least: Float32[np.ndarray, " q"],
    error: Float64[np.ndarray, " q"],
    num_top: int,
) -> Bool[np.ndarray, "q n"]:
    """Which products may be among the first."""
    candidates = block >= least[:, None]
    place = block.shape[1] - num_top
    if place > 0 and np.count_nonzero(candidates) > 2 * num_top * len(block):
        last = np.partition(block, place, axis=1)[:, place]
        candidates &= block >= _round(last - 2 * error)[:, None]
    return candidates


def _first(some: Entries, others: Entries, num: int) -> Entries:
    """The first of each query's entries, in order."""
    joined = Entries(*map(np.concatenate, zip(some, others, strict=True)))
    order = np.lexsort((joined.products, joined.are_truths, -joined.scores, joined.queries))
    kept = order[_places(joined.queries[order]) < num]
    return joined.take(kept)


def _score_blocks(rows: Rows, gallery: Gallery, max_scores: int) -> Iterator[Block]:
    """Yields the approximate scores of the queries and all products, some products at a time."""
    num_columns = max(1, max_scores // max(rows.vectors.shape))  # bounds the scores, and the embeddings that make them
    edges, start = gallery.products.edges, 0
    while start < len(gallery):
        end = max(start + 1, int(np.searchsorted(edges, edges[start] + num_columns, side="right")) - 1)
        yield gallery.approximate(rows, range(start, end))
        start = end


def _round(limits: Float64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    return limits.astype(np.float32)  # comparing float32 numbers with float64 ones is slow


def _pairs(mask: Bool[np.ndarray, "q n"]) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """The places of a mask; `np.nonzero` takes several times as long."""
    return np.divmod(np.flatnonzero(mask), mask.shape[1])


def _places(queries: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The place of each entry among those of its query, from 0; the entries of a query are neighbors."""
    return np.arange(len(queries)) - np.searchsorted(queries, queries)


def _ranges(
    starts: Int[np.ndarray, " n"], sizes: Int[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " i"], Int64[np.ndarray, " n1"]]:
    """The concatenated ranges that start at `starts`, and where each begins."""
    edges = np.concatenate([[0], np.cumsum(sizes)])
    return np.arange(edges[-1]) + np.repeat(starts - edges[:-1], sizes), edges

"""Ranks every query's ground truth among the images of the query's own gallery."""

import collections
import dataclasses
import functools
import heapq
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from rice_jax.eval.scores import center
from rice_jax.types import DataError

# Of an image: its negative score, whether it is a truth, its position. Entries sort in the order of `rank`.
Entry = tuple[float, bool, int]


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries to rank; every field has one entry per query.

    Attributes:
        embeddings: L2-normalized, finite; of each query, or of each frame to rank by frames.
        ids: the queries' names, each once.
        gallery_ids: the gallery of each query.
        truths: ground-truth image ids of each query, at least one; any of them is a hit.
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
    """The images of all galleries; every field but the last has one entry per image.

    Attributes:
        embeddings: L2-normalized, finite.
        gallery_ids: the gallery of each image; an image may be in several galleries, in each of them once.
        ids: the images' names.
        skipped: "gallery id/image id" of images that are known to be left out of a gallery, e.g. unreadable pictures.
    """

    embeddings: Float32[np.ndarray, "G E"]
    gallery_ids: Sequence[str]
    ids: Sequence[str]
    skipped: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How each query was ranked in its own gallery; every field has one entry per query, in the order of the queries.

    Attributes:
        query_ids: the queries' names.
        gallery_ids: the gallery in which each query was ranked.
        truth_ranks: 1-based positions of the query's ground truths that are in its gallery, ascending.
        gallery_size: number of images in the query's gallery.
        truths: the ground-truth image ids.
        top: the best (image id, score) pairs, best first; after `rerank.reorder` the scores of matched images are the
            decoder's.
    """

    query_ids: tuple[str, ...]
    gallery_ids: tuple[str, ...]
    truth_ranks: tuple[tuple[int, ...], ...]
    gallery_size: Int64[np.ndarray, " Q"]
    truths: tuple[tuple[str, ...], ...]
    top: tuple[tuple[tuple[str, float], ...], ...]

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

    Images are ordered by score, highest first. Among equal scores, images that are no truth of the query come before
    its truths, so that a tie never helps; then gallery order decides. At most `max_scores` scores exist at a time,
    however large a gallery is.

    Args:
        queries: to rank.
        images: of all galleries, in gallery order. A truth among `images.skipped` is no error; a query without another
            truth is a miss.
        num_top: number of best images to keep by name.
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
    galleries = _group_images(images)
    _check_truths(queries, galleries, images.skipped)

    num_queries = len(queries.ids)
    gallery_size = np.zeros(num_queries, np.int64)
    truth_ranks: list[tuple[int, ...]] = [()] * num_queries
    top: list[tuple[tuple[str, float], ...]] = [()] * num_queries

    num_frames = 1 if queries.frame_mask is None else queries.frame_mask.shape[1]
    num_rows = max(1, math.isqrt(max_scores) // num_frames)  # large blocks convert the gallery less often
    for gallery_id, of_gallery in group_rows(queries.gallery_ids).items():
        rows = galleries[gallery_id]  # {image id: row of images}, in gallery order
        names = list(rows)
        position = {name: i for i, name in enumerate(names)}
        gallery = _Gallery(images.embeddings, np.fromiter(rows.values(), np.int64), queries.frame_mask is not None)
        gallery_size[of_gallery] = len(names)
        for start in range(0, len(of_gallery), num_rows):
            chunk = of_gallery[start : start + num_rows]
            found = [[position[t] for t in dict.fromkeys(queries.truths[query]) if t in position] for query in chunk]
            own = [queries.rows(query) for query in chunk]
            ranks, best = _rank_chunk(own, found, gallery, num_top, max_scores)
            for query, of_truths, entries in zip(chunk, ranks, best, strict=True):
                truth_ranks[query] = of_truths
                top[query] = tuple((names[i], -negative) for negative, _, i in entries)

    return Ranking(
        query_ids=tuple(queries.ids),
        gallery_ids=tuple(queries.gallery_ids),
        truth_ranks=tuple(truth_ranks),
        gallery_size=gallery_size,
        truths=tuple(tuple(t) for t in queries.truths),
        top=tuple(top),
    )


def group_rows(keys: Iterable[str]) -> dict[str, list[int]]:
    """{key: rows that have it, ascending}, keys in the order of their first rows."""
    groups = collections.defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    return dict(groups)


class _Gallery:
    """The images of a gallery, and the scores of some of them for some queries.

    A float32 matrix product gives the same pair different last bits in different blocks, so two copies of one picture
    would not tie, and ranks would depend on the blocks. Sums in float64 that are rounded once do not.
    """

    def __init__(self, embeddings: Float32[np.ndarray, "N E"], rows: Int64[np.ndarray, " G"], by_frames: bool):
        self._embeddings, self._rows, self._by_frames = embeddings, rows, by_frames
        self._center = center(embeddings, rows) if self._by_frames else 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def scores(
        self, rows: Float64[np.ndarray, "r E"], starts: Int64[np.ndarray, " q"], places: slice | Sequence[int]
    ) -> Float32[np.ndarray, "q n"]:
        """Scores of queries, whose rows start at `starts`, and of the images at some places of the gallery."""
        images = self._embeddings[self._rows[places]].astype(np.float64) - self._center
        cosines = rows @ images.T
        return (np.maximum.reduceat(cosines, starts) if self._by_frames else cosines).astype(np.float32)


def _rank_chunk(
    queries: Sequence[Float32[np.ndarray, "_ E"]],
    truths: Sequence[Sequence[int]],
    gallery: _Gallery,
    num_top: int,
    max_scores: int,
) -> tuple[list[tuple[int, ...]], list[list[Entry]]]:
    """Ranks some queries of one gallery, a block of its images at a time.

    Returns:
        The ranks of each query's truths, and its best images in order.
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

    # Before a truth come all images that are no truth and not worse, and the truths before it.
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
    """The best of the previous best and some further images, in the order of `rank`; a threshold avoids a full sort."""
    if (place := len(scores) - num_top) > 0:
        kept = scores >= np.partition(scores, place)[place]
        scores, positions = scores[kept], positions[kept]
    others = [(-score, i in truths, i) for score, i in zip(scores.tolist(), positions.tolist(), strict=True)]
    return heapq.nsmallest(num_top, top + others)


def _score_blocks(
    rows: Float64[np.ndarray, "r E"], starts: Int64[np.ndarray, " q"], gallery: _Gallery, max_scores: int
) -> Iterator[tuple[int, Float32[np.ndarray, "q n"]]]:
    """Yields (position of the first image, scores of the queries and a block of images)."""
    num_columns = max(1, max_scores // max(rows.shape))  # bounds the scores, and the embeddings that make them
    for start in range(0, len(gallery), num_columns):
        yield start, gallery.scores(rows, starts, slice(start, start + num_columns))


def _group_images(images: GalleryImages) -> dict[str, dict[str, int]]:
    """{gallery id: {image id: row of the images}}, in gallery order."""
    if not len(images.embeddings) == len(images.gallery_ids) == len(images.ids):
        raise DataError(
            f"{len(images.embeddings)} gallery embeddings, {len(images.gallery_ids)} gallery ids and "
            f"{len(images.ids)} image ids: expected one of each for every image."
        )
    _check_finite(images.embeddings, lambda i: f"image {images.ids[i]!r} of gallery {images.gallery_ids[i]!r}")
    galleries: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for row, (gallery_id, image_id) in enumerate(zip(images.gallery_ids, images.ids, strict=True)):
        gallery = galleries[gallery_id]
        if image_id in gallery:
            raise DataError(
                f"Image {image_id!r} is in gallery {gallery_id!r} twice (rows {gallery[image_id]} and {row}): "
                "expected every image of a gallery once, since a second copy would lower the rank of others."
            )
        gallery[image_id] = row
    return dict(galleries)


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


def _check_truths(queries: Queries, galleries: dict[str, dict[str, int]], skipped: Collection[str]) -> None:
    for query_id, gallery_id, wanted in zip(queries.ids, queries.gallery_ids, queries.truths, strict=True):
        if isinstance(wanted, str | bytes):
            raise DataError(
                f"The ground truth of query {query_id!r} is the string {wanted!r}: expected a list of image ids."
            )
        if not len(wanted):
            raise DataError(f"Query {query_id!r} has no ground truth: expected at least one image id.")
        if gallery_id not in galleries:
            raise DataError(
                f"Query {query_id!r} belongs to gallery {gallery_id!r}, which has no images; there are "
                f"{len(galleries)} galleries. Is the gallery data set that of these queries?"
            )
        for image_id in wanted:
            if image_id not in galleries[gallery_id] and f"{gallery_id}/{image_id}" not in skipped:
                raise DataError(
                    f"Ground truth {image_id!r} of query {query_id!r} is not among the {len(galleries[gallery_id])} "
                    f"images of gallery {gallery_id!r}, so the query cannot be a hit. Build the gallery again, or list "
                    "the image among the skipped ones."
                )

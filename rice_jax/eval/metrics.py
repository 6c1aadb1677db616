"""Rank-k over a set of queries and its subsets, beside what a random order would score."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from rice_jax.eval.ranking import Ranking, group_rows
from rice_jax.types import DataError

CUTOFFS = (1, 3, 5, 10)
DRAWS = 1000  # of galleries, for an interval
LEVEL = 0.95  # share of the draws that an interval holds
# The levels of RICE.md section 8 in the order in which people expect them; other values follow in alphabetical order.
_LEVELS = ("small", "short", "few", "medium", "large", "long", "abundant")


@dataclasses.dataclass(frozen=True)
class Score:
    """Rank-k of some queries.

    Attributes:
        num_queries: how many queries the shares are of.
        rank: {"rank-1": share in 0..1 of the queries with a ground truth among the first 1, ...}.
        chance: the same shares as expected of a random order of the same galleries.
        interval: {"rank-1": the ends of its confidence interval, ...}; None = all queries are of one gallery.
    """

    num_queries: int
    rank: dict[str, float]
    chance: dict[str, float]
    interval: dict[str, tuple[float, float]] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Score":
        """The inverse of `dataclasses.asdict`, also after JSON, which knows no tuples."""
        interval = values.get("interval")
        ends = interval and {cutoff: tuple(pair) for cutoff, pair in interval.items()}
        return cls(**{**values, "interval": ends})


@dataclasses.dataclass(frozen=True)
class Galleries:
    """Number of galleries that were queried, and of images in them."""

    num: int
    min_size: int
    mean_size: float
    max_size: int


@dataclasses.dataclass(frozen=True)
class Result:
    """All that is said about one evaluation, as plain numbers and names.

    Attributes:
        score: over all queries of the ground-truth file.
        num_missing: how many of these are misses because they could not be ranked: left out when the data set was
            built, or no ground truth left in the gallery.
        galleries: the galleries' sizes.
        subsets: {label, as "scale": {value, as "small": its score}}.
        num_unknown: {label: number of ranked queries whose value is unknown and which are in none of its subsets}.
        seconds: what the ranking took by the clock, compilation included; None = was not measured.
        num_without_truth: how many more could have been queries, had they any ground truth; they are in no share.
    """

    score: Score
    num_missing: int
    galleries: Galleries
    subsets: dict[str, dict[str, Score]]
    num_unknown: dict[str, int]
    seconds: float | None = None
    num_without_truth: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The result as dicts, numbers and strings, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Result":
        """The inverse of `to_dict`."""
        return cls(
            score=Score.from_dict(values["score"]),
            num_missing=values["num_missing"],
            galleries=Galleries(**values["galleries"]),
            subsets={
                label: {value: Score.from_dict(score) for value, score in scores.items()}
                for label, scores in values["subsets"].items()
            },
            num_unknown=dict(values["num_unknown"]),
            seconds=values.get("seconds"),
            num_without_truth=values.get("num_without_truth", 0),
        )


def evaluate(
    ranking: Ranking,
    *,
    num_queries: int | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> Result:
    """Turns a ranking into rank-k, overall and by subset.

    Args:
        ranking: at least one query.
        num_queries: number of queries in the ground-truth file, the denominator: those that were not ranked are
            misses. None = all were ranked.
        labels: {label: each ranked query's value}, as {"scale": ["small", ...]}; "" = unknown, left out of the
            label's subsets and counted. Values that differ in case only are one subset, spelt as met first. A query
            that was not ranked has no values and is in no subset.
        cutoffs: the k of rank-k.

    Returns:
        The result. A query that could not be ranked counts as a miss for chance too, so both shares have the
        same denominator.

    Raises:
        DataError: for no queries, fewer `num_queries` than were ranked, and labels of another number of queries.

    Source: RICE.md section 8; `hit@k`, denominators and subsets.
    """
    ranked = len(ranking.query_ids)
    num_queries = ranked if num_queries is None else num_queries
    if not ranked:
        raise DataError("No query was ranked: rank-k is a share of at least one. Is the query data set empty?")
    if num_queries < ranked:
        raise DataError(
            f"{ranked} queries were ranked, but the ground truth has only {num_queries}: expected a ground truth for "
            "every query. Is the data set that of this ground-truth file?"
        )
    subsets, num_unknown = {}, {}
    for label, values in (labels or {}).items():
        if len(values) != ranked:
            raise DataError(f"{len(values)} values of {label!r} for {ranked} ranked queries: expected one a query.")
        groups = _group_by_value(values)
        num_unknown[label] = len(groups.pop("", []))
        subsets[label] = {value: _score(ranking, rows, len(rows), cutoffs) for value, rows in groups.items()}

    return Result(
        score=_score(ranking, range(ranked), num_queries, cutoffs),
        num_missing=num_queries - int((ranking.rank > 0).sum()),
        galleries=_galleries(ranking),
        subsets=subsets,
        num_unknown=num_unknown,
    )


def chance(gallery_size: Int64[np.ndarray, " Q"], num_truths: Int64[np.ndarray, " Q"], k: int) -> np.ndarray:
    """Probability that a random order of each query's gallery has a ground truth among the first k.

    Args:
        gallery_size: images in each query's gallery, G >= 1.
        num_truths: of which m are ground truths, 0 <= m <= G.
        k: at least 1; may be more than G.

    Returns:
        1 - C(G - m, k) / C(G, k), float64 [Q].
    """
    no_hit = np.ones(len(gallery_size))
    for drawn in range(k):
        # The next image drawn is no truth, given that none before it was.
        no_hit *= np.maximum(gallery_size - num_truths - drawn, 0) / np.maximum(gallery_size - drawn, 1)
    return np.where(num_truths > 0, 1 - no_hit, 0.0)


def confidence_intervals(
    values: Float[np.ndarray, "Q C"], gallery_ids: Sequence[str]
) -> Float[np.ndarray, "C 2"] | None:
    """Bootstraps means over queries by drawing galleries: the queries of a livestream stand or fall together.

    Args:
        values: of each query, e.g. 1 for a hit and 0 for a miss at each of C cutoffs.
        gallery_ids: the gallery of each query.

    Returns:
        The ends of the middle 95 % of the means in as many galleries drawn with replacement, the same for the same
        values; None of a single gallery. Of a few galleries they are too narrow: what is drawn hardly varies.

    Source: Field and Welsh, "Bootstrapping clustered data", J. R. Statist. Soc. B 69 (2007), the cluster bootstrap.
    """
    galleries, group = np.unique(np.asarray(gallery_ids), return_inverse=True)
    if len(galleries) < 2:
        return None
    num_queries = np.bincount(group)  # [galleries]
    sums = np.stack([np.bincount(group, weights=column) for column in values.T], axis=1)  # [galleries, C]
    even = np.full(len(galleries), 1 / len(galleries))
    times = np.random.default_rng(0).multinomial(len(galleries), even, size=DRAWS)  # [draws, galleries]
    means = times @ sums / (times @ num_queries)[:, None]
    return np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T


def _score(ranking: Ranking, rows: Sequence[int], num_queries: int, cutoffs: Sequence[int]) -> Score:
    chosen = np.asarray(rows, np.int64)
    rank, size, truths = ranking.rank[chosen], ranking.gallery_size[chosen], ranking.num_truths[chosen]
    hits = (rank > 0)[:, None] & (rank[:, None] <= np.asarray(cutoffs))  # [Q, C]
    ends = confidence_intervals(hits.astype(float), [ranking.gallery_ids[row] for row in rows])
    ranked = len(rows) / num_queries  # those that were not are misses in every draw
    names = [f"rank-{k}" for k in cutoffs]
    return Score(
        num_queries=num_queries,
        rank={name: int(column.sum()) / num_queries for name, column in zip(names, hits.T, strict=True)},
        chance={f"rank-{k}": float(chance(size, truths, k).sum()) / num_queries for k in cutoffs},
        interval=None if ends is None else dict(zip(names, map(tuple, (ends * ranked).tolist()), strict=True)),
    )


def _galleries(ranking: Ranking) -> Galleries:
    sizes = list(dict(zip(ranking.gallery_ids, ranking.gallery_size.tolist(), strict=True)).values())
    return Galleries(len(sizes), min(sizes), sum(sizes) / len(sizes), max(sizes))


def _group_by_value(values: Sequence[str]) -> dict[str, list[int]]:
    spelling: dict[str, str] = {}  # of every value but for its case, the first one
    groups = group_rows(spelling.setdefault(value.casefold(), value) for value in map(str.strip, values))

    def order(value: str) -> tuple[int, str]:
        folded = value.casefold()
        return (_LEVELS.index(folded) if folded in _LEVELS else len(_LEVELS), folded)

    return {value: groups[value] for value in sorted(groups, key=order)}

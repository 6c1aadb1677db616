"""Rank-k, mAP, MRR, and nDCG of a set of queries and of its subsets, with those of a random order."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from rice_jax.eval.order import NAMES, expect_order, measure_order
from rice_jax.eval.ranking import Ranking, group_rows
from rice_jax.types import DataError

CUTOFFS = (1, 3, 5, 10)
DRAWS = 1000  # of galleries or queries, for a confidence interval
MAX_COUNTS = 2**23  # of one block of draws
MIN_GALLERIES = 20  # that are drawn; draws of fewer hardly vary, so that intervals would be too narrow
LEVEL = 0.95  # of a confidence interval
# The levels of docs/reference.md, section 8, from low to high; other values follow in alphabetical order.
_LEVELS = ("small", "short", "few", "medium", "large", "long", "abundant")


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of a measure over some queries, 0 to 1.

    Attributes:
        mean: over the queries.
        chance: expected for a random order of the same galleries.
        interval: ends of the mean's confidence interval.
    """

    mean: float
    chance: float
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Score:
    """How well some queries are ranked.

    Attributes:
        num_queries: number of queries, the denominator of the shares.
        rank: {"rank-1": share of the queries with a ground truth among the first 1, 0 to 1, …}.
        chance: the same shares, expected for a random order of the same galleries.
        interval: {"rank-1": ends of its confidence interval, …}; None = none (version 0.2, one gallery).
        interval_over: what was drawn for it, "livestreams", "products" or "queries".
        order: {"mAP": its mean, "MRR": …, "nDCG@10": …} (`order.measure_order`); {} = not measured (version 0.2).
    """

    num_queries: int
    rank: dict[str, float]
    chance: dict[str, float]
    interval: dict[str, tuple[float, float]] | None = None
    interval_over: str = "livestreams"
    order: dict[str, Mean] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Score":
        """The inverse of `dataclasses.asdict`, also after JSON, which turns tuples into lists."""
        interval = values.get("interval")
        ends = interval and {cutoff: tuple(pair) for cutoff, pair in interval.items()}
        order = {
            name: Mean(mean["mean"], mean["chance"], tuple(mean["interval"]))
            for name, mean in values.get("order", {}).items()
        }
        return cls(**{**values, "interval": ends, "order": order})


@dataclasses.dataclass(frozen=True)
class Galleries:
    """Number of galleries with queries, and number of products in them."""

    num: int
    min_size: int
    mean_size: float
    max_size: int


@dataclasses.dataclass(frozen=True)
class Result:
    """The numbers of one evaluation.

    Attributes:
        score: over all queries of the ground-truth file.
        num_missing: number of these that count as misses because they could not be ranked: the data set's builder left
            them out, or their gallery has no ground truth.
        galleries: sizes of the galleries.
        subsets: {label, e.g. "scale": {value, e.g. "small": its score}}.
        num_unknown: {label: number of ranked queries whose value is unknown, which are in none of its subsets}.
        seconds: duration of the ranking, including compilation; None = not measured.
        num_without_truth: number of possible queries without any ground truth, which are in no share.
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
    products: Sequence[str] | None = None,
) -> Result:
    """Computes rank-k, mAP, MRR, and nDCG of a ranking, overall and by subset.

    Args:
        ranking: of at least one query.
        num_queries: number of queries in the ground-truth file, the denominator; queries that were not ranked are
            misses. None = all were ranked.
        labels: {label: values of the ranked queries}, e.g. {"scale": ["small", …]}. "" = unknown: such queries are in
            none of the label's subsets, but counted. Values that only differ in case are one subset with the first
            spelling. Queries that were not ranked have no values and are in no subset.
        cutoffs: the k of rank-k.
        products: the product of each ranked query; intervals then are of draws of products instead of galleries, for
            queries that all have the same one.

    Returns:
        The result. Queries that could not be ranked are misses for chance, too, so that both shares have the same
        denominator.

    Raises:
        DataError: there are no queries, more were ranked than `num_queries`, or a label has another number of values.

    Source: docs/reference.md, section 8 (`hit@k`, denominators, subsets).
    """
    ranked = len(ranking.query_ids)
    num_queries = ranked if num_queries is None else num_queries
    if not ranked:
        raise DataError("No query was ranked: expected at least one. Is the query data set empty?")
    if num_queries < ranked:
        raise DataError(
            f"{ranked} queries were ranked, but the ground truth has only {num_queries}: expected a ground truth for "
            "every query. Is the data set that of this ground-truth file?"
        )
    subsets, num_unknown = {}, {}
    for label, values in (labels or {}).items():
        if len(values) != ranked:
            raise DataError(f"{len(values)} values of {label!r} for {ranked} ranked queries: expected one per query.")
        groups = _group_by_value(values)
        num_unknown[label] = len(groups.pop("", []))
        subsets[label] = {value: _score(ranking, rows, len(rows), cutoffs, products) for value, rows in groups.items()}

    return Result(
        score=_score(ranking, range(ranked), num_queries, cutoffs, products),
        num_missing=num_queries - int((ranking.rank > 0).sum()),
        galleries=_galleries(ranking),
        subsets=subsets,
        num_unknown=num_unknown,
    )


def chance(gallery_size: Int64[np.ndarray, " Q"], num_truths: Int64[np.ndarray, " Q"], k: int) -> np.ndarray:
    """Probability that a random order of a query's gallery has a ground truth among the first k, for each query.

    Args:
        gallery_size: products in each query's gallery, G >= 1.
        num_truths: number m of ground truths among them, 0 <= m <= G.
        k: at least 1; may exceed G.

    Returns:
        1 - C(G - m, k) / C(G, k), float64 [Q].
    """
    no_hit = np.ones(len(gallery_size))
    for drawn in range(k):
        # Probability that the next image is no truth, given that no image before it is one.
        no_hit *= np.maximum(gallery_size - num_truths - drawn, 0) / np.maximum(gallery_size - drawn, 1)
    return np.where(num_truths > 0, 1 - no_hit, 0.0)


def confidence_intervals(
    values: Float[np.ndarray, "Q C"], gallery_ids: Sequence[str], drawn: str = "livestreams"
) -> tuple[Float[np.ndarray, "C 2"], str]:
    """Bootstraps means over queries.

    The queries of a livestream are not independent, so galleries are drawn, if there are at least `MIN_GALLERIES`. Of
    fewer galleries, queries are drawn; the intervals are then too narrow as far as the queries of a gallery resemble
    each other.

    Args:
        values: of each query, Q >= 1, in C columns, e.g. 1 for a hit and 0 for a miss at each of C cutoffs.
        gallery_ids: the gallery of each query, or its product.
        drawn: what these are, "livestreams" or "products".

    Returns:
        Ends of the middle 95 % of the means over as many galleries or queries, drawn with replacement; equal for equal
        values. And what was drawn: `drawn` or "queries".

    Source: Field and Welsh, "Bootstrapping clustered data", J. R. Statist. Soc. B 69 (2007), the cluster bootstrap.
    """
    galleries, group = np.unique(np.asarray(gallery_ids), return_inverse=True)
    if len(galleries) >= MIN_GALLERIES:
        num_queries = np.bincount(group)  # [galleries]
        sums = np.stack([np.bincount(group, weights=column) for column in values.T], axis=1)  # [galleries, C]
        even = np.full(len(galleries), 1 / len(galleries))
        times = np.random.default_rng(0).multinomial(len(galleries), even, size=DRAWS)  # [draws, galleries]
        means = times @ sums / (times @ num_queries)[:, None]
    else:
        # Queries with equal values are drawn together, which takes little memory for any number of queries.
        kinds, counts = np.unique(values, axis=0, return_counts=True)
        generator, shares = np.random.default_rng(0), counts / len(values)
        block = max(1, MAX_COUNTS // len(kinds))
        blocks = [min(block, DRAWS - start) for start in range(0, DRAWS, block)]
        means = np.concatenate([generator.multinomial(len(values), shares, size=size) @ kinds for size in blocks])
        means /= len(values)
    ends = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T
    return ends, drawn if len(galleries) >= MIN_GALLERIES else "queries"


def _score(
    ranking: Ranking, rows: Sequence[int], num_queries: int, cutoffs: Sequence[int], products: Sequence[str] | None
) -> Score:
    chosen = np.asarray(rows, np.int64)
    rank, size, truths = ranking.rank[chosen], ranking.gallery_size[chosen], ranking.num_truths[chosen]
    hits = (rank > 0)[:, None] & (rank[:, None] <= np.asarray(cutoffs))  # [Q, C]
    groups, what = (ranking.gallery_ids, "livestreams") if products is None else (products, "products")
    group_ids = [groups[row] for row in rows]
    ends, drawn = confidence_intervals(hits.astype(float), group_ids, what)
    relevant = [len(set(ranking.truths[row])) for row in rows]
    values = measure_order([ranking.truth_ranks[row] for row in rows], relevant)  # [Q, 3]
    expected = expect_order(size, truths, relevant)
    value_ends, _ = confidence_intervals(values, group_ids)
    ranked = len(rows) / num_queries  # queries that were not ranked are misses in every draw
    names = [f"rank-{k}" for k in cutoffs]
    return Score(
        num_queries=num_queries,
        rank={name: int(column.sum()) / num_queries for name, column in zip(names, hits.T, strict=True)},
        chance={f"rank-{k}": float(chance(size, truths, k).sum()) / num_queries for k in cutoffs},
        interval=dict(zip(names, map(tuple, (ends * ranked).tolist()), strict=True)),
        interval_over=drawn,
        order={
            name: Mean(float(found.sum()) / num_queries, float(by_chance.sum()) / num_queries, tuple(pair))
            for name, found, by_chance, pair in zip(
                NAMES, values.T, expected.T, (value_ends * ranked).tolist(), strict=True
            )
        },
    )


def _galleries(ranking: Ranking) -> Galleries:
    sizes = list(dict(zip(ranking.gallery_ids, ranking.gallery_size.tolist(), strict=True)).values())
    return Galleries(len(sizes), min(sizes), sum(sizes) / len(sizes), max(sizes))


def _group_by_value(values: Sequence[str]) -> dict[str, list[int]]:
    spelling: dict[str, str] = {}  # {value without case: its first spelling}
    groups = group_rows(spelling.setdefault(value.casefold(), value) for value in map(str.strip, values))

    def order(value: str) -> tuple[int, str]:
        folded = value.casefold()
        return (_LEVELS.index(folded) if folded in _LEVELS else len(_LEVELS), folded)

    return {value: groups[value] for value in sorted(groups, key=order)}

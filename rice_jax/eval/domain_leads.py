"""Differences between runs on the same items of domains, from their `results.json` and `rankings.jsonl`."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from rice_jax.eval.domains import DomainResult
from rice_jax.eval.metrics import confidence_intervals
from rice_jax.eval.results import FILE, Row, ranked_row, read_about, read_rankings, read_results
from rice_jax.types import DataError

RANKINGS = "rankings.jsonl"

Pair = tuple[str, str]  # task, a field of `DomainResult`, and the names of two domains, e.g. "pages to videos"


class Asked(NamedTuple):
    """The queries of a pair of domains that were ranked.

    Attributes:
        queries: item ids.
        products: the product of each.
        hits: whether its first answer is right, 0 or 1; or the mean over several runs.
        share: of all queries that were ranked; the others are misses.
    """

    queries: tuple[str, ...]
    products: tuple[str, ...]
    hits: Float64[np.ndarray, " Q"]
    share: float


class DomainRun(NamedTuple):
    """The files that an evaluation between domains wrote into a directory."""

    about: dict[str, Any]
    results: dict[Row, DomainResult]
    lines: dict[Pair, list[dict[str, Any]]]  # of `rankings.jsonl`

    @property
    def row(self) -> Row:
        """The row of the results that the rankings belong to."""
        return ranked_row(self.about)

    def asked(self) -> dict[Pair, Asked]:
        """The queries of each pair, and whether their first answers are right."""
        result = self.results[self.row]
        found = {}
        for (task, pair), lines in self.lines.items():
            found[task, pair] = Asked(
                queries=tuple(line["query"] for line in lines),
                products=tuple(line["product"] for line in lines),
                hits=np.array([line["rank"] == 1 for line in lines], np.float64),
                share=len(lines) / getattr(result, task)[pair].score.num_queries,
            )
        return found


class Lead(NamedTuple):
    """A difference of means, and its confidence interval."""

    mean: float
    low: float
    high: float
    over: str  # what was drawn for the interval, "products" or "queries"


def read_domain_run(place: Path) -> DomainRun:
    """Reads the files of an evaluation.

    Args:
        place: directory with `results.json` and `rankings.jsonl`.

    Raises:
        FileNotFoundError: there is none of the files.
        DataError: a file is damaged, or was not written between domains.
    """
    for name in (FILE, RANKINGS):
        if not (place / name).exists():
            raise FileNotFoundError(f"{place / name}: not found; expected a run that has been evaluated (rice eval)")
    about, lines = read_about(place / FILE), collections.defaultdict(list)
    try:
        for line in read_rankings(place / RANKINGS):
            lines[line["task"], line["pair"]].append(line)
        return DomainRun(about, read_results(place / FILE, DomainResult), dict(lines))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{place}: found no results between domains ({error!r} is missing), expected a run with "
            "config.data.domains: evaluate all runs on the same task"
        ) from error


def require_same_queries(runs: Mapping[str, Mapping[Pair, Asked]]) -> None:
    """Refuses runs that cannot be compared query by query.

    Args:
        runs: {name of a run: its queries}.

    Raises:
        DataError: a run has other queries than the first.
    """
    queries = {name: {pair: asked.queries for pair, asked in run.items()} for name, run in runs.items()}
    first = next(iter(queries))
    for name, own in queries.items():
        if own != queries[first]:
            raise DataError(
                f"{name}: found other queries than in {first}, expected the same: evaluate both with the same data "
                "sets (rice eval)"
            )


def mean_lead(runs: Sequence[Asked], others: Sequence[Asked]) -> Lead:
    """The lead of a run over another one in the share of hits, as the mean over some pairs of domains.

    The same products are drawn in both runs and in all pairs.

    Args:
        runs: the queries of a run in each pair.
        others: those of the other run, the same.
    """
    num = sum(len(asked.queries) for asked in runs)
    leads: list[Float[np.ndarray, " q"]] = []
    for run, other in zip(runs, others, strict=True):
        weight = num / (len(runs) * len(run.queries))  # a pair counts as much as another of more queries
        leads.append(weight * run.share * (run.hits - other.hits))
    lead, products = np.concatenate(leads), [product for asked in runs for product in asked.products]
    [(low, high)], over = confidence_intervals(lead[:, None], products, "products")
    return Lead(float(lead.mean()), float(low), float(high), over)

"""Rankings of the same queries, compared query by query: what the tables of the scripts have in common.

A row of such a table has runs of one or several seeds. Its share of hits on a query is its mean over the seeds, and a
difference between rows has a 95 % interval over products that are drawn with replacement. Intervals say nothing about
other seeds.
"""

import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from rice_jax.eval.metrics import confidence_intervals
from rice_jax.eval.results import ranked_row, rankings_file, read_about, read_rankings, read_results

CUTOFFS = (1, 5, 10)
NAMES = [f"rank-{cutoff}" for cutoff in CUTOFFS]


class Ranked(NamedTuple):
    """A ranking of the test queries.

    Attributes:
        queries: (query, the first product that it shows), in the order of `hits`.
        hits: whether a product that it shows is among the first k, for each of `CUTOFFS`.
    """

    queries: list[tuple[str, str]]
    hits: Bool[np.ndarray, "Q C"]

    @property
    def products(self) -> list[str]:
        return [product for _, product in self.queries]


def read_ranked(place: Path, rankings: str = "rankings.jsonl") -> Ranked:
    """A file of rankings of an evaluation; queries that could not be ranked are misses."""
    lines, results = read_rankings(place / rankings), read_results(place / "results.json")
    num_missing = results[ranked_row(read_about(place / "results.json"))].score.num_queries - len(lines)
    rank = np.array([*(line["rank"] for line in lines), *[0] * num_missing])[:, None]
    return Ranked(
        queries=[(line["query"], line["truths"][0]) for line in lines] + [("", "")] * num_missing,
        hits=(rank > 0) & (rank <= np.array(CUTOFFS)),
    )


def read_rows(place: Path) -> dict[str, Ranked]:
    """All rankings of an evaluation with a model, by what they rank by (`rice_jax.eval.results.Row.ranking`)."""
    newest = ranked_row(read_about(place / "results.json"))
    of_step = [row.ranking for row in read_results(place / "results.json") if row.step == newest.step]
    return {
        ranking: read_ranked(place, "rankings.jsonl" if ranking == newest.ranking else rankings_file(ranking))
        for ranking in of_step
    }


def find_evaluation(workdir: Path) -> Path | None:
    """The directory of a run's evaluation on other data; None = there is none yet.

    Raises:
        SystemExit: there are several.
    """
    places = sorted(path.parent for path in workdir.glob("eval-*/report.html"))  # it is written last
    if len(places) > 1:
        names = ", ".join(place.name for place in places)
        sys.exit(f"error: {workdir}: found the evaluations {names}, expected one; delete the others")
    return places[0] if places else None


def mean_hits(runs: Iterable[Ranked]) -> Float[np.ndarray, "Q C"]:
    """The share of the runs that have a hit, of each query."""
    return np.mean([run.hits for run in runs], axis=0)


def cells(runs: Iterable[Ranked]) -> list[str]:
    """Rank-k of a row, in percent."""
    shares = 100 * np.stack([run.hits.mean(axis=0) for run in runs], axis=1)  # [C, seeds]
    return [cell(values.tolist()) for values in shares]


def cell(values: Sequence[float]) -> str:
    """The mean ± the sample standard deviation, if there are several values."""
    spread = f" ±{statistics.stdev(values):>4.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def differences(lead: Float[np.ndarray, "Q C"], products: Sequence[str]) -> list[str]:
    """The mean of each column of differences and its interval, in percent; "" if there are no queries."""
    if not len(lead):
        return [""] * lead.shape[1]
    ends, _ = confidence_intervals(lead, products, "products")
    return [
        f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
        for mean, (low, high) in zip(100 * lead.mean(axis=0), 100 * ends, strict=True)
    ]

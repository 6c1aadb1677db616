"""Prints the runs of `scripts/ablation.sh` as tables: rank-k, and rank-1 by scale and number of products in view.

    python scripts/ablation_table.py runs/ablation

Cells are means over the seeds ± the sample standard deviation. The runs of a seed share queries, clips, and the order
of examples, so a method's gain over ICL is also given by seed.
"""

import argparse
import collections
import pathlib
import statistics
import sys
from collections.abc import Sequence

from rice_jax.eval.metrics import Result
from rice_jax.eval.results import WEIGHTED_MATCH, Row, read_results
from rice_jax.pages.tables import align

METHODS = {
    "icl": "ICL",
    "pmd": "ICL + PMD",
    "pfr": "ICL + PMD + PFR",
    "boxes_mask": "all + IPD (boxes), mask",
    "boxes_crop": "all + IPD (boxes), crop",
    "detector_mask": "all + IPD (detector), mask",
    "detector_crop": "all + IPD (detector), crop",
}
SUBSETS = {"scale": "the scale of the product", "number": "the number of products in view"}
CUTOFFS = ("rank-1", "rank-5", "rank-10")
UNTRAINED = Row(0)

Runs = dict[str, dict[str, dict[Row, Result]]]  # {method: {seed: {row: result}}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the results of every run and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=pathlib.Path, help="directory of the runs, named METHOD-SEED")
    runs = read_runs(parser.parse_args(arguments).runs)
    print("\n\n".join([table(runs), *(subset_table(runs, label) for label in SUBSETS)]))


def read_runs(directory: pathlib.Path) -> Runs:
    """The results of all runs below a directory.

    Raises:
        SystemExit: there is no run of ICL, or the methods have runs of different seeds.
    """
    runs: Runs = collections.defaultdict(dict)
    for method in METHODS:
        for path in sorted(directory.glob(f"{method}-*/results.json")):
            runs[method][path.parent.name.rpartition("-")[2]] = read_results(path)
    seeds = {method: sorted(by_seed) for method, by_seed in runs.items()}
    if "icl" not in runs or len({tuple(found) for found in seeds.values()}) > 1:
        sys.exit(f"error: {directory}: found runs of {seeds}, expected ICL and the same seeds of every method")
    return dict(runs)


def table(runs: Runs) -> str:
    """Rank-k before training, and of every method after it by embedding and, where there is a decoder, re-ranked by it.

    "By both" is by score + weight · match.
    """
    untrained = [results[UNTRAINED] for results in runs["icl"].values()]
    first, baseline = untrained[0].score, [_trained(results)[0][1] for results in runs["icl"].values()]
    rows = [
        ["chance", *(f"{100 * first.chance[cutoff]:.1f}      " for cutoff in CUTOFFS)],
        ["before training", *_cells(untrained)],
    ]
    for method, by_seed in runs.items():
        for of_seeds in zip(*map(_trained, by_seed.values()), strict=True):
            (row, _), *_ = of_seeds
            results = [result for _, result in of_seeds]
            gains = [_percent(one) - _percent(icl) for one, icl in zip(results, baseline, strict=True)]
            order = "by both" if row.ranking == WEIGHTED_MATCH else "matched"
            name = f"  … {row.num_matched} {order}" if row.num_matched else METHODS[method]
            rows.append([name, *_cells(results), *(f"{gain:+.1f}" for gain in gains if method != "icl")])
    title = f"{first.num_queries} queries a seed; percent; by seed: rank-1 minus that of ICL"
    return "\n".join([title, "", *align(["", *CUTOFFS, *(f"seed {seed}" for seed in runs["icl"])], rows)])


def subset_table(runs: Runs, label: str) -> str:
    """Rank-1 by embedding in each subset of a label, with its number of queries over all seeds."""
    results = {"before training": [found[UNTRAINED] for found in runs["icl"].values()]}
    results |= {METHODS[name]: [_trained(found)[0][1] for found in by_seed.values()] for name, by_seed in runs.items()}
    of_label = {name: [result.subsets[label] for result in found] for name, found in results.items()}
    first = of_label["before training"]
    values = list(first[0])
    rows = [["queries", *(str(sum(scores[value].num_queries for scores in first)) for value in values)]]
    rows += [
        [name, *(cell([100 * scores[value].rank["rank-1"] for scores in of_seeds]) for value in values)]
        for name, of_seeds in of_label.items()
    ]
    return "\n".join([f"rank-1 by {SUBSETS[label]}", "", *align(["", *values], rows)])


def _trained(results: dict[Row, Result]) -> list[tuple[Row, Result]]:
    """The rows after the training, by embedding first."""
    last = max(row.step or 0 for row in results)
    return [(row, result) for row, result in results.items() if row.step == last]


def _cells(results: Sequence[Result]) -> list[str]:
    return [cell([_percent(result, cutoff) for result in results]) for cutoff in CUTOFFS]


def cell(values: Sequence[float]) -> str:
    """The mean ± the sample standard deviation, if there are several values."""
    spread = f" ±{statistics.stdev(values):>4.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _percent(result: Result, cutoff: str = "rank-1") -> float:
    return 100 * result.score.rank[cutoff]


if __name__ == "__main__":
    main()

"""Prints the runs of `scripts/ablation.sh` as tables: rank-k, and rank-1 by scale and number of the products in view.

    python scripts/ablation_table.py runs/ablation

Means over the seeds; the spread is the sample standard deviation. The runs of a seed have the same queries, clips and
order of examples, so a method's gain over ICL is given by seed too.
"""

import argparse
import pathlib
import statistics
import sys

from rice_jax.pages.tables import read_results

METHODS = {
    "icl": "ICL",
    "pmd": "ICL + PMD",
    "pfr": "ICL + PMD + PFR",
    "boxes_mask": "all + IPD(boxes), mask",
    "boxes_crop": "all + IPD(boxes), crop",
    "detector_mask": "all + IPD(detector), mask",
    "detector_crop": "all + IPD(detector), crop",
}
SUBSETS = ("scale", "number")
CUTOFFS = ("rank-1", "rank-5", "rank-10")


def main(arguments: list[str] | None = None) -> None:
    """Reads the results of every run and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=pathlib.Path, help="directory of the runs, named METHOD-SEED")
    runs = read_runs(parser.parse_args(arguments).runs)
    print(f"{table(runs)}\n\n{subset_table(runs)}")


def read_runs(directory: pathlib.Path) -> dict[str, dict[str, dict]]:
    """{method: {seed: {row: result}}} of all runs below a directory.

    Raises:
        SystemExit: there is no run of ICL, or methods have runs of different seeds.
    """
    runs: dict[str, dict[str, dict]] = {}
    for method in METHODS:
        for path in sorted(directory.glob(f"{method}-*/results.json")):
            runs.setdefault(method, {})[path.parent.name.rpartition("-")[2]] = read_results(path)
    seeds = {method: sorted(by_seed) for method, by_seed in runs.items()}
    if "icl" not in runs or len({tuple(found) for found in seeds.values()}) > 1:
        sys.exit(f"error: {directory}: found runs of {seeds}, expected ICL and the same seeds of every method")
    return runs


def table(runs: dict[str, dict[str, dict]]) -> str:
    """The table as lines; every row that all seeds of a method have after training, and the encoder before it."""
    first = next(iter(runs["icl"].values()))["before training"]
    seeds = list(runs["icl"])
    lines = [
        f"{first.score.num_queries} queries a seed; percent, mean ± spread over seeds {', '.join(seeds)}",
        "",
        f"{'':<44}" + "".join(f"{cutoff:>14}" for cutoff in CUTOFFS) + "    rank-1 minus ICL's, by seed",
        f"{'chance':<44}" + "".join(f"{100 * first.score.chance[cutoff]:>8.1f}      " for cutoff in CUTOFFS),
        _line("before training", [results["before training"] for results in runs["icl"].values()]),
    ]
    baseline = [_trained(results)[0][1] for results in runs["icl"].values()]
    for method in runs:
        rows = zip(*(_trained(results) for results in runs[method].values()), strict=True)
        for row in rows:
            gains = [
                _rank(result, "rank-1") - _rank(icl, "rank-1") for (_, result), icl in zip(row, baseline, strict=True)
            ]
            suffix = "" if method == "icl" else "    " + "  ".join(f"{gain:+.1f}" for gain in gains)
            lines.append(_line(METHODS[method] + row[0][0], [result for _, result in row]) + suffix)
    return "\n".join(lines)


def subset_table(runs: dict[str, dict[str, dict]]) -> str:
    """Rank-1 by embedding in each subset as lines, with its number of queries over all seeds."""
    results = {"before training": [found["before training"] for found in runs["icl"].values()]}
    results |= {METHODS[name]: [_trained(found)[0][1] for found in by_seed.values()] for name, by_seed in runs.items()}
    first = results["before training"]
    columns = [(label, value) for label in SUBSETS for value in first[0].subsets[label]]
    counts = [sum(one.subsets[label][value].num_queries for one in first) for label, value in columns]
    lines = [
        f"{'rank-1':<28}" + "".join(f"{label:>14}" for label, _ in columns),
        f"{'':<28}" + "".join(f"{value:>14}" for _, value in columns),
        f"{'queries':<28}" + "".join(f"{count:>14}" for count in counts),
    ]
    for name, found in results.items():
        cells = []
        for label, value in columns:
            shares = [100 * one.subsets[label][value].rank["rank-1"] for one in found]
            spread = f" ±{statistics.stdev(shares):>4.1f}" if len(shares) > 1 else ""
            cells.append(f"{f'{statistics.mean(shares):.1f}{spread}':>14}")
        lines.append(f"{name:<28}" + "".join(cells))
    return "\n".join(lines)


def _trained(results: dict) -> list[tuple[str, object]]:
    """(", first K matched" or "", result) of the rows after training, in their order."""
    return [
        ("".join(name.partition(", first ")[1:]), result)
        for name, result in results.items()
        if name.startswith("after")
    ]


def _line(name: str, results: list) -> str:
    cells = []
    for cutoff in CUTOFFS:
        values = [_rank(result, cutoff) for result in results]
        spread = f" ±{statistics.stdev(values):>4.1f}" if len(values) > 1 else " " * 6
        cells.append(f"{statistics.mean(values):>8.1f}{spread}")
    return f"{name:<44}" + "".join(cells)


def _rank(result, cutoff: str) -> float:
    return 100 * result.score.rank[cutoff]


if __name__ == "__main__":
    main()

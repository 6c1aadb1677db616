"""Prints the runs of `scripts/ablation.sh` as tables: rank-k, paired differences, and rank-1 by what a clip shows.

    python scripts/ablation_table.py runs/ablation --data_dir=data/built/ablation

Cells are means over the seeds ± the sample standard deviation; differences have 95 % intervals over products
(`scripts/paired.py`). A method with a decoder has three rows: ranked by embedding, its first images re-ordered by the
decoder alone (matched), and by both. Methods whose runs have not all been made are of fewer seeds, and are compared
with ICL's runs of these seeds.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from rice_jax.eval.results import EMBEDDING, MATCH, WEIGHTED_MATCH
from rice_jax.eval.results import FILE as RESULTS
from rice_jax.input.source import Source
from rice_jax.pages.tables import align
from scripts.paired import NAMES, Ranked, cell, cells, differences, find_evaluation, mean_hits, read_rows

BASELINE, UNTRAINED = "icl", "shipped"  # the latter is an evaluation without a training
METHODS = {
    BASELINE: "ICL",
    "weights": "ICL, weighted frames",
    "pmd": "ICL + PMD",
    "pfr": "ICL + PMD + PFR",
    "boxes_mask": "all + IPD (boxes), mask",
    "boxes_crop": "all + IPD (boxes), crop",
    "detector_mask": "all + IPD (detector), mask",
    "detector_crop": "all + IPD (detector), crop",
}
RANKINGS = {EMBEDDING: "", MATCH: "… matched", WEIGHTED_MATCH: "… by both"}
LABELS = {"scale": "the scale of the product", "number": "the number of products in view"}

BySeed = Mapping[str, Ranked]
Runs = dict[tuple[str, str], dict[str, Ranked]]  # {(method, ranking): {seed: run}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the rankings of every run and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory of the runs, named METHOD-SEED")
    parser.add_argument("--data_dir", required=True, help="directory of the queries' data set")
    flags = parser.parse_args(arguments)
    untrained, runs = read_runs(flags.runs)
    clips = {row["clip_id"].decode(): row for row in Source(flags.data_dir, "lpr4m/query", ("clip_id", *LABELS))}
    print(f"{len(untrained.queries):,} queries of {len({*untrained.products} - {''})} products; percent\n")
    print(rank_table(untrained, runs))
    print(f"\nMinus {METHODS[BASELINE]} with the same seeds\n\n{difference_table(untrained, runs)}")
    for label, words in LABELS.items():
        values = np.array([clips[query][label].decode() if query else "" for query, _ in untrained.queries])
        print(f"\nRank-1 by {words}, and minus {METHODS[BASELINE]}\n\n{subset_table(untrained, runs, values)}")


def read_runs(directory: Path) -> tuple[Ranked, Runs]:
    """The evaluation without a training, and those of all runs, which may still be few.

    Raises:
        SystemExit: there is none without a training or none of ICL, runs have different queries, or a run has several
            evaluations.
    """
    runs: Runs = {}
    for method in METHODS:
        for workdir in sorted(directory.glob(f"{method}-*")):
            if place := find_evaluation(workdir):
                for ranking, run in read_rows(place).items():
                    runs.setdefault((method, ranking), {})[workdir.name.rpartition("-")[2]] = run
    if not (directory / UNTRAINED / RESULTS).exists() or (BASELINE, EMBEDDING) not in runs:
        sys.exit(f"error: {directory}: found no results of {UNTRAINED} and {BASELINE}-SEED, expected both")
    untrained = read_rows(directory / UNTRAINED)[EMBEDDING]
    for (method, _), by_seed in runs.items():
        for seed, run in by_seed.items():
            if run.queries != untrained.queries:
                sys.exit(f"error: {directory / method}-{seed}: found other queries than in {UNTRAINED}, expected these")
    return untrained, runs


def rank_table(untrained: Ranked, runs: Runs) -> str:
    """Rank-k before training, and of each method and ranking after it."""
    rows = [["before training", "", *cells([untrained])]]
    rows += [[_name(row), " ".join(by_seed), *cells(by_seed.values())] for row, by_seed in runs.items()]
    return "\n".join(align(["", "seeds", *NAMES], rows))


def difference_table(untrained: Ranked, runs: Runs) -> str:
    """How each row differs from ICL, and re-ranked ones also from the ranking by embedding of the same runs."""
    icl = runs[BASELINE, EMBEDDING]
    rows = [["before training", *_differences(dict.fromkeys(icl, untrained), icl)]]
    for (method, ranking), by_seed in runs.items():
        if (method, ranking) != (BASELINE, EMBEDDING):
            rows.append([_name((method, ranking)), *_differences(by_seed, icl)])
        if ranking != EMBEDDING:
            rows.append(["  minus by embedding", *_differences(by_seed, runs[method, EMBEDDING])])
    return "\n".join(align(["", *NAMES], rows))


def subset_table(untrained: Ranked, runs: Runs, values: np.ndarray) -> str:
    """Rank-1 of each row in each subset of the queries, and below it its difference from ICL."""
    icl = runs[BASELINE, EMBEDDING]
    subsets = {value: values == value for value in np.unique(values) if value}
    rows = [["queries", *(f"{own.sum():,}" for own in subsets.values())]]
    rows.append(["before training", *(f"{100 * untrained.hits[own, 0].mean():.1f}" for own in subsets.values())])
    for row, by_seed in runs.items():
        shares = [[100 * run.hits[own, 0].mean() for run in by_seed.values()] for own in subsets.values()]
        rows.append([_name(row), *map(cell, shares)])
        if row != (BASELINE, EMBEDDING):
            rows.append(["", *(_differences(by_seed, icl, own)[0] for own in subsets.values())])
    return "\n".join(align(["", *subsets], rows))


def _name(row: tuple[str, str]) -> str:
    method, ranking = row
    return RANKINGS[ranking] or METHODS[method]


def _differences(runs: BySeed, others: BySeed, own: np.ndarray | slice = slice(None)) -> list[str]:
    """Of the seeds that both have, on some of the queries."""
    shared = [seed for seed in runs if seed in others]
    lead = mean_hits(runs[seed] for seed in shared) - mean_hits(others[seed] for seed in shared)
    products = np.array(runs[shared[0]].products)
    return differences(lead[own], products[own].tolist())


if __name__ == "__main__":
    main()

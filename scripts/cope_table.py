"""Prints the runs of `scripts/cope_table.sh` as Markdown: what COPE finds between domains, and how it differs from ICL.

    python scripts/cope_table.py runs/cope

Cells are percent: of retrieval rank-1, of one-shot classification the accuracy, as means over the seeds ± the sample
standard deviation. All runs have the same queries, so differences are paired: a row's share of hits on a query is its
mean over the seeds, and the intervals (95 %) are of draws of products. They say nothing about other seeds. Rows whose
runs have not all been made are of fewer seeds, and are compared with ICL's runs of these seeds.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from rice_jax.eval.domain_leads import Asked, DomainRun, Pair, mean_lead, read_domain_run, require_same_queries
from rice_jax.eval.results import EMBEDDING, WITHOUT_TEXT, Row
from rice_jax.types import DataError
from scripts.paired import cell, find_evaluation

BASELINE, UNTRAINED = "icl", "shipped"  # the latter is an evaluation without a training
ROWS = {  # of configs/sample_cope.py: names
    BASELINE: "RICE (ICL)",
    "cope": "COPE without text",
    "cope_text": "COPE, titles of pages",
    "cope_all_text": "COPE, texts in all domains",
}
TASKS = {"retrieval": "Rank-1", "one_shot": "One-shot"}

Runs = dict[str, dict[str, DomainRun]]  # {row: {seed: run}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the results of every run and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory of the runs, named ROW-SEED")
    directory = parser.parse_args(arguments).runs
    try:
        untrained, runs = read_runs(directory)
    except (DataError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print("In percent: means over the seeds ± the sample standard deviation, differences with 95 % intervals.\n")
    for task in TASKS:
        print("\n".join([*task_table(task, untrained, runs), "", *difference_table(task, untrained, runs), ""]))


def read_runs(directory: Path) -> tuple[DomainRun, Runs]:
    """The evaluation without a training, and those of all runs, which may still be few.

    Raises:
        SystemExit: there is no run of ICL, or a run has several evaluations.
        FileNotFoundError: there is no evaluation without a training.
        DataError: runs have different queries.
    """
    untrained = read_domain_run(directory / UNTRAINED)
    runs: Runs = {row: {} for row in ROWS}
    for row in ROWS:
        for workdir in sorted(directory.glob(f"{row}-*")):
            if place := find_evaluation(workdir):
                runs[row][workdir.name.removeprefix(f"{row}-")] = read_domain_run(place)
    if not runs[BASELINE]:
        sys.exit(f"error: {directory}: found no results of {BASELINE}-SEED, expected some")
    everything = {f"{row}-{seed}": run for row, by_seed in runs.items() for seed, run in by_seed.items()}
    require_same_queries({name: run.asked() for name, run in {UNTRAINED: untrained, **everything}.items()})
    return untrained, {row: by_seed for row, by_seed in runs.items() if by_seed}


def task_table(task: str, untrained: DomainRun, runs: Runs) -> list[str]:
    """The shares of each row, in each pair of domains and in their mean."""
    pairs = list(getattr(untrained.results[untrained.row], task))
    first = getattr(untrained.results[untrained.row], task)
    chances = [of_pair.score.chance["rank-1"] for of_pair in first.values()]
    queries = [of_pair.score.num_queries for of_pair in first.values()]
    rows = [
        ["queries", "", *(f"{number:,}" for number in queries), ""],
        ["chance", "", *(f"{100 * share:.1f}" for share in [*chances, np.mean(chances)])],
        ["RICE before training", "", *(f"{100 * share:.1f}" for share in _shares(untrained, task, EMBEDDING))],
    ]
    for row, by_seed in runs.items():
        for ranking, name in ((EMBEDDING, ROWS[row]), (WITHOUT_TEXT, "… evaluated without texts")):
            ranked = {seed: run for seed, run in by_seed.items() if _row(run, ranking) in run.results}
            if ranked:
                shares = 100 * np.stack([_shares(run, task, ranking) for run in ranked.values()], axis=1)
                cells = [" ".join(cell(of_pair.tolist()).split()) for of_pair in shares]  # of the pairs and their mean
                rows.append([name, " ".join(ranked), *cells])
    return _markdown([TASKS[task], "seeds", *pairs, "mean"], rows)


def difference_table(task: str, untrained: DomainRun, runs: Runs) -> list[str]:
    """How each row differs from ICL with the same seeds."""
    baseline = {seed: run.asked() for seed, run in runs[BASELINE].items()}
    pairs = [pair for pair in untrained.asked() if pair[0] == task]
    rows = [["RICE before training", *_leads(pairs, untrained.asked(), _mean(baseline.values()))]]
    for row, by_seed in runs.items():
        own = {seed: run.asked() for seed, run in by_seed.items() if seed in baseline}
        if row != BASELINE and own:
            rows.append([ROWS[row], *_leads(pairs, _mean(own.values()), _mean(baseline[seed] for seed in own))])
    return _markdown([f"{TASKS[task]} minus {ROWS[BASELINE]}", *(name for _, name in pairs), "mean"], rows)


def _row(run: DomainRun, ranking: str) -> Row:
    return dataclasses.replace(run.row, ranking=ranking)


def _shares(run: DomainRun, task: str, ranking: str) -> list[float]:
    result = run.results[_row(run, ranking)]
    shares = [of_pair.score.rank["rank-1"] for of_pair in getattr(result, task).values()]
    return [*shares, float(np.mean(shares))]


def _mean(runs) -> dict[Pair, Asked]:
    """The queries of several runs, each with the share of the runs that have a hit."""
    first, *others = runs
    return {
        pair: asked._replace(hits=np.mean([asked.hits, *(run[pair].hits for run in others)], axis=0))
        for pair, asked in first.items()
    }


def _leads(pairs: Sequence[Pair], run: Mapping[Pair, Asked], other: Mapping[Pair, Asked]) -> list[str]:
    leads = [
        mean_lead([run[pair] for pair in group], [other[pair] for pair in group])
        for group in (*([pair] for pair in pairs), pairs)
    ]
    return [f"{100 * lead.mean:+.1f} ({100 * lead.low:+.1f} to {100 * lead.high:+.1f})" for lead in leads]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


if __name__ == "__main__":
    main()

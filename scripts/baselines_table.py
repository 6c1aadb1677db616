"""Prints the runs of `scripts/baselines.sh` as tables: rank-k, and how each row differs from RICE (ICL).

    python scripts/baselines_table.py runs/baselines

Cells of the first table are means over the seeds ± the sample standard deviation. All runs have the same queries, so
the second table pairs them: a row's share of hits on a query is its mean over the seeds, and the intervals (95 %) are
of the difference's mean over queries that are drawn with replacement. They say nothing about other seeds. Rows whose
runs have not all been made are of fewer seeds, and are compared with ICL's runs of these seeds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from rice_jax.eval.metrics import Result, confidence_intervals
from rice_jax.eval.results import PIXEL_RANKINGS, PIXELS, Row, ranked_row, read_about, read_rankings, read_results
from rice_jax.pages.tables import align
from scripts.ablation_table import cell

SHIPPED, FRESH = "shipped", "fresh"  # where a training starts: from the encoder of data/sample, or from random weights
# {row of configs/sample_baselines.py: (its name, where its training starts)}
ROWS = {
    "icl": ("RICE (ICL)", SHIPPED),
    "all": ("RICE (ICL, PMD, PFR)", SHIPPED),
    "timesformer": ("TimeSformer", f"{SHIPPED}, time {FRESH}"),
    "swin": ("Swin, B-shaped", FRESH),
    "sgmn": ("SGMN, no graph loss", SHIPPED),
    "seam": ("SEAM-style", SHIPPED),
    "nvan": ("NVAN-style", SHIPPED),
    "fashionnet": ("FashionNet-style", SHIPPED),
    "asymnet": ("AsymNet-style", SHIPPED),
}
BASELINE = "icl"
UNTRAINED, UNTRAINED_NAME = "shipped", "RICE before training"  # an evaluation without a training
CUTOFFS = (1, 5, 10)
NAMES = [f"rank-{cutoff}" for cutoff in CUTOFFS]


class Run(NamedTuple):
    """An evaluation on the test queries.

    Attributes:
        queries: (query, its gallery), in the order of `hits`.
        hits: whether a truth is among the first k, for each of `CUTOFFS`.
        results: of the embeddings, and of the nearest raw pixels if they were evaluated.
    """

    queries: list[tuple[str, str]]
    hits: Bool[np.ndarray, "Q C"]
    results: dict[Row, Result]


Runs = dict[str, dict[str, Run]]  # {row: {seed: run}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the results of every run and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory of the runs, named ROW-SEED")
    untrained, runs = read_runs(parser.parse_args(arguments).runs)
    print(f"{len(untrained[UNTRAINED_NAME].queries)} queries; percent\n\n{rank_table(untrained, runs)}")
    print(f"\nMinus {ROWS[BASELINE][0]} with the same seeds\n\n{difference_table(untrained, runs)}")


def read_runs(directory: Path) -> tuple[dict[str, Run], Runs]:
    """The evaluations without a training by name, and those of all runs, which may still be few.

    Raises:
        SystemExit: there is no evaluation without a training or none of RICE (ICL), runs have different queries, or a
            run has several evaluations.
    """
    runs: Runs = {row: {} for row in ROWS}
    for row in ROWS:
        for workdir in sorted(directory.glob(f"{row}-*")):
            if places := sorted(path.parent for path in workdir.glob("eval-*/results.json")):
                if len(places) > 1:
                    names = ", ".join(place.name for place in places)
                    sys.exit(f"error: {workdir}: found the evaluations {names}, expected one; delete the others")
                runs[row][workdir.name.rpartition("-")[2]] = read_run(places[0])
    if not (directory / UNTRAINED / PIXEL_RANKINGS).exists() or not runs[BASELINE]:
        sys.exit(f"error: {directory}: found no results of {UNTRAINED} and {BASELINE}-SEED, expected both")
    untrained = read_run(directory / UNTRAINED)
    pixels = read_run(directory / UNTRAINED, PIXEL_RANKINGS)
    for row, by_seed in runs.items():
        for seed, run in by_seed.items():
            if run.queries != untrained.queries:
                sys.exit(f"error: {directory / row}-{seed}: found other queries than in {UNTRAINED}, expected the same")
    return {PIXELS.label: pixels, UNTRAINED_NAME: untrained}, {row: by_seed for row, by_seed in runs.items() if by_seed}


def read_run(place: Path, rankings: str = "rankings.jsonl") -> Run:
    """The files of an evaluation; queries that could not be ranked are misses."""
    lines, results = read_rankings(place / rankings), read_results(place / "results.json")
    num_missing = results[ranked_row(read_about(place / "results.json"))].score.num_queries - len(lines)
    rank = np.array([*(line["rank"] for line in lines), *[0] * num_missing])[:, None]
    return Run(
        queries=[(line["query"], line["gallery"]) for line in lines] + [("", "")] * num_missing,
        hits=(rank > 0) & (rank <= np.array(CUTOFFS)),
        results=results,
    )


def rank_table(untrained: dict[str, Run], runs: Runs) -> str:
    """Rank-k of each row, and of rows without a training."""
    spread = " " * len(" ± 0.0") if any(len(by_seed) > 1 for by_seed in runs.values()) else ""
    rows = [
        [name, start, "", *(f"{100 * share:.1f}{spread}" for share in shares)]
        for name, start, shares in (
            ("chance", "", _chance(untrained)),
            (PIXELS.label, "", untrained[PIXELS.label].hits.mean(axis=0)),
            (UNTRAINED_NAME, SHIPPED, untrained[UNTRAINED_NAME].hits.mean(axis=0)),
        )
    ]
    for row, by_seed in runs.items():
        shares = 100 * np.stack([run.hits.mean(axis=0) for run in by_seed.values()], axis=1)  # [C, seeds]
        rows.append([*ROWS[row], " ".join(by_seed), *(cell(values.tolist()) for values in shares)])
    return "\n".join(align(["", "starts from", "seeds", *NAMES], rows))


def difference_table(untrained: dict[str, Run], runs: Runs) -> str:
    """How rank-k of each row differs from that of the baseline, with paired intervals."""
    galleries, baseline = [gallery for _, gallery in untrained[UNTRAINED_NAME].queries], runs[BASELINE]
    rows = [["chance", *_differences(_chance(untrained) - _mean(baseline), galleries)]]
    for name, run in untrained.items():
        rows.append([name, *_differences(run.hits - _mean(baseline), galleries)])
    for row, by_seed in runs.items():
        shared = [seed for seed in by_seed if seed in baseline]
        if row != BASELINE and shared:
            lead = _mean({seed: by_seed[seed] for seed in shared}) - _mean({seed: baseline[seed] for seed in shared})
            rows.append([ROWS[row][0], *_differences(lead, galleries)])
    return "\n".join(align(["", *NAMES], rows))


def _chance(untrained: dict[str, Run]) -> Float[np.ndarray, " C"]:
    chance = untrained[UNTRAINED_NAME].results[PIXELS].score.chance
    return np.array([chance[name] for name in NAMES])


def _mean(runs: dict[str, Run]) -> Float[np.ndarray, "Q C"]:
    """The share of the seeds that have a hit, of each query."""
    return np.mean([run.hits for run in runs.values()], axis=0)


def _differences(lead: Float[np.ndarray, "Q C"], galleries: Sequence[str]) -> list[str]:
    ends, _ = confidence_intervals(lead, galleries)
    return [
        f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
        for mean, (low, high) in zip(100 * lead.mean(axis=0), 100 * ends, strict=True)
    ]


if __name__ == "__main__":
    main()

"""Prints the runs of `scripts/baselines.sh` as tables: rank-k, and how each row differs from RICE (ICL).

    python scripts/baselines_table.py runs/baselines

Cells of the first table are means over the seeds ± the sample standard deviation. The second table pairs the rows by
query (`scripts/paired.py`). Rows whose runs have not all been made are of fewer seeds, and are compared with ICL's runs
of these seeds.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from rice_jax.eval.results import PIXEL_RANKINGS, PIXELS, read_results
from rice_jax.pages.tables import align
from scripts.paired import NAMES, Ranked, cells, differences, find_evaluation, mean_hits, read_ranked

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

Runs = dict[str, dict[str, Ranked]]  # {row: {seed: run}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the rankings of every run and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory of the runs, named ROW-SEED")
    directory = parser.parse_args(arguments).runs
    untrained, runs = read_runs(directory)
    score = read_results(directory / UNTRAINED / "results.json")[PIXELS].score
    chance = np.array([score.chance[name] for name in NAMES])
    print(f"{len(untrained[UNTRAINED_NAME].queries)} queries; percent\n\n{rank_table(chance, untrained, runs)}")
    print(f"\nMinus {ROWS[BASELINE][0]} with the same seeds\n\n{difference_table(chance, untrained, runs)}")


def read_runs(directory: Path) -> tuple[dict[str, Ranked], Runs]:
    """The evaluations without a training by name, and those of all runs, which may still be few.

    Raises:
        SystemExit: there is no evaluation without a training or none of RICE (ICL), runs have different queries, or a
            run has several evaluations.
    """
    runs: Runs = {row: {} for row in ROWS}
    for row in ROWS:
        for workdir in sorted(directory.glob(f"{row}-*")):
            if place := find_evaluation(workdir):
                runs[row][workdir.name.rpartition("-")[2]] = read_ranked(place)
    if not (directory / UNTRAINED / PIXEL_RANKINGS).exists() or not runs[BASELINE]:
        sys.exit(f"error: {directory}: found no results of {UNTRAINED} and {BASELINE}-SEED, expected both")
    untrained = read_ranked(directory / UNTRAINED)
    pixels = read_ranked(directory / UNTRAINED, PIXEL_RANKINGS)
    for row, by_seed in runs.items():
        for seed, run in by_seed.items():
            if run.queries != untrained.queries:
                sys.exit(f"error: {directory / row}-{seed}: found other queries than in {UNTRAINED}, expected the same")
    return {PIXELS.label: pixels, UNTRAINED_NAME: untrained}, {row: by_seed for row, by_seed in runs.items() if by_seed}


def rank_table(chance: Float[np.ndarray, " C"], untrained: Mapping[str, Ranked], runs: Runs) -> str:
    """Rank-k of each row, and of rows without a training."""
    spread = " " * len(" ± 0.0") if any(len(by_seed) > 1 for by_seed in runs.values()) else ""
    rows = [
        [name, start, "", *(f"{100 * share:.1f}{spread}" for share in shares)]
        for name, start, shares in (
            ("chance", "", chance),
            (PIXELS.label, "", untrained[PIXELS.label].hits.mean(axis=0)),
            (UNTRAINED_NAME, SHIPPED, untrained[UNTRAINED_NAME].hits.mean(axis=0)),
        )
    ]
    rows += [[*ROWS[row], " ".join(by_seed), *cells(by_seed.values())] for row, by_seed in runs.items()]
    return "\n".join(align(["", "starts from", "seeds", *NAMES], rows))


def difference_table(chance: Float[np.ndarray, " C"], untrained: Mapping[str, Ranked], runs: Runs) -> str:
    """How rank-k of each row differs from that of the baseline, with paired intervals."""
    products, baseline = untrained[UNTRAINED_NAME].products, runs[BASELINE]
    rows = [["chance", *differences(chance - mean_hits(baseline.values()), products)]]
    for name, run in untrained.items():
        rows.append([name, *differences(run.hits - mean_hits(baseline.values()), products)])
    for row, by_seed in runs.items():
        shared = [seed for seed in by_seed if seed in baseline]
        if row != BASELINE and shared:
            lead = mean_hits(by_seed[seed] for seed in shared) - mean_hits(baseline[seed] for seed in shared)
            rows.append([ROWS[row][0], *differences(lead, products)])
    return "\n".join(align(["", *NAMES], rows))


if __name__ == "__main__":
    main()

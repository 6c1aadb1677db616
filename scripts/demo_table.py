"""Prints the runs of `scripts/demo_table.sh` as the README's table, and how the training changes rank-k.

    python scripts/demo_table.py runs 0 1 2

Each seed has its own clips of the same products. The difference is over the queries of all seeds, with its 95 %
interval over products (`scripts/paired.py`). The simulation draws new image ids for each seed, so its
`attribution.csv` names the products.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from rice_jax.eval.results import EMBEDDING, FILE, PIXELS, read_results
from rice_jax.pages.tables import align
from scripts.paired import NAMES, Ranked, differences, read_rows

START, TRAINED = "start", "demo"


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the rankings of the runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory of the runs, named start-SEED and demo-SEED")
    parser.add_argument("seeds", nargs="+", help="of the runs")
    parser.add_argument(
        "--raw_dir", type=Path, default=Path("data/raw"), help="directory of the simulations, named sample-SEED"
    )
    flags = parser.parse_args(arguments)
    print(table(flags.runs, flags.seeds, flags.raw_dir))


def table(directory: Path, seeds: Sequence[str], raw_dir: Path) -> str:
    """A line for chance, raw pixels, and both models of each seed, their means, and the difference.

    Args:
        directory: of the runs, named start-SEED and demo-SEED.
        seeds: of the runs.
        raw_dir: directory of the simulations, named sample-SEED.

    Raises:
        SystemExit: a run or a simulation is missing, both models of a seed have different queries, or a simulation
            lacks an image of its queries.
    """
    start, trained = ([_read(directory / f"{name}-{seed}") for seed in seeds] for name in (START, TRAINED))
    pixels = [read_results(directory / f"{TRAINED}-{seed}" / FILE)[PIXELS].score for seed in seeds]
    lines = [
        ["chance", *_mean([[score.chance[name] for name in NAMES] for score in pixels])],
        ["mean: nearest raw pixels", *_mean([[score.rank[name] for name in NAMES] for score in pixels])],
    ]
    for seed, before, after in zip(seeds, start, trained, strict=True):
        if before.queries != after.queries:
            sys.exit(f"error: {directory / TRAINED}-{seed}: found other queries than in {START}-{seed}, expected these")
        lines.append([f"{seed}: start", *_mean([before.hits.mean(axis=0)])])
        lines.append([f"{seed}: after training", *_mean([after.hits.mean(axis=0)])])
    lines.append(["mean: start", *_mean([run.hits.mean(axis=0) for run in start])])
    lines.append(["mean: after training", *_mean([run.hits.mean(axis=0) for run in trained])])
    lead = np.concatenate(
        [after.hits - before.hits.astype(np.float64) for before, after in zip(start, trained, strict=True)]
    )
    products = [
        product
        for seed, run in zip(seeds, start, strict=True)
        for product in _products(run, raw_dir / f"sample-{seed}" / "test" / "attribution.csv")
    ]
    lines.append(["difference", *differences(lead, products)])
    return "\n".join(align(["seed: model", *NAMES], lines))


def _read(workdir: Path) -> Ranked:
    if not (workdir / FILE).exists():
        sys.exit(f"error: {workdir / FILE}: is missing; run scripts/demo_table.sh with this seed")
    return read_rows(workdir)[EMBEDDING]


def _products(run: Ranked, path: Path) -> list[str]:
    """The product of each query, the same one for all seeds; "" = the query could not be ranked."""
    if not path.exists():
        sys.exit(f"error: {path}: is missing; run scripts/demo_table.sh with this seed, or give --raw_dir")
    with path.open(newline="", encoding="utf-8") as file:
        product_of = {"": ""} | {row["image_id"]: row["product_id"] for row in csv.DictReader(file)}
    if missing := set(run.products) - product_of.keys():
        sys.exit(f"error: {path}: found no image {min(missing)}, expected all images of the queries")
    return [product_of[image] for image in run.products]


def _mean(shares: Sequence[Sequence[float]]) -> list[str]:
    return [f"{100 * share:.1f}" for share in np.mean(shares, axis=0)]


if __name__ == "__main__":
    main()

"""Prints the evaluations of `scripts/text_table.sh` as a table: rank-1 without and with texts.

    python scripts/text_table.py runs/texts

Cells are means over the seeds ± the sample standard deviation. Below them are the differences from the row without
texts of the same decoder: a row's share of hits on a query is its mean over the seeds, and the intervals (95 %) are of
the difference's mean over the queries of products that are drawn with replacement. They say nothing about other seeds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from rice_jax.eval.results import MATCH, rankings_file, read_rankings
from rice_jax.input.text_embeddings import read_embeddings
from rice_jax.pages.tables import align
from scripts.paired import cell, differences

MISSING = (0, 50, 90)  # percent of the images that lack a title
# {row: (its name, the row without texts that it is compared with)}; rows with a share of missing titles have one each
ROWS = {
    "none": ("no text", ""),
    "none_pmd": ("no text, ranked by PMD", ""),
    "in_pmd": ("text in PMD", "none_pmd"),
    "in_embedding": ("text in the embedding", "none"),
    "in_both": ("text in both", "none_pmd"),
}
COLUMNS = "all", "with speech", "without speech"


class Hits(NamedTuple):
    """The queries, in the same order for every row.

    Attributes:
        seeds: of the runs.
        products: of the queries.
        spoken: whether there is speech of a query.
        hit: whether the first place is a truth, with each seed, of each row.
    """

    seeds: list[str]
    products: list[str]
    spoken: Bool[np.ndarray, " Q"]
    hit: dict[str, Float[np.ndarray, "S Q"]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the rankings of all rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory of the evaluations, named ROW-SEED or ROW_PERCENT-SEED")
    hits = read_hits(parser.parse_args(arguments).runs)
    products = len(set(hits.products))
    print(
        f"Rank-1 in percent, seeds {' '.join(hits.seeds)}. Below a row with text: its difference from the row without\n"
        f"text that is ranked alike, with its 95 % interval over {products} products.\n\n{table(hits)}"
    )


def rows() -> dict[str, tuple[str, str, str]]:
    """{directory's name: (name, percent of titles that are missing, row that it is compared with)}."""
    found: dict[str, tuple[str, str, str]] = {}
    for row, (name, other) in ROWS.items():
        if other:
            found |= {f"{row}_{percent}": (name, str(percent), other) for percent in MISSING}
        else:
            found[row] = (name, "", "")
    return found


def read_hits(directory: Path) -> Hits:
    """The first places of all evaluations.

    Raises:
        SystemExit: there is none, rows are of different seeds, or have different queries.
    """
    seeds = sorted(path.name.rpartition("-")[2] for path in directory.glob("none-*"))
    if not seeds:
        sys.exit(f"error: {directory}: found no evaluation none-SEED, expected one of each seed")
    asked: list[tuple[str, str]] = []
    hit: dict[str, list[list[bool]]] = {row: [] for row in rows()}
    for seed in seeds:
        for row, own in hit.items():
            by_decoder, path = (directory / f"{row}-{seed}" / name for name in (rankings_file(MATCH), "rankings.jsonl"))
            path = by_decoder if by_decoder.exists() else path  # PMD alone, where it re-ranks
            if not path.exists():
                sys.exit(f"error: {path}: is missing, expected it with those of the other rows; run the script again")
            lines = read_rankings(path)
            queries = [(line["query"], line["truths"][0]) for line in lines]
            if asked and queries != asked:
                sys.exit(f"error: {path}: found other queries than in the other evaluations, expected the same")
            asked = queries
            own.append([line["rank"] == 1 for line in lines])
    speech = read_embeddings(str(directory / f"embeddings-{seeds[0]}"), "speech")
    spoken = np.array([speech is not None and query in speech.rows for query, _ in asked])
    shares = {row: np.array(own, np.float64) for row, own in hit.items()}
    return Hits(seeds, [product for _, product in asked], spoken, shares)


def table(hits: Hits) -> str:
    """A line for each row with its shares, and one with its differences."""
    parts = [np.ones(len(hits.spoken), bool), hits.spoken, ~hits.spoken]
    lines = [["queries", "", *(str(int(part.sum())) for part in parts)]]
    for row, (name, missing, other) in rows().items():
        hit = hits.hit[row]
        lines.append([name, missing and f"{missing} %", *(_share(hit[:, part]) for part in parts)])
        if other:
            lead = (hit - hits.hit[other]).mean(axis=0)
            lines.append(["", "", *(_difference(lead[part], hits.products, part) for part in parts)])
    return "\n".join(align(["", "titles missing", *COLUMNS], lines))


def _share(hit: Float[np.ndarray, "S q"]) -> str:
    return " ".join(cell((100 * hit.mean(axis=1)).tolist()).split()) if hit.size else ""


def _difference(lead: Float[np.ndarray, " q"], products: Sequence[str], part: Bool[np.ndarray, " Q"]) -> str:
    own = [product for product, counts in zip(products, part.tolist(), strict=True) if counts]
    return differences(lead[:, None], own)[0]


if __name__ == "__main__":
    main()

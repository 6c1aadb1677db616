"""Prints the evaluations of `scripts/text_table.sh` as a table: rank-1 without and with texts.

    python scripts/text_table.py runs/texts

Rows with PMD are ranked by embedding and decoder together. Cells are means over the seeds ± the sample standard
deviation. Below them are the differences from the row without texts that is ranked alike, with 95 % intervals over
products (`scripts/paired.py`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from rice_jax.eval.results import EMBEDDING, FUSED, WEIGHTED_MATCH
from rice_jax.input.text_embeddings import read_embeddings
from rice_jax.pages.tables import align
from scripts.paired import Ranked, cell, differences, read_rows

MISSING = ("0", "50", "90")  # percent of the images that lack a title
COLUMNS = "all", "with speech", "without speech"


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        name: what the model reads, and what it ranks by.
        evaluation: its directory, before the seed.
        ranking: which of the evaluation's rankings.
        missing: percent of the images that lack a title; "" = there are no texts.
        other: the name of the row without texts that it is compared with; "" = with none.
    """

    name: str
    evaluation: str
    ranking: str
    missing: str = ""
    other: str = ""


WITHOUT, WITHOUT_BY_BOTH = "no text", "no text, with PMD"
ROWS = (
    Row(WITHOUT, "none", EMBEDDING),
    *(Row("text in the embedding", f"in_both_{share}", FUSED, share, WITHOUT) for share in MISSING),
    Row(WITHOUT_BY_BOTH, "none", WEIGHTED_MATCH, other=WITHOUT),
    *(Row("text in PMD", f"in_pmd_{share}", WEIGHTED_MATCH, share, WITHOUT_BY_BOTH) for share in MISSING),
    *(Row("text in both", f"in_both_{share}", WEIGHTED_MATCH, share, WITHOUT_BY_BOTH) for share in MISSING),
)


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
    hit: dict[Row, Float[np.ndarray, "S Q"]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the rankings of all rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory of the runs and evaluations")
    hits = read_hits(parser.parse_args(arguments).runs)
    products = len({*hits.products} - {""})
    print(
        f"Rank-1 in percent, seeds {' '.join(hits.seeds)}. Below a row with text: its difference from the row without\n"
        f"text that is ranked alike, with its 95 % interval over {products} products; below the row of PMD without\n"
        f"text: its difference from the embedding alone.\n\n{table(hits)}"
    )


def read_hits(directory: Path) -> Hits:
    """The first places of all rows.

    Raises:
        SystemExit: there is none, rows are of different seeds, or have different queries.
    """
    seeds = sorted(path.name.rpartition("-")[2] for path in directory.glob("none-*"))
    if not seeds:
        sys.exit(f"error: {directory}: found no evaluation none-SEED, expected one of each seed")
    places = {row.evaluation: [directory / f"{row.evaluation}-{seed}" for seed in seeds] for row in ROWS}
    ranked = {name: [_read(place) for place in of_seeds] for name, of_seeds in places.items()}
    queries = ranked["none"][0][EMBEDDING].queries
    for name, of_seeds in ranked.items():
        for place, rankings in zip(places[name], of_seeds, strict=True):
            if any(own.queries != queries for own in rankings.values()):
                sys.exit(f"error: {place}: found other queries than in the other evaluations, expected the same")
    speech = read_embeddings(str(directory / f"embeddings-{seeds[0]}"), "speech")
    return Hits(
        seeds,
        [product for _, product in queries],
        np.array([speech is not None and query in speech.rows for query, _ in queries]),
        {row: np.array([own[row.ranking].hits[:, 0] for own in ranked[row.evaluation]], np.float64) for row in ROWS},
    )


def _read(place: Path) -> dict[str, Ranked]:
    if not (place / "report.html").exists():  # it is written last
        sys.exit(f"error: {place}: is missing, expected it with those of the other rows; run the script again")
    return read_rows(place)


def table(hits: Hits) -> str:
    """A line for each row with its shares, and one with its differences."""
    parts = [np.ones(len(hits.spoken), bool), hits.spoken, ~hits.spoken]
    lines = [["queries", "", *(str(int(part.sum())) for part in parts)]]
    without = {row.name: hits.hit[row] for row in ROWS if not row.missing}
    for row, hit in hits.hit.items():
        lines.append([row.name, row.missing and f"{row.missing} %", *(_share(hit[:, part]) for part in parts)])
        if row.other:
            lead = (hit - without[row.other]).mean(axis=0)
            lines.append(["", "", *(_difference(lead[part], hits.products, part) for part in parts)])
    return "\n".join(align(["", "titles missing", *COLUMNS], lines))


def _share(hit: Float[np.ndarray, "S q"]) -> str:
    return " ".join(cell((100 * hit.mean(axis=1)).tolist()).split()) if hit.size else ""


def _difference(lead: Float[np.ndarray, " q"], products: Sequence[str], part: Bool[np.ndarray, " Q"]) -> str:
    own = [product for product, counts in zip(products, part.tolist(), strict=True) if counts]
    return differences(lead[:, None], own)[0]


if __name__ == "__main__":
    main()

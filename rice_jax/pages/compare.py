"""Several runs on the same queries as one HTML file: table, curves, and the queries whose first place changed."""

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from rice_jax.config.loss import CONTRAST_METRICS
from rice_jax.eval.metrics import MIN_GALLERIES, Result, confidence_intervals
from rice_jax.eval.order import NAMES, measure_order
from rice_jax.eval.place import PREFIX
from rice_jax.eval.results import FILE, Row, ranked_row, read_about, read_rankings, read_results
from rice_jax.files import write_lines
from rice_jax.input.ground_truth import read_gallery_index
from rice_jax.input.transforms import sample_frames
from rice_jax.pages import report
from rice_jax.pages.album import Album
from rice_jax.pages.compare_domains import write_domain_comparison
from rice_jax.types import DataError

NUM_QUERIES = 120  # shown at most
NUM_IMAGES = 5  # of each run
CURVES = {
    **{"ICL" if name == "icl" else f"{name.capitalize()} loss": (name,) for name in CONTRAST_METRICS},
    "Accuracy in the batch": ("accuracy",),
    "Rank-1 while training": ("retrieval/rank-1",),
}

logger = logging.getLogger(__name__)


class EvaluatedRun(NamedTuple):
    """The files that an evaluation wrote into a run's workdir."""

    name: str
    about: dict[str, Any]
    results: dict[Row, Result]
    rankings: list[dict[str, Any]]  # lines of `rankings.jsonl`
    rank: Int64[np.ndarray, " Q"]
    log: list[report.Line]

    @property
    def row(self) -> Row:
        """The row of the results that the rankings belong to."""
        return ranked_row(self.about)


def write_comparison(path: Path, workdirs: Sequence[Path]) -> None:
    """Writes a page that compares runs with the first of them, whole or not at all.

    The page has pictures if the data sets are still where the first run read them.

    Args:
        path: the page.
        workdirs: two or more, or directories of further evaluations in them (`eval.place`), each with `results.json`
            and `rankings.jsonl` of retrieval, or all between domains.

    Raises:
        DataError: fewer than two workdirs, results of another task, or runs with different queries.
        FileNotFoundError: a run has not been evaluated.
        OSError: the page cannot be written.
    """
    if len(workdirs) < 2:
        raise DataError(f"found {len(workdirs)} runs to compare, expected two or more: rice compare RUN1 RUN2 …")
    last = [_name(workdir.absolute()) for workdir in workdirs]
    names = last if len(set(last)) == len(last) else [str(workdir) for workdir in workdirs]
    if "domains" in read_about(_require(workdirs[0], FILE)):
        return write_domain_comparison(path, dict(zip(names, workdirs, strict=True)))
    runs = [_read_run(workdir, name) for workdir, name in zip(workdirs, names, strict=True)]
    _require_same_queries(runs)
    album = _open_album(runs[0])
    hits = np.array([run.rank == 1 for run in runs])
    changed = np.flatnonzero(hits.any(axis=0) & ~hits.all(axis=0))
    shown = changed[sample_frames(len(changed), NUM_QUERIES)].tolist()
    html = report.render(
        "compare.html.jinja",
        album,
        runs=runs,
        cutoffs=list(runs[0].results[runs[0].row].score.rank),
        means=[name for name in NAMES if any(name in run.results[run.row].score.order for run in runs)],
        leads=list(dict.fromkeys(name for run in runs for name in _measured(run))),
        rows=[row for run in runs for row in _rows(run, runs[0])],
        counts=[_count(run, runs[0]) for run in runs[1:]],
        plots=[
            report.rank_plot({run.name: (run.rank, run.results[run.row]) for run in runs}),
            *report.training_plots({run.name: run.log for run in runs}, CURVES),
        ],
        cards=[_card(place, runs, album) for place in shown],
        num_queries=len(runs[0].rank),
        num_changed=len(changed),
        num_galleries=runs[0].results[runs[0].row].galleries.num,
        min_galleries=MIN_GALLERIES,
    )
    write_lines(path, [html])
    logger.info("%s: %d of %d changed queries shown", path, len(shown), len(changed))


def _name(directory: Path) -> str:
    """The name of a run; with that of the evaluation if it is not the run's own."""
    return "/".join(directory.parts[-2:]) if directory.name.startswith(PREFIX) else directory.name


def _require(workdir: Path, name: str) -> Path:
    if not (workdir / name).exists():
        raise FileNotFoundError(f"{workdir / name}: not found; expected a run that has been evaluated (rice eval)")
    return workdir / name


def _read_run(workdir: Path, name: str) -> EvaluatedRun:
    for file in (FILE, "rankings.jsonl"):
        _require(workdir, file)
    try:
        about = read_about(workdir / "results.json")
        results = read_results(workdir / "results.json")
        results[ranked_row(about)]  # exists
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{workdir / 'results.json'}: found no results of retrieval ({error!r} is missing), expected a run with "
            "config.task='retrieval'"
        ) from error
    rankings = read_rankings(workdir / "rankings.jsonl")
    rank = np.array([line["rank"] for line in rankings], np.int64)
    if about.get("evaluation", {}).get("score") == "frames":
        name = f"{name}, by frames"
    return EvaluatedRun(name, about, results, rankings, rank, report.read_log(workdir / "metrics.jsonl"))


def _require_same_queries(runs: Sequence[EvaluatedRun]) -> None:
    first = runs[0]
    asked = [(line["query"], line["gallery_size"]) for line in first.rankings]
    for run in runs[1:]:
        if [(line["query"], line["gallery_size"]) for line in run.rankings] != asked:
            raise DataError(
                f"{run.name}: found other queries or galleries ({len(run.rankings)} queries) than in {first.name} "
                f"({len(asked)}), expected the same: evaluate both with the same data sets (rice eval)"
            )


def _open_album(run: EvaluatedRun) -> Album | None:
    about = run.about
    if "data_dir" not in about:
        return None
    try:
        gallery = read_gallery_index(about["data_dir"], about["gallery"])
    except FileNotFoundError as error:
        logger.warning("the page has no pictures: %s", error)
        return None
    return Album(about["data_dir"], about["query"], about["gallery"], gallery.rows, about["num_frames"])


def _rows(run: EvaluatedRun, first: EvaluatedRun) -> list[dict[str, Any]]:
    """The newest rows of a run; that of its rankings with the lead over the first run."""
    by_embedding = dataclasses.replace(run.row, ranking="embedding", num_matched=0)
    newest = [by_embedding, run.row]  # equal unless images were re-ranked
    leads = {} if run is first else _leads(_measured(run), _measured(first), run)
    return [
        {
            "run": run.name,
            "row": row.label,
            "result": run.results[row],
            "leads": leads if row == run.row else {},
            "shown": row == run.row,
        }
        for row in dict.fromkeys(newest)
        if row in run.results
    ]


def _count(run: EvaluatedRun, first: EvaluatedRun) -> dict[str, Any]:
    """Counts the queries with a truth in the first place in both runs, in one of them, and in neither."""
    pairs = collections.Counter(zip((first.rank == 1).tolist(), (run.rank == 1).tolist(), strict=True))
    return {
        "run": run.name,
        "both": pairs[True, True],
        "gained": pairs[False, True],
        "lost": pairs[True, False],
        "neither": pairs[False, False],
    }


def _card(place: int, runs: Sequence[EvaluatedRun], album: Album | None) -> dict[str, Any]:
    line = runs[0].rankings[place]
    gallery = line["gallery"]

    def image(image_id: str) -> dict[str, Any]:
        return album.image(gallery, image_id) if album else {"id": image_id, "title": "", "thumbnail": None}

    found = [
        {
            "run": run.name,
            "rank": int(run.rank[place]),
            "images": [
                image(shown) | {"id": name, "score": score, "truth": name in line["truths"]}
                for name, score, shown in _top(run.rankings[place])
            ],
        }
        for run in runs
    ]
    hits = [bool(run.rank[place] == 1) for run in runs]
    return {
        "id": line["query"],
        "gallery": gallery,
        "gallery_size": line["gallery_size"],
        "frames": album.query(place, line["query"]) if album else [],
        "truth": image(line["truths"][0]),
        "found": found,
        "filters": {
            f"run{number}": ["gained"] if hit and not hits[0] else ["lost"] if hits[0] and not hit else []
            for number, hit in enumerate(hits)
        },
    }


def _top(line: dict[str, Any]) -> list[tuple[str, float, str]]:
    """The first products of a query, each with its score and its most similar image."""
    top = line["top"][:NUM_IMAGES]
    images = line.get("images", [name for name, _ in top])  # earlier versions ranked images, each of them a product
    return [(name, score, image) for (name, score), image in zip(top, images, strict=False)]


def _measured(run: EvaluatedRun) -> dict[str, np.ndarray]:
    """Values of each query whose means the page compares; mAP unless its rankings are of version 0.2."""
    values = {"rank-1": (run.rank == 1).astype(float)}
    if all("truth_ranks" in line for line in run.rankings):
        relevant = [len(set(line["truths"])) for line in run.rankings]
        order = measure_order([line["truth_ranks"] for line in run.rankings], relevant)
        values["mAP"] = order[:, NAMES.index("mAP")]
    return values


def _leads(
    measured: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray], run: EvaluatedRun
) -> dict[str, dict[str, Any]]:
    """The lead of a run over the first one in each mean that both have."""
    groups, drawn_groups = [line["gallery"] for line in run.rankings], "livestreams"
    if len(set(groups)) < MIN_GALLERIES:
        groups, drawn_groups = [f"{line['gallery']}/{line['truths'][0]}" for line in run.rankings], "products"
    # Queries that were not ranked are misses in both runs.
    ranked = len(groups) / run.results[run.row].score.num_queries
    leads = {}
    for name in measured.keys() & first.keys():
        lead = measured[name] - first[name]
        ends, drawn = confidence_intervals(lead[:, None], groups, drawn_groups)
        leads[name] = {"mean": lead.mean() * ranked, "ends": (ends[0] * ranked).tolist(), "over": drawn}
    return leads

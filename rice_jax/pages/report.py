"""The report of a run as one HTML file: results, plots, and queries with the products that were found for them.

The page fetches nothing: styles, script, plots and pictures are part of it. Texts from data sets and names of files are
never HTML: the templates escape them, and plots contain none.
"""

import base64
import collections
import dataclasses
import hashlib
import importlib.resources
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import Int64

from rice_jax.config.loss import LOSS_METRICS
from rice_jax.eval.metrics import MIN_GALLERIES, Result
from rice_jax.eval.ranking import Ranking
from rice_jax.eval.results import Row, labeled
from rice_jax.files import write_lines
from rice_jax.input.ground_truth import Query
from rice_jax.input.transforms import sample_frames
from rice_jax.pages import plots
from rice_jax.pages.album import Album, Pictures
from rice_jax.pages.attention import Attention
from rice_jax.pages.plots import Curve, Plot
from rice_jax.types import DataError, counted

NUM_QUERIES = 240  # shown at most; half of them misses if there are enough
NUM_IMAGES = 10  # of a query
NUM_PAIRS = 12  # of products that are mistaken for each other
NUM_SUBSETS = 60  # of a label, the largest ones
NUM_POINTS = 300  # of a training curve
MAX_CHARACTERS = 12_000_000  # of pictures; even with attention and very long titles a report stays below 20 MB
MAX_TEXT = 160  # characters of a title or name
CURVES = {
    "Loss": LOSS_METRICS,
    "Accuracy in the batch": ("accuracy", "match_accuracy"),
    "Rank-1 while training": ("retrieval/rank-1", "retrieval/matched-rank-1"),
}

Line = Mapping[str, float | int]  # of `metrics.jsonl`

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a report shows: one evaluation of a run.

    Attributes:
        run: the run's name, e.g. that of its workdir.
        results: the rows of the table of results.
        row: the row that the ranking belongs to, and that most of the page is about.
        ranking: of the queries.
        queries: in the order of the ranking.
        log: lines of `metrics.jsonl`; may be empty.
        skipped: {query id: reason} of queries that the data set's builder left out.
        by_frames: whether products were ranked by frames (`config.eval.score`).
    """

    run: str
    results: Mapping[Row, Result]
    row: Row
    ranking: Ranking
    queries: Sequence[Query]
    log: Sequence[Line]
    skipped: Mapping[str, str]
    by_frames: bool = False

    @property
    def result(self) -> Result:
        """The result of the ranking."""
        return self.results[self.row]


class Confusion(NamedTuple):
    """Two products of a gallery, and how often each was ranked first where the other one is true."""

    gallery: str
    image: str
    other: str
    there: int  # `other` first, `image` true
    back: int  # `image` first, `other` true


def write_report(
    path: str | os.PathLike, evaluation: Evaluation, album: Album, attention: Attention | None = None
) -> None:
    """Writes the report of a run, whole or not at all.

    Args:
        path: the file, usually `report.html`; replaced if it exists.
        evaluation: what to show.
        album: pictures of the queries and their galleries; new, so that it holds no others.
        attention: of some of the queries; None if there is no trained decoder.

    Raises:
        OSError: the file cannot be written.
    """
    ranking, result, row = evaluation.ranking, evaluation.result, evaluation.row
    pairs = _pairs(ranking, album)  # before the cards, which may fill the album
    cards = _cards(evaluation, album, attention)
    html = render(
        "report.html.jinja",
        album,
        run=evaluation.run,
        results=evaluation.results,
        row=row,
        by_frames=evaluation.by_frames,
        result=result,
        cutoffs=list(result.score.rank),
        means=list(result.score.order),
        plots=[
            rank_plot({row.label: (ranking.rank, result)}, labeled(evaluation.results)),
            *_score_plots(ranking),
            *training_plots({"": evaluation.log}),
        ],
        labels=list(result.subsets),
        subsets={label: _largest(scores, NUM_SUBSETS) for label, scores in result.subsets.items()},
        num_subsets=NUM_SUBSETS,
        skipped=collections.Counter(evaluation.skipped.values()).most_common(),
        pairs=pairs,
        cards=cards,
        num_ranked=len(ranking.rank),
        num_misses=int((ranking.rank != 1).sum()),
        num_images=NUM_IMAGES,
        num_seen=sum(card["attention"] is not None for card in cards),
        min_galleries=MIN_GALLERIES,
    )
    write_lines(path, [html])
    logger.info("%s: %d of %d queries shown, %.1f MB", path, len(cards), len(ranking.rank), len(html.encode()) / 1e6)


def render(
    template: str,
    album: Pictures | None,
    *,
    package: str = "rice_jax.pages",
    scripts: Sequence[str] = (),
    **values: Any,
) -> str:
    """Renders a page.

    Args:
        template: name of a template in `package`; it may extend and include those of `rice_jax.pages`.
        album: the pictures that the page shows; None if it shows none.
        package: where the template is.
        scripts: names of further scripts in `rice_jax.pages`.
        **values: the template's variables.
    """
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (package, "rice_jax.pages")])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "short": _short, "counted": counted}
    sources = importlib.resources.files("rice_jax.pages").joinpath("templates")
    script = "".join(sources.joinpath(name).read_text(encoding="utf-8") for name in ("script.js", *scripts))
    # With its digest in the content security policy, the browser runs this script and no other.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pictures = album.pictures if album else []
    return environment.get_template(template).render(script=script, script_hash=digest, pictures=pictures, **values)


def choose_queries(rank: Int64[np.ndarray, " Q"], num: int = NUM_QUERIES) -> list[int]:
    """Chooses queries to show: half misses and half hits if there are enough, both spread evenly over all queries.

    Args:
        rank: 1-based place of each query's best truth; every query with another rank than 1 is a miss.
        num: how many to choose at most.

    Returns:
        Places in random order, so that the first of them are as good a choice of fewer.
    """
    misses, hits = np.flatnonzero(rank != 1), np.flatnonzero(rank == 1)
    num_misses = min(len(misses), max(num // 2, num - len(hits)))
    chosen = [rows[sample_frames(len(rows), k)] for rows, k in ((misses, num_misses), (hits, num - num_misses))]
    return np.random.default_rng(0).permutation(np.concatenate(chosen)).tolist()


def confused_pairs(ranking: Ranking, num: int = NUM_PAIRS) -> list[Confusion]:
    """Finds the pairs of products that most often take each other's first place, the most confused pair first."""
    taken: collections.Counter[tuple[str, str]] = collections.Counter()
    galleries = {}
    for gallery, truths, top, rank in zip(
        ranking.gallery_ids, ranking.truths, ranking.top, ranking.rank.tolist(), strict=True
    ):
        if rank != 1 and top:
            taken[truths[0], top[0][0]] += 1
            galleries[truths[0], top[0][0]] = gallery
    found = [
        Confusion(galleries[image, other], image, other, count, taken[other, image])
        for (image, other), count in taken.items()
        if (count, image) > (taken[other, image], other)  # of both directions, the more frequent
    ]
    return sorted(found, key=lambda pair: (-pair.there - pair.back, pair))[:num]


def rank_plot(
    ranked: Mapping[str, tuple[Int64[np.ndarray, " Q"], Result]], others: Mapping[str, Result] | None = None
) -> Plot:
    """Plots rank-k over k, with chance.

    Args:
        ranked: {name: (ranks of the queries, their result)}, drawn for every k.
        others: {name: result}, drawn at the cutoffs of the result; names that are also in `ranked` are left out.
    """
    galleries = next(iter(ranked.values()))[1].galleries
    last = max(2, min(galleries.max_size, 50))
    curves = {}
    for name, (rank, result) in ranked.items():
        found = np.cumsum(np.bincount(rank, minlength=last + 1)[1 : last + 1])
        curves[name] = Curve(range(1, last + 1), found / result.score.num_queries)
    # A run that is evaluated often has many rows. The first ones show what it started from.
    others = {name: result for name, result in (others or {}).items() if name not in ranked}
    names = list(others)
    for name in dict.fromkeys([*names[:2], *names[-2:]]):
        curves[name] = _points(others[name].score.rank, last)
    chance = next(iter(ranked.values()))[1].score.chance
    curves["chance"] = _points(chance, last)._replace(dashed=True)
    places = [place for place in (1, 2, 3, 5, 10, 20, 30, 50) if place <= last]
    return plots.lines("Rank-k", curves, xlabel="first k products", percent=True, places=places)


def training_plots(logs: Mapping[str, Sequence[Line]], curves: Mapping[str, Sequence[str]] = CURVES) -> list[Plot]:
    """Plots metrics of training over the steps.

    Args:
        logs: {name of a run: lines of its `metrics.jsonl`}; the name is "" if there is only one run.
        curves: {title of a plot: its metrics}.

    Returns:
        The plots that have at least one curve of two points.
    """
    found = []
    for title, keys in curves.items():
        drawn = {}
        for run, log in logs.items():
            for key in keys:
                points = [(line["step"], line[key]) for line in log if key in line]
                if len(points) > 1:
                    metric = "" if run and len(keys) == 1 else key.removeprefix("retrieval/")
                    drawn[" ".join(filter(None, (run, metric)))] = _thin(points)
        if drawn:
            shares = not any(key in LOSS_METRICS for key in keys)
            found.append(plots.lines(title, drawn, xlabel="step", percent=shares))
    return found


def read_log(path: Path) -> list[Line]:
    """Reads a run's `metrics.jsonl`, but for a last line that is still being written; [] if the file does not exist.

    Raises:
        DataError: a line is damaged.
    """
    lines = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}:{number}: is damaged, expected JSON ({error}); delete the line") from error
    return lines


def run_log(workdir: Path, step: int, shares: Mapping[str, float] | None) -> list[Line]:
    """The log of a run that is being evaluated.

    Args:
        workdir: of the run.
        step: the evaluated one.
        shares: the evaluation's scores, which training logs only after it is done; None = the log's scores are of
            another evaluation, and are left out.
    """
    log = [line for line in read_log(workdir / "metrics.jsonl") if line["step"] < step or "loss" in line]
    if shares is None:
        return [*(line for line in log if "loss" in line), {"step": step}]
    return [*log, {"step": step} | {f"retrieval/{key}": share for key, share in shares.items()}]


def _points(shares: Mapping[str, float], last: int) -> Curve:
    known = {int(name.removeprefix("rank-")): share for name, share in shares.items()}
    shown = {place: share for place, share in known.items() if place <= last}
    return Curve(list(shown), list(shown.values()), marked=True)


def _thin(points: Sequence[tuple[float | int, float | int]]) -> Curve:
    """Reduces many points to means of neighbors."""
    parts = np.array_split(np.array(points), min(NUM_POINTS, len(points)))
    steps, values = np.array([part.mean(axis=0) for part in parts]).T
    return Curve(steps, values, marked=len(points) < 20)


def _score_plots(ranking: Ranking) -> list[Plot]:
    """Histograms of the first product's score and of its lead over the second one, for hits and for misses."""
    scores: dict[str, dict[bool, list[float]]] = {
        "Score of the first product": {True: [], False: []},
        "Its lead over the second": {True: [], False: []},
    }
    first, lead = scores.values()
    for rank, top in zip(ranking.rank.tolist(), ranking.top, strict=True):
        if top:
            first[rank == 1].append(top[0][1])
        if len(top) > 1:
            lead[rank == 1].append(top[0][1] - top[1][1])
    return [
        plots.histogram(title, {"hits": groups[True], "misses": groups[False]}, xlabel="score")
        for title, groups in scores.items()
        if any(groups.values())
    ]


def _pairs(ranking: Ranking, album: Album) -> list[dict[str, Any]]:
    return [
        pair._asdict() | {name: album.image(pair.gallery, getattr(pair, name)) for name in ("image", "other")}
        for pair in confused_pairs(ranking)
    ]


def _cards(evaluation: Evaluation, album: Album, attention: Attention | None) -> list[dict[str, Any]]:
    """Cards of as many chosen queries as the page has room for, in the order of the queries."""
    cards: list[dict[str, Any]] = []
    for place in choose_queries(evaluation.ranking.rank):
        if album.num_characters > MAX_CHARACTERS:
            break
        cards.append(_card(place, evaluation, album, attention))
    return sorted(cards, key=lambda card: card["place"])


def _card(place: int, evaluation: Evaluation, album: Album, attention: Attention | None) -> dict[str, Any]:
    """A query on the page, and the values by which the page's filters find it."""
    ranking, query = evaluation.ranking, evaluation.queries[place]
    gallery, truths, top = ranking.gallery_ids[place], ranking.truths[place], ranking.top[place][:NUM_IMAGES]
    images = [
        album.image(gallery, image) | {"id": product, "score": score, "truth": product in truths}
        for (product, score), image in zip(top, ranking.images[place], strict=False)
    ]
    rank = int(ranking.rank[place])
    values = {label: getattr(query, label).strip() for label in evaluation.result.subsets}
    frames = album.query(place, ranking.query_ids[place])
    seen = attention.of(place, gallery, frames, album) if attention else None
    outcome = {"hit": rank == 1, "miss": rank != 1, "far": rank == 0 or rank > NUM_IMAGES, "seen": seen is not None}
    return {
        "place": place,
        "id": ranking.query_ids[place],
        "gallery": gallery,
        "title": query.title,
        "labels": values,
        "filters": {
            "outcome": [name for name, holds in outcome.items() if holds],
            # "=" tells the empty value from "all", whose value is "".
            **{label: [f"={value.casefold()}"] for label, value in values.items()},
        },
        "rank": rank,
        "gallery_size": int(ranking.gallery_size[place]),
        "frames": frames,
        "attention": seen,
        "images": images,
        # If no truth is among the first products, one is shown behind them.
        "truth": None if any(image["truth"] for image in images) else _truth(gallery, truths, album),
    }


def _truth(gallery: str, truths: Sequence[str], album: Album) -> dict[str, Any]:
    """A true image, if possible one that is in the gallery."""
    found = [album.image(gallery, truth) for truth in truths]
    return next((image for image in found if image["thumbnail"]), found[0])


def _largest(scores: Mapping[str, Any], num: int) -> dict[str, Any]:
    """The subsets with the most queries, in the given order."""
    kept = sorted(scores, key=lambda value: -scores[value].num_queries)[:num]
    return {value: score for value, score in scores.items() if value in kept}


def _percent(share: float | Iterable[float]) -> str:
    if isinstance(share, Iterable):
        return "–".join(f"{100 * end:.1f}" for end in share)
    return f"{100 * share:.1f} %"


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"

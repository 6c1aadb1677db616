"""The report of a run as one HTML file: results, plots, and queries with what was found for them.

Nothing is fetched by the page: styles, script, plots and pictures are in it. Texts of the data set, of files and of
directories are data and never HTML: the templates escape them, and plots hold none.
"""

import base64
import collections
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

from rice_jax.eval.metrics import Result
from rice_jax.eval.ranking import Ranking
from rice_jax.files import write_lines
from rice_jax.input.ground_truth import Query
from rice_jax.input.transforms import sample_frames
from rice_jax.pages import plots
from rice_jax.pages.album import Album, Pictures
from rice_jax.pages.attention import Attention
from rice_jax.pages.plots import Curve, Plot

NUM_QUERIES = 240  # shown at most, half of them misses if there are as many
NUM_IMAGES = 10  # of each
NUM_PAIRS = 12  # of images that are mistaken for each other
NUM_SUBSETS = 60  # of a label, the largest
NUM_POINTS = 300  # of a training curve
MAX_CHARACTERS = 12_000_000  # of pictures; with attention and very long titles a report stays below 20 MB
MAX_TEXT = 160  # characters of a title or name
LOSSES = ("loss", "icl", "pmd", "pfr")
CURVES = {
    "Loss": LOSSES,
    "Accuracy in the batch": ("accuracy", "match_accuracy"),
    "Rank-1 while training": ("retrieval/rank-1", "retrieval/matched-rank-1"),
}

Line = Mapping[str, float | int]  # of `metrics.jsonl`

logger = logging.getLogger(__name__)


class Confusion(NamedTuple):
    """Two images of a gallery: how often the other one came first where the image was right, and the reverse."""

    gallery: str
    image: str
    other: str
    there: int
    back: int


def write_report(
    path: str | os.PathLike,
    run: str,
    results: Mapping[str, Result],
    row: str,
    ranking: Ranking,
    queries: Sequence[Query],
    labels: Sequence[str],
    album: Album,
    log: Sequence[Line],
    skipped: Mapping[str, str],
    attention: Attention | None = None,
) -> None:
    """Writes the report of a run, whole or not at all.

    Args:
        path: the file, usually `report.html`; replaced if it exists.
        run: what it is of, e.g. the workdir's name.
        results: {row name: its result}, the table's rows.
        row: the one of them that the ranking is of.
        ranking: of the queries.
        queries: in the order of the ranking.
        labels: attributes of a query whose values make subsets, as "category".
        album: pictures of these queries and their galleries; nothing has been asked of it yet.
        log: lines of `metrics.jsonl`, may be empty.
        skipped: {query id: reason} of queries that the data set's builder left out.
        attention: of some of the queries, where there is a trained decoder.

    Raises:
        OSError: the file cannot be written.
    """
    pairs = [  # first: they are few
        pair._asdict() | {name: album.image(pair.gallery, getattr(pair, name)) for name in ("image", "other")}
        for pair in confused_pairs(ranking)
    ]
    cards = []
    for place in choose_queries(ranking.rank):
        if album.num_characters > MAX_CHARACTERS:
            break
        cards.append(_card(place, ranking, queries[place], labels, album, attention))
    cards.sort(key=lambda card: card["place"])
    result = results[row]
    html = render(
        "report.html.jinja",
        album,
        run=run,
        results=results,
        row=row,
        result=result,
        cutoffs=list(result.score.rank),
        plots=[rank_plot({row: (ranking.rank, result)}, results), *_score_plots(ranking), *training_plots({"": log})],
        labels=list(result.subsets),
        subsets={label: _largest(scores, NUM_SUBSETS) for label, scores in result.subsets.items()},
        num_subsets=NUM_SUBSETS,
        skipped=collections.Counter(skipped.values()).most_common(),
        pairs=pairs,
        cards=cards,
        num_ranked=len(ranking.rank),
        num_misses=int((ranking.rank != 1).sum()),
        num_images=NUM_IMAGES,
        num_seen=sum(card["attention"] is not None for card in cards),
    )
    write_lines(path, [html])
    logger.info("%s: %d of %d queries shown, %.1f MB", path, len(cards), len(ranking.rank), len(html.encode()) / 1e6)


def render(template: str, album: Pictures | None, *, package: str = "rice_jax.pages", **values: Any) -> str:
    """A page from a template of that package, with the pictures of an album."""
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (package, "rice_jax.pages")])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "short": _short}
    script = importlib.resources.files("rice_jax.pages").joinpath("templates/script.js").read_text(encoding="utf-8")
    # The browser runs this script and no other, whatever else may stand in the page.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pictures = album.pictures if album else []
    return environment.get_template(template).render(script=script, script_hash=digest, pictures=pictures, **values)


def choose_queries(rank: Int64[np.ndarray, " Q"], num: int = NUM_QUERIES) -> list[int]:
    """Chooses queries to show: misses and hits alike as far as there are enough, each evenly from first to last.

    Args:
        rank: 1-based place of each query's best truth; all but 1 are misses.
        num: how many to choose at most.

    Returns:
        Places in an order that is no order: the first of them are as good a choice of fewer.
    """
    misses, hits = np.flatnonzero(rank != 1), np.flatnonzero(rank == 1)
    num_misses = min(len(misses), max(num // 2, num - len(hits)))
    chosen = [rows[sample_frames(len(rows), k)] for rows, k in ((misses, num_misses), (hits, num - num_misses))]
    return np.random.default_rng(0).permutation(np.concatenate(chosen)).tolist()


def confused_pairs(ranking: Ranking, num: int = NUM_PAIRS) -> list[Confusion]:
    """Finds the images that come first most often in each other's place, the most confused pair first."""
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
        if (count, image) > (taken[other, image], other)  # else it is the other way round
    ]
    return sorted(found, key=lambda pair: (-pair.there - pair.back, pair))[:num]


def rank_plot(
    ranked: Mapping[str, tuple[Int64[np.ndarray, " Q"], Result]], others: Mapping[str, Result] | None = None
) -> Plot:
    """Rank-k over k, with chance.

    Args:
        ranked: {name: the ranks of its queries, and their result}, drawn for every k.
        others: more results, of which the same few k are known; those of the same name are left out.
    """
    galleries = next(iter(ranked.values()))[1].galleries
    last = max(2, min(galleries.max_size, 50))
    curves = {}
    for name, (rank, result) in ranked.items():
        found = np.cumsum(np.bincount(rank, minlength=last + 1)[1 : last + 1])
        curves[name] = Curve(range(1, last + 1), found / result.score.num_queries)
    # A run that is evaluated often has many rows; the first ones are what it started from.
    names = [name for name in others or {} if name not in ranked]
    for name in dict.fromkeys([*names[:2], *names[-2:]]):
        curves[name] = _points(others[name].score.rank, last)
    chance = next(iter(ranked.values()))[1].score.chance
    curves["chance"] = _points(chance, last)._replace(dashed=True)
    places = [place for place in (1, 2, 3, 5, 10, 20, 30, 50) if place <= last]
    return plots.lines("Rank-k", curves, xlabel="first k images", percent=True, places=places)


def training_plots(logs: Mapping[str, Sequence[Line]], curves: Mapping[str, Sequence[str]] = CURVES) -> list[Plot]:
    """What the lines of `metrics.jsonl` say over the steps.

    Args:
        logs: {name of a run, "" where there is only one: its lines}.
        curves: {title of a plot: the metrics in it}.

    Returns:
        The plots for which there is something to draw.
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
            shares = not any(key in LOSSES for key in keys)
            found.append(plots.lines(title, drawn, xlabel="step", percent=shares))
    return found


def read_log(path: Path) -> list[Line]:
    """The lines of a run's `metrics.jsonl`; [] if there is none. A line that is still being written is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _points(shares: Mapping[str, float], last: int) -> Curve:
    known = [(int(name.removeprefix("rank-")), share) for name, share in shares.items()]
    places, shares = zip(*[point for point in known if point[0] <= last], strict=True)
    return Curve(places, shares, marked=True)


def _thin(points: Sequence[tuple[int, float]]) -> Curve:
    """Means of neighbouring points, of many."""
    parts = np.array_split(np.array(points), min(NUM_POINTS, len(points)))
    steps, values = np.array([part.mean(axis=0) for part in parts]).T
    return Curve(steps, values, marked=len(points) < 20)


def _score_plots(ranking: Ranking) -> list[Plot]:
    """How the first image's score, and its lead over the second one's, are distributed over hits and misses."""
    scores: dict[str, dict[bool, list[float]]] = {
        "Score of the first image": {True: [], False: []},
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


def _card(
    place: int, ranking: Ranking, query: Query, labels: Sequence[str], album: Album, attention: Attention | None
) -> dict[str, Any]:
    """What is shown of a query, and by which values of the filters it is found."""
    gallery, truths, top = ranking.gallery_ids[place], ranking.truths[place], ranking.top[place][:NUM_IMAGES]
    images = [album.image(gallery, image) | {"score": score, "truth": image in truths} for image, score in top]
    rank, values = int(ranking.rank[place]), {label: getattr(query, label).strip() for label in labels}
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
            # With a sign before it, since an empty value is that of "all".
            **{label: [f"={value.casefold()}"] for label, value in values.items()},
        },
        "rank": rank,
        "gallery_size": int(ranking.gallery_size[place]),
        "frames": frames,
        "attention": seen,
        "images": images,
        # Where none is among the first, one is shown behind them.
        "truth": None if any(image["truth"] for image in images) else _truth(gallery, truths, album),
    }


def _truth(gallery: str, truths: Sequence[str], album: Album) -> dict[str, Any]:
    """A true image, one that is in the gallery if any is."""
    found = [album.image(gallery, truth) for truth in truths]
    return next((image for image in found if image["thumbnail"]), found[0])


def _largest(scores: Mapping[str, Any], num: int) -> dict[str, Any]:
    """In their order, but only those with the most queries."""
    kept = sorted(scores, key=lambda value: -scores[value].num_queries)[:num]
    return {value: score for value, score in scores.items() if value in kept}


def _percent(share: float | Iterable[float]) -> str:
    if isinstance(share, Iterable):
        return "–".join(f"{100 * end:.1f}" for end in share)
    return f"{100 * share:.1f} %"


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"

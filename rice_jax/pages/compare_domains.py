"""Several runs between the same domains as one HTML file: tables of paired differences, and queries that changed."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rice_jax.config import DataConfig
from rice_jax.eval.domain_leads import Asked, DomainRun, Pair, mean_lead, read_domain_run, require_same_queries
from rice_jax.eval.domains import short_names
from rice_jax.eval.metrics import MIN_GALLERIES
from rice_jax.files import write_lines
from rice_jax.input.digest import data_digest
from rice_jax.input.items import read_items
from rice_jax.input.transforms import sample_frames
from rice_jax.pages import report
from rice_jax.pages.shelf import Shelf
from rice_jax.types import DataError

NUM_QUERIES = 20  # of a pair of domains, shown at most
TASKS = {"retrieval": "Rank-1", "one_shot": "One-shot"}

logger = logging.getLogger(__name__)


def write_domain_comparison(path: Path, workdirs: Mapping[str, Path]) -> None:
    """Writes a page that compares runs between domains with the first of them, whole or not at all.

    The page has pictures if the data sets are still where the first run read them.

    Args:
        path: the page.
        workdirs: {name of a run: directory with its `results.json` and `rankings.jsonl`}, two or more.

    Raises:
        DataError: runs of another task, or with different queries, or the data sets of the first are no longer those
            that were evaluated.
        FileNotFoundError: a run has not been evaluated.
        OSError: the page cannot be written.
    """
    runs = {name: read_domain_run(workdir) for name, workdir in workdirs.items()}
    asked = {name: run.asked() for name, run in runs.items()}
    require_same_queries(asked)
    first = next(iter(asked.values()))
    shelf = _open_shelf(next(iter(runs.values())))
    changed = {pair: _changed([of_run[pair] for of_run in asked.values()]) for pair in first if pair[0] == "retrieval"}
    cards = [
        _card(pair, place, runs, shelf)
        for pair, places in changed.items()
        for place in np.array(places)[sample_frames(len(places), NUM_QUERIES)].tolist()
    ]
    html = report.render(
        "compare_domains.html.jinja",
        shelf,
        runs=list(runs),
        tables=[
            {
                "title": title,
                "pairs": [pair for own, pair in first if own == task],
                "rows": [_row(name, task, runs, asked) for name in runs],
            }
            for task, title in TASKS.items()
        ],
        pairs=[pair for _, pair in changed],
        num_changed=sum(map(len, changed.values())),
        num_queries=sum(len(first[pair].queries) for pair in changed),
        cards=cards,
        min_products=MIN_GALLERIES,
    )
    write_lines(path, [html])
    logger.info("%s: %d changed queries shown", path, len(cards))


def _open_shelf(run: DomainRun) -> Shelf | None:
    data = DataConfig(data_dir=run.about["data_dir"], domains=run.about["domains"])
    try:
        items = {name: read_items(data, name) for name in data.domain_names}
        digests = [data_digest(data.data_dir, name, "test") for name in data.domain_names]
    except FileNotFoundError as error:
        logger.warning("the page has no pictures: %s", error)
        return None
    if digests != run.about.get("evaluation", {}).get("data", digests):  # version 0.2 did not write them
        raise DataError(
            f"{data.data_dir}: found other data sets than those that were evaluated, expected the same: evaluate the "
            "runs again (rice eval)"
        )
    return Shelf(data.data_dir, items, short_names(list(items)), run.about["num_frames"])


def _row(name: str, task: str, runs: Mapping[str, DomainRun], asked: Mapping[str, dict[Pair, Asked]]) -> dict[str, Any]:
    """The shares of a run in each pair and their mean, each with its lead over the first run."""
    run, first = runs[name], next(iter(asked))
    own = {pair: of_pair for pair, of_pair in asked[name].items() if pair[0] == task}
    groups = [*([pair] for pair in own), list(own)]  # each pair, and all
    shares = [getattr(run.results[run.row], task)[pair].score.rank["rank-1"] for _, pair in own]
    leads = [
        None if name == first else mean_lead([own[pair] for pair in group], [asked[first][pair] for pair in group])
        for group in groups
    ]
    cells = [{"share": share, "lead": lead} for share, lead in zip([*shares, np.mean(shares)], leads, strict=True)]
    return {"run": name, "label": run.row.label, "cells": cells}


def _changed(asked: Sequence[Asked]) -> list[int]:
    """The places of queries that some runs answer rightly and others do not."""
    hits = np.array([of_run.hits > 0 for of_run in asked])
    return np.flatnonzero(hits.any(axis=0) & ~hits.all(axis=0)).tolist()


def _card(pair: Pair, place: int, runs: Mapping[str, DomainRun], shelf: Shelf | None) -> dict[str, Any]:
    asking, answering = pair[1].split(" to ")
    lines = {name: run.lines[pair][place] for name, run in runs.items()}
    first, *_ = lines.values()

    def answer(item: str) -> dict[str, Any]:
        return shelf.answer(answering, item) if shelf else {"id": item, "text": "", "thumbnail": None}

    hits = [line["rank"] == 1 for line in lines.values()]
    return {
        "pair": pair[1],
        "product": first["product"],
        "query": shelf.item(asking, first["query"]) if shelf else {"id": first["query"], "text": "", "pictures": []},
        "found": [
            {
                "run": name,
                "rank": line["rank"],
                "answers": [
                    answer(item) | {"score": score, "product": product, "truth": product == line["product"]}
                    for (item, score), product in zip(line["top"], line["answers"], strict=True)
                ],
            }
            for name, line in lines.items()
        ],
        "filters": {"pair": [pair[1]]}
        | {
            f"run{number}": ["gained"] if hit and not hits[0] else ["lost"] if hits[0] and not hit else []
            for number, hit in itertools.islice(enumerate(hits), 1, None)
        },
    }

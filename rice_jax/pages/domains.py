"""The report of a run between domains as one HTML file: results, curves, confusions, and queries with their answers."""

import collections
import dataclasses
import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rice_jax.config.loss import CONTRAST_METRICS
from rice_jax.eval.domains import DomainRanking, DomainResult, PairRanking
from rice_jax.eval.metrics import MIN_GALLERIES
from rice_jax.eval.results import Row
from rice_jax.files import write_lines
from rice_jax.pages import plots, report
from rice_jax.pages.plots import Curve, Plot
from rice_jax.pages.shelf import Shelf

NUM_QUERIES = 40  # of a pair of domains, shown at most
LAST_PLACE = 50  # of the plot of rank-k
LOSSES = ("loss", *CONTRAST_METRICS)  # and those of pairs of domains, such as "page-video"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DomainEvaluation:
    """What a report shows: one evaluation of a run.

    Attributes:
        run: the run's name, e.g. that of its workdir.
        results: the rows of the tables of results.
        row: the row that the rankings belong to.
        ranked: the rankings.
        log: lines of `metrics.jsonl`; may be empty.
    """

    run: str
    results: Mapping[Row, DomainResult]
    row: Row
    ranked: DomainRanking
    log: Sequence[report.Line]


class Confusion(NamedTuple):
    """Two products, and how often an item of each was the first answer to one of the other, over all pairs."""

    product: str
    other: str
    there: int  # `other` first, `product` true
    back: int


def write_domain_report(path: str | os.PathLike, evaluation: DomainEvaluation, shelf: Shelf) -> None:
    """Writes the report of a run, whole or not at all.

    Args:
        path: the file, usually `report.html`; replaced if it exists.
        evaluation: what to show.
        shelf: pictures of the test items; new, so that it holds no others.

    Raises:
        OSError: the file cannot be written.
    """
    result, ranked = evaluation.results[evaluation.row], evaluation.ranked
    confusions = [
        found._asdict() | {name: shelf.product(getattr(found, name)) for name in ("product", "other")}
        for found in confused_products(ranked.retrieval.values())
    ]
    cards = _cards(ranked, shelf)
    html = report.render(
        "domains.html.jinja",
        shelf,
        run=evaluation.run,
        row=evaluation.row,
        results=evaluation.results,
        result=result,
        tasks={"retrieval": result.retrieval, "one_shot": result.one_shot},
        means={
            task: float(np.mean([of_pair.score.rank["rank-1"] for of_pair in of_task.values()]))
            for task, of_task in (("retrieval", result.retrieval), ("one_shot", result.one_shot))
        },
        pairs=list(result.retrieval),
        plots=[_rank_plot(evaluation), *report.training_plots({"": evaluation.log}, _curves(result, evaluation.log))],
        confusions=confusions,
        cards=cards,
        num_queries=sum(len(of_pair.products) for of_pair in ranked.retrieval.values()),
        min_products=MIN_GALLERIES,
    )
    write_lines(path, [html])
    logger.info("%s: %d queries shown, %.1f MB", path, len(cards), len(html.encode()) / 1e6)


def confused_products(ranked: Iterable[PairRanking], num: int = report.NUM_PAIRS) -> list[Confusion]:
    """Finds the pairs of products that most often take each other's first place, the most confused pair first.

    Args:
        ranked: rankings whose wrong first answers are counted together.
        num: of pairs at most.
    """
    taken = collections.Counter(
        (product, answers[0])
        for of_pair in ranked
        for product, answers in zip(of_pair.products, of_pair.answers, strict=True)
        if answers[0] != product
    )
    found = [
        Confusion(product, other, count, taken[other, product])
        for (product, other), count in taken.items()
        if (count, product) > (taken[other, product], other)  # of both directions, the more frequent
    ]
    return sorted(found, key=lambda pair: (-pair.there - pair.back, pair))[:num]


def _curves(result: DomainResult, log: Sequence[report.Line]) -> dict[str, Sequence[str]]:
    of_pairs = {key: None for line in log for key in line if "-" in key and "/" not in key}
    names = [pair.replace(" ", "-") for pair in result.retrieval]
    return {
        "Loss": [*LOSSES, *of_pairs],
        "Accuracy in the batch": ("accuracy",),
        "Rank-1 while training": [f"retrieval/{name}-rank-1" for name in names],
        "One-shot accuracy while training": [f"retrieval/{name}-one-shot" for name in names],
    }


def _rank_plot(evaluation: DomainEvaluation) -> Plot:
    """Rank-k of each pair over k."""
    result, curves = evaluation.results[evaluation.row], {}
    largest = max(of_pair.galleries.max_size for of_pair in result.retrieval.values())
    last = max(2, min(largest, LAST_PLACE))
    for pair, ranked in evaluation.ranked.retrieval.items():
        found = np.cumsum(np.bincount(ranked.ranking.rank, minlength=last + 1)[1 : last + 1])
        curves[pair] = Curve(range(1, last + 1), found / ranked.num_queries)
    places = [place for place in (1, 2, 3, 5, 10, 20, 30, 50) if place <= last]
    return plots.lines("Rank-k", curves, xlabel="first k items", percent=True, places=places)


def _cards(ranked: DomainRanking, shelf: Shelf) -> list[dict[str, Any]]:
    """Cards of as many chosen queries of each pair as the page has room for."""
    chosen = [
        [(pair, place) for place in report.choose_queries(of_pair.ranking.rank, NUM_QUERIES)]
        for pair, of_pair in ranked.retrieval.items()
    ]
    cards: list[dict[str, Any]] = []
    for pair, place in filter(None, itertools.chain(*itertools.zip_longest(*chosen))):
        if shelf.num_characters > report.MAX_CHARACTERS:
            break
        cards.append(_card(pair, place, ranked.retrieval[pair], shelf))
    order = {pair: number for number, pair in enumerate(ranked.retrieval)}
    return sorted(cards, key=lambda card: (order[card["pair"]], card["place"]))


def _card(pair: str, place: int, ranked: PairRanking, shelf: Shelf) -> dict[str, Any]:
    asking, answering = pair.split(" to ")
    found, rank, product = ranked.ranking, int(ranked.ranking.rank[place]), ranked.products[place]
    answers = [
        shelf.answer(answering, item) | {"score": score, "product": other, "truth": other == product}
        for (item, score), other in zip(found.top[place], ranked.answers[place], strict=True)
    ]
    return {
        "pair": pair,
        "place": place,
        "query": shelf.item(asking, found.query_ids[place]),
        "product": product,
        "rank": rank,
        "gallery_size": int(found.gallery_size[place]),
        "answers": answers,
        # If none of its product's items is among the answers, one is shown behind them.
        "truth": None
        if any(answer["truth"] for answer in answers) or not found.truths[place]
        else shelf.answer(answering, found.truths[place][0]),
        "filters": {"pair": [pair], "outcome": ["hit" if rank == 1 else "miss"]},
    }

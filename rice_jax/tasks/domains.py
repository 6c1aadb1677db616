"""Task "domains": retrieval between every two sets of product items, as ROPE has them, and one-shot classification."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, PyTree

from rice_jax.config import Config, ConfigError
from rice_jax.eval import metrics, ranking
from rice_jax.eval.embed import (
    Embedder,
    compile_embedder,
    compute_rows,
    model_embedder,
    padded_batch_size,
    pixel_embedder,
)
from rice_jax.eval.results import PIXELS, Row, read_results, write_results
from rice_jax.input.items import Items, read_items
from rice_jax.input.pipeline import eval_batches
from rice_jax.pages import tables
from rice_jax.parallel.processes import agree
from rice_jax.tasks.retrieval import Retrieval, retrieval_problems
from rice_jax.tasks.task import Evaluator, Run
from rice_jax.types import DataError

CUTOFFS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class DomainResult:
    """One evaluation of all ordered pairs of domains, by their names, as "pages to videos".

    Attributes:
        retrieval: an item of the first domain looks for items of its product among all of the second.
        one_shot: an item of the first gets the product of the nearest one of the second, which has one item of each
            product; rank-1 is the accuracy.
    """

    retrieval: dict[str, metrics.Result]
    one_shot: dict[str, metrics.Result]

    def to_dict(self) -> dict[str, Any]:
        """The result as dicts, numbers and strings, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DomainResult":
        """The inverse of `to_dict`."""
        return cls(
            **{
                task: {pair: metrics.Result.from_dict(result) for pair, result in pairs.items()}
                for task, pairs in values.items()
            }
        )


class Domains(Retrieval):
    """RICE, trained and evaluated between sets of product items."""

    def check(self, config: Config) -> None:
        for problem in (*retrieval_problems(config), *_problems(config)):
            raise ConfigError(problem)

    def evaluators(self, run: Run) -> Mapping[str, Evaluator]:
        return {"retrieval": domain_evaluator(run)}

    def summary(self, config: Config, workdir: Path, step: int) -> str:
        row = Row(step)
        newest = read_results(workdir / "results.json", DomainResult).get(row)
        return f"{row.label.capitalize()}.\n\n{domain_tables(newest)}" if newest else ""


def domain_evaluator(run: Run) -> Evaluator:
    """Prepares the evaluation of a run's parameters on the test items of `config.data.domains`.

    Returns:
        A function of (step, params) that evaluates, writes `results.json` (one row per evaluated step) into the workdir
        and returns of every pair of domains {"pages-to-videos-rank-1": share, "pages-to-videos-one-shot": share, …}.

    Raises:
        FileNotFoundError: a data set is missing.
        DataError: one has no test items; later, two domains share no product.
    """
    config, data, path = run.config, run.config.eval_input, run.workdir / "results.json"
    batch_size = padded_batch_size(config.eval.batch_size, run.mesh)
    items = {name: read_items(data, name) for name in data.domain_names}
    embedder = compile_embedder(model_embedder(run.graphdef), run.params, run.mesh)

    def score(embedder: Embedder, params: PyTree) -> DomainResult:
        embeddings = {}
        for name in items:
            batches = eval_batches(data, name, batch_size, jax.process_index(), jax.process_count())
            embeddings[name] = compute_rows(embedder.video, params, batches, len(items[name].item_ids), run.mesh)
        return compare_domains(items, embeddings)

    def evaluate(step: int, params: PyTree) -> dict[str, float]:
        results = read_results(path, DomainResult) if path.exists() else {}
        if config.eval.pixels and agree(PIXELS not in results):
            results = {PIXELS: score(compile_embedder(pixel_embedder(), {}, run.mesh), {}), **results}
        results[Row(step)] = result = score(embedder, params)
        if jax.process_index() == 0:
            write_results(path, results, {"step": step, "domains": config.data.domains})
        shares = {}
        for pair in result.retrieval:
            name = pair.replace(" ", "-")
            shares[f"{name}-rank-1"] = result.retrieval[pair].score.rank["rank-1"]
            shares[f"{name}-one-shot"] = result.one_shot[pair].score.rank["rank-1"]
        return shares

    return evaluate


def compare_domains(items: Mapping[str, Items], embeddings: Mapping[str, Float32[np.ndarray, "N E"]]) -> DomainResult:
    """Ranks the items of every domain among those of every other one.

    Memory is that of the embeddings and of `ranking.rank`, however many items there are.

    Args:
        items: of each domain.
        embeddings: of its items, l2-normalised, finite.

    Returns:
        Rank-k for retrieval and for classification. An item that no item of the other domain shares its product with
        is left out and counted; one that the builder had to leave out is a miss.

    Raises:
        DataError: two domains share no product.
    """
    short = _short_names(list(items))
    retrieval, one_shot = {}, {}
    for query, gallery in itertools.permutations(items, 2):
        pair = f"{short[query]} to {short[gallery]}"
        sides = items[query], embeddings[query], items[gallery], embeddings[gallery], short[gallery]
        retrieval[pair] = _compare(*sides, range(len(items[gallery].item_ids)), CUTOFFS)
        one_shot[pair] = _compare(*sides, exemplars(items[gallery]), (1,))
    return DomainResult(retrieval, one_shot)


def exemplars(items: Items) -> list[int]:
    """Chooses a row of each product: that of the lowest item id, of ids as numbers or, if they are none, texts."""
    rows: dict[str, int] = {}
    for row in sorted(range(len(items.item_ids)), key=lambda row: (len(items.item_ids[row]), items.item_ids[row])):
        rows.setdefault(items.product_ids[row], row)
    return sorted(rows.values())


def domain_tables(result: DomainResult) -> str:
    """Both tables of one evaluation, with lines of at most 100 columns, without a newline at the end."""
    return (
        f"Retrieval: items of the one domain among all of the other\n\n{tables.gallery_table(result.retrieval)}\n\n"
        f"One-shot classification: among one item of each product\n\n{tables.gallery_table(result.one_shot)}"
    )


def _compare(
    queries: Items,
    query_embeddings: Float32[np.ndarray, "Q E"],
    gallery: Items,
    gallery_embeddings: Float32[np.ndarray, "G E"],
    gallery_name: str,
    rows: Sequence[int],
    cutoffs: Sequence[int],
) -> metrics.Result:
    truths: dict[str, list[str]] = {}
    for row in rows:
        truths.setdefault(gallery.product_ids[row], []).append(gallery.item_ids[row])
    asked = [row for row, product in enumerate(queries.product_ids) if product in truths]
    if not asked:
        raise DataError(f"No item looks for one of the {gallery_name}: none of them is of its product.")
    ranked = ranking.rank(
        query_embeddings[asked],
        [queries.item_ids[row] for row in asked],
        [gallery_name] * len(asked),
        [truths[queries.product_ids[row]] for row in asked],
        gallery_embeddings[list(rows)],
        [gallery_name] * len(rows),
        [gallery.item_ids[row] for row in rows],
        num_top=1,
    )
    everyone = [*queries.product_ids, *queries.skipped]
    known = truths.keys() | set(gallery.skipped)
    num_queries = sum(product in known for product in everyone)
    result = metrics.evaluate(ranked, num_queries=num_queries, cutoffs=cutoffs)
    return dataclasses.replace(result, num_without_truth=len(everyone) - num_queries)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """The names without the data set's, unless these would be alike."""
    short = {name: name.rpartition("/")[2] for name in names}
    return short if len(set(short.values())) == len(names) else dict(zip(names, names, strict=True))


def _problems(config: Config) -> Iterator[str]:
    """Settings of a run between domains that exclude each other."""
    data = config.data
    if not len({*data.domain_names} - {""}) == len(data.domain_names) > 1:
        yield f"config.data.domains: found {data.domains!r}, expected two sets or more, each once, separated by commas"
    if data.train or data.query or data.gallery:
        yield f"config.data.domains: found {data.domains!r} beside train, query or gallery, expected these to be empty"
    if config.model.ipd != "off" or config.eval.rerank:
        yield (
            "config.data.domains: expected with config.model.ipd='off' and config.eval.rerank=0, found "
            f"{config.model.ipd!r} and {config.eval.rerank}: items have no boxes, and a decoder matches gallery images"
        )

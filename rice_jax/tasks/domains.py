"""Task "domains": retrieval between every two sets of product items, as ROPE has them, and one-shot classification."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import PyTree

from rice_jax.config import Config, ConfigError
from rice_jax.config.cope import DOMAINS
from rice_jax.eval.domains import DomainRanking, DomainResult, rank_domains, short_names, write_domain_rankings
from rice_jax.eval.embed import (
    Embedder,
    compile_rows,
    compute_rows,
    domain_embedder,
    model_embedder,
    padded_batch_size,
    pixel_embedder,
)
from rice_jax.eval.results import EMBEDDING, PIXELS, WITHOUT_TEXT, Row, read_results, write_results
from rice_jax.input.items import read_items
from rice_jax.input.pipeline import eval_batches
from rice_jax.input.triplets import item_batches
from rice_jax.models.contract import SupportsDomains
from rice_jax.models.cope import CopeConfig
from rice_jax.models.weights import require_trained_embedding
from rice_jax.pages import report, tables
from rice_jax.pages.domains import DomainEvaluation, write_domain_report
from rice_jax.pages.shelf import Shelf
from rice_jax.parallel.processes import agree
from rice_jax.tasks.retrieval import Retrieval, retrieval_problems
from rice_jax.tasks.task import Evaluator, Run


class BetweenDomains:
    """The evaluation between sets of product items."""

    def evaluators(self, run: Run) -> Mapping[str, Evaluator]:
        if run.source:
            require_trained_embedding(run.source, run.params)
        return {run.place.name("retrieval"): DomainEvaluator(run).evaluate}

    def summary(self, run: Run, step: int) -> str:
        results = read_results(run.place.results, DomainResult)
        rows = [Row(step, ranking, source=run.place.source) for ranking in (EMBEDDING, WITHOUT_TEXT)]
        found = [f"{row.label.capitalize()}.\n\n{tables.domain_tables(results[row])}" for row in rows if row in results]
        return "\n\n".join(found)


class Domains(BetweenDomains, Retrieval):
    """RICE, trained and evaluated between sets of product items."""

    def check(self, config: Config) -> None:
        for problem in (*retrieval_problems(config), *domain_problems(config)):
            raise ConfigError(problem)

    def prepare(self, config: Config, workdir: Path) -> Config:
        return config


class DomainEvaluator:
    """Evaluates parameters on the test items of `config.data.domains`.

    It writes into the directory of the run's `place`: `results.json`, one row per evaluated step; `rankings.jsonl`, the
    newest rankings; at the end of a training and for an evaluated checkpoint also `report.html`.
    """

    def __init__(self, run: Run):
        """Reads the items and prepares the programs.

        Raises:
            FileNotFoundError: a data set is missing.
            DataError: a data set has no test items.
        """
        self._run, self._data = run, run.config.eval_input
        self._items = {name: read_items(self._data, name) for name in self._data.domain_names}
        self._batch_size = padded_batch_size(run.config.eval.batch_size, run.mesh)
        self._ways = self._by_ranking()

    def evaluate(self, step: int, params: PyTree) -> dict[str, float]:
        """Evaluates parameters after `step` updates.

        Returns:
            {"pages-to-videos-rank-1": share, "pages-to-videos-one-shot": share, …}, of every ordered pair of domains.

        Raises:
            DataError: two domains share no product.
        """
        run, place, path = self._run, self._run.place, self._run.place.results
        results = read_results(path, DomainResult) if path.exists() else {}
        if run.config.eval.pixels and agree(PIXELS not in results):
            pixels = self._rank(self._as_videos(pixel_embedder(), {}), {})
            results = {PIXELS: pixels.score(), **results}
        ranked = {ranking: self._rank(way, params) for ranking, way in self._ways.items()}
        results |= {Row(step, ranking, source=place.source): found.score() for ranking, found in ranked.items()}
        row = Row(step, source=place.source)
        result = results[row]
        shares = {}
        for pair in result.retrieval:
            name = pair.replace(" ", "-")
            shares[f"{name}-rank-1"] = result.retrieval[pair].score.rank["rank-1"]
            shares[f"{name}-one-shot"] = result.one_shot[pair].score.rank["rank-1"]
        if jax.process_index() == 0:
            self._write(results, row, ranked[EMBEDDING])
            if run.source or step >= run.config.train.total_steps:
                self._report(results, row, ranked[EMBEDDING], shares)
        return shares

    def _by_ranking(self) -> dict[str, "_Way"]:
        """What embeds the items, for each kind of row of the results."""
        run = self._run
        model = nnx.merge(run.graphdef, run.params)
        if SupportsDomains not in model.capabilities:
            return {EMBEDDING: self._as_videos(model_embedder(run.graphdef), run.params)}
        functions = {
            name: compile_rows(domain_embedder(run.graphdef, domain), run.params, run.mesh)
            for name, domain in zip(self._data.domain_names, DOMAINS, strict=True)
        }

        def way(text_domains: Sequence[str]) -> _Way:
            def batches(name: str) -> Iterable[dict]:
                domain = DOMAINS[self._data.domain_names.index(name)]
                with_text, share = domain in text_domains, (jax.process_index(), jax.process_count())
                return item_batches(self._data, domain, self._batch_size, *share, with_text=with_text)

            return _Way(functions, batches)

        texts = run.model.text_domains if isinstance(run.model, CopeConfig) else ()
        return {EMBEDDING: way(texts)} | ({WITHOUT_TEXT: way(())} if texts else {})

    def _as_videos(self, embedder: Embedder, params: PyTree) -> "_Way":
        """Embeds items of all domains alike, as videos."""
        function = compile_rows(embedder.video, params, self._run.mesh)

        def batches(name: str) -> Iterable[dict]:
            return eval_batches(self._data, name, self._batch_size, jax.process_index(), jax.process_count())

        return _Way(dict.fromkeys(self._data.domain_names, function), batches)

    def _rank(self, way: "_Way", params: PyTree) -> DomainRanking:
        embeddings = {}
        for name, items in self._items.items():
            rows, mesh = len(items.item_ids), self._run.mesh
            embeddings[name] = compute_rows(way.functions[name], params, way.batches(name), rows, mesh)
        return rank_domains(self._items, embeddings)

    def _write(self, results: Mapping[Row, DomainResult], row: Row, ranked: DomainRanking) -> None:
        data, place = self._data, self._run.place
        about = {
            "step": row.step,
            "data_dir": data.data_dir,
            "domains": data.domains,
            "num_frames": data.num_frames,
            "rankings": dataclasses.asdict(row),
            "evaluation": place.evaluation,
        }
        write_results(place.results, results, about)
        write_domain_rankings(place.directory / "rankings.jsonl", ranked)

    def _report(
        self, results: Mapping[Row, DomainResult], row: Row, ranked: DomainRanking, shares: Mapping[str, float]
    ) -> None:
        data, place = self._data, self._run.place
        shelf = Shelf(data.data_dir, self._items, short_names(list(self._items)), data.num_frames)
        log = report.run_log(self._run.workdir, row.step or 0, shares if place.is_own else None)
        evaluation = DomainEvaluation(place.run_name(self._run.workdir), results, row, ranked, log)
        write_domain_report(place.directory / "report.html", evaluation, shelf)


class _Way(NamedTuple):
    """How the items of each set become embeddings."""

    functions: Mapping[str, Callable]  # of (parameters, batch)
    batches: Callable[[str], Iterable[dict]]  # of a set


def domain_problems(config: Config) -> Iterator[str]:
    """Settings of a run between domains that exclude each other."""
    data = config.data
    if not len({*data.domain_names} - {""}) == len(data.domain_names) > 1:
        yield f"config.data.domains: found {data.domains!r}, expected two sets or more, each once, separated by commas"
    if data.train or data.query or data.gallery:
        yield f"config.data.domains: found {data.domains!r} beside train, query or gallery, expected these to be empty"
    if data.boxed_frames or data.crop_around_box:
        yield (
            "config.data.boxed_frames and crop_around_box: expected False with config.data.domains, since items have "
            "no boxes"
        )
    if config.model.ipd != "off" or config.eval.rerank:
        yield (
            "config.data.domains: expected with config.model.ipd='off' and config.eval.rerank=0, found "
            f"{config.model.ipd!r} and {config.eval.rerank}: items have no boxes, and a decoder matches gallery images"
        )

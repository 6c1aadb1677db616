"""Task "domains": retrieval between every two sets of product items, as ROPE has them, and one-shot classification."""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
from jaxtyping import PyTree

from rice_jax.config import Config, ConfigError
from rice_jax.eval.domains import DomainRanking, DomainResult, rank_domains, short_names, write_domain_rankings
from rice_jax.eval.embed import (
    Embedder,
    compile_embedder,
    compute_rows,
    model_embedder,
    padded_batch_size,
    pixel_embedder,
)
from rice_jax.eval.results import PIXELS, Row, read_results, write_results
from rice_jax.input.items import read_items
from rice_jax.input.pipeline import eval_batches
from rice_jax.models.weights import require_trained_embedding
from rice_jax.pages import report, tables
from rice_jax.pages.domains import DomainEvaluation, write_domain_report
from rice_jax.pages.shelf import Shelf
from rice_jax.parallel.processes import agree
from rice_jax.tasks.retrieval import Retrieval, retrieval_problems
from rice_jax.tasks.task import Evaluator, Run


class Domains(Retrieval):
    """RICE, trained and evaluated between sets of product items."""

    def check(self, config: Config) -> None:
        for problem in (*retrieval_problems(config), *domain_problems(config)):
            raise ConfigError(problem)

    def evaluators(self, run: Run) -> Mapping[str, Evaluator]:
        if run.source:
            require_trained_embedding(run.source, run.params)
        return {run.place.name("retrieval"): DomainEvaluator(run).evaluate}

    def summary(self, run: Run, step: int) -> str:
        row = Row(step, source=run.place.source)
        newest = read_results(run.place.results, DomainResult).get(row)
        return f"{row.label.capitalize()}.\n\n{tables.domain_tables(newest)}" if newest else ""


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
        self._embedder = compile_embedder(model_embedder(run.graphdef), run.params, run.mesh)

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
            pixels = self._rank(compile_embedder(pixel_embedder(), {}, run.mesh), {})
            results = {PIXELS: pixels.score(), **results}
        row = Row(step, source=place.source)
        ranked = self._rank(self._embedder, params)
        results[row] = result = ranked.score()
        shares = {}
        for pair in result.retrieval:
            name = pair.replace(" ", "-")
            shares[f"{name}-rank-1"] = result.retrieval[pair].score.rank["rank-1"]
            shares[f"{name}-one-shot"] = result.one_shot[pair].score.rank["rank-1"]
        if jax.process_index() == 0:
            self._write(results, row, ranked)
            if run.source or step >= run.config.train.total_steps:
                self._report(results, row, ranked, shares)
        return shares

    def _rank(self, embedder: Embedder, params: PyTree) -> DomainRanking:
        data, mesh = self._data, self._run.mesh
        batch_size = padded_batch_size(self._run.config.eval.batch_size, mesh)
        embeddings = {}
        for name, items in self._items.items():
            batches = eval_batches(data, name, batch_size, jax.process_index(), jax.process_count())
            embeddings[name] = compute_rows(embedder.video, params, batches, len(items.item_ids), mesh)
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

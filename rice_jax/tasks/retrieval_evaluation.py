"""The evaluation of task "retrieval": rank, re-rank, calibrate, report."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, PyTree

from rice_jax.eval import attention, fusion, metrics, ranking, rerank
from rice_jax.eval.calibration import fit_calibration, write_calibration
from rice_jax.eval.embed import (
    Embedder,
    Images,
    compile_embedder,
    compile_rows,
    compute_rows,
    model_embedder,
    padded_batch_size,
    pixel_embedder,
)
from rice_jax.eval.pooling import SHARPNESS
from rice_jax.eval.results import (
    FUSED,
    MATCH,
    PIXEL_RANKINGS,
    PIXELS,
    WEIGHTED_MATCH,
    Row,
    rankings_file,
    read_about,
    read_results,
    write_rankings,
    write_results,
)
from rice_jax.eval.scores import VideoEmbeddings
from rice_jax.eval.weight import cross_fit
from rice_jax.input.ground_truth import Query, read_gallery_index, read_metadata, read_query_index
from rice_jax.input.pipeline import eval_batches
from rice_jax.input.product_boxes import ProductBoxes
from rice_jax.input.text_embeddings import known_fingerprint, known_model
from rice_jax.input.tokenizer import Tokenizer
from rice_jax.models.contract import SupportsStreaming, require
from rice_jax.models.text_weights import require_same_texts, text_fingerprint
from rice_jax.models.weights import embedding_fingerprint, match_fingerprint, missing, require_trained
from rice_jax.pages import report
from rice_jax.pages.album import Album
from rice_jax.pages.attention import Attention
from rice_jax.parallel.processes import agree
from rice_jax.tasks.task import Run

LABELS = ("scale", "duration", "number", "category", "source", "speech")
WEIGHTS = "text_weights", "match_weights"  # that rows of `results.json` were ranked with
NUM_TOP = 10  # products of a query in `rankings.jsonl`, unless more are matched


def embedding_row(step: int, source: str = "") -> Row:
    """The row of a ranking by embedding."""
    return Row(step, "embedding", source=source)


def fused_row(step: int, source: str = "") -> Row:
    """The row of a ranking by picture and text."""
    return Row(step, FUSED, source=source)


def match_row(step: int, num_matched: int, source: str = "") -> Row:
    """The row of a ranking whose first products the decoder re-ordered."""
    return Row(step, MATCH, num_matched, source)


def weighted_match_row(step: int, num_matched: int, source: str = "") -> Row:
    """The row of a ranking whose first products were re-ordered by score + weight · match."""
    return Row(step, WEIGHTED_MATCH, num_matched, source)


class RetrievalEvaluator:
    """Evaluates parameters on a run's queries and galleries.

    It writes into the directory of the run's `place`: `results.json`, one row per evaluated step and ranking;
    `rankings.jsonl`, the newest ranking; `rankings_NAME.jsonl`, those before it and, with `config.eval.pixels`, that by
    the nearest raw pixels; at the end of a training and for an evaluated checkpoint also `report.html` and
    `calibration.json`. There is no calibration for models that need boxes (`config.model.ipd`), since livestreams have
    none.
    """

    def __init__(self, run: Run):
        """Reads the ground truth and prepares the programs.

        Raises:
            ConfigError: the model cannot encode a video frame by frame, as ranking by frames needs.
            FileNotFoundError: a data set is missing.
            CheckpointError: the evaluation re-ranks, and the checkpoint to evaluate has no trained decoder or text
                tower; or it was trained with texts that another model embedded.
        """
        if run.config.eval.score == "frames":
            require(nnx.merge(run.graphdef, run.params), SupportsStreaming, "config.eval.score='frames'")
        self._run, self._data = run, run.config.eval_input
        self._batch_size = padded_batch_size(run.config.eval.batch_size, run.mesh)
        self._num_matched = run.config.eval.rerank
        self._by_frames = run.config.eval.score == "frames"
        self._has_decoder = "pmd" in run.params
        if run.source and run.config.eval.fuses and "text" in run.params:
            advice = "evaluate a run of config.model.text='tower', or set config.eval.text_weight='off'"
            require_trained(run.source, run.params, "text", "text tower", advice)
        if run.source and self._num_matched:
            advice = "evaluate a run that trained with config.loss.pmd_weight above 0, or set config.eval.rerank=0"
            require_trained(run.source, run.params, "pmd", "decoder to match with", advice)
            if "text" in run.params:
                advice = "evaluate a run of config.model.text='tower', or set config.eval.rerank=0"
                require_trained(run.source, run.params, "text", "text tower", advice)
        if run.source and run.config.data.texts:
            require_same_texts(run.source, known_fingerprint(run.config.data.texts))
        if run.source and self._has_decoder:
            self._has_decoder = not missing(run.source, run.params, "pmd")
        self._queries = read_query_index(self._data)
        self._gallery = read_gallery_index(self._data.data_dir, self._data.gallery)
        self._rows = self._gallery.rows
        self._num_queries = read_metadata(self._data, "query")["num_queries"]
        self._skipped_images = read_metadata(self._data, "gallery")["skipped"]
        with_queries = self._num_matched > 0 and run.config.eval.rerank_keep_tokens
        self._keeps_frames = self._by_frames or self._can_calibrate_by_frames()
        self._fuses = run.config.eval.fuses
        embedder = model_embedder(
            run.graphdef, with_queries=with_queries, with_frames=self._keeps_frames, with_texts=self._fuses
        )
        self._embedder = compile_embedder(embedder, run.params, run.mesh)
        self._matcher = compile_rows(rerank.matcher(run.graphdef), run.params, run.mesh)

    def evaluate(self, step: int, params: PyTree) -> dict[str, float]:
        """Evaluates parameters after `step` updates.

        Returns:
            Rank-k and mAP as {"rank-1": share, …}; by picture and text, also {"fused-rank-1": share, …}; if images were
            re-ranked, also {"matched-rank-1": share, …} by the decoder alone, and {"weighted-match-rank-1": share, …}.

        Raises:
            DataError: a ground truth is in no gallery, or a query has no gallery.
        """
        run, path, source = self._run, self._run.place.results, self._run.place.source
        results = read_results(path) if path.exists() else {}
        sharpness = self._sharpness(params)
        if run.config.eval.pixels and agree(PIXELS not in results):
            embedder = compile_embedder(pixel_embedder(with_frames=self._by_frames), {}, run.mesh)
            pixels = self.rank(*self.embed(embedder, {}), sharpness)
            results = {PIXELS: self._score(pixels), **results}
            if jax.process_index() == 0:
                write_rankings(run.place.directory / PIXEL_RANKINGS, pixels)
        start, row = time.perf_counter(), embedding_row(step, source)
        videos, images = self.embed(self._embedder, params)
        ranked = self.rank(videos, images, sharpness)
        if self._fuses:
            self._queries = _with_speech(self._queries, videos)
        results[row] = self._score(ranked, time.perf_counter() - start)
        shares, about, matches, rankings = _logged(results[row]), {}, None, {row: ranked}
        if self._fuses:
            start, row = time.perf_counter(), fused_row(step, source)
            ranked, weights = self.rank_fused(videos, images, sharpness)
            about = {"text_weights": sorted({*weights.tolist()})}
            results[row], rankings[row] = self._score(ranked, time.perf_counter() - start), ranked
            shares |= {f"fused-{key}": share for key, share in _logged(results[row]).items()}
        if self._num_matched and (step or run.source):  # a fresh decoder's order would be random
            start, row = time.perf_counter(), match_row(step, self._num_matched, source)
            matches = self.match(ranked, images, params)
            rankings[row] = rerank.reorder(*matches)
            seconds = time.perf_counter() - start
            results[row] = self._score(rankings[row], seconds)
            shares |= {f"matched-{key}": share for key, share in _logged(results[row]).items()}
            start, row = time.perf_counter() - seconds, weighted_match_row(step, self._num_matched, source)
            ranked, weights = self.reorder(matches, videos, images, sharpness)
            about |= {"match_weights": sorted({*weights.tolist()})}
            results[row], rankings[row] = self._score(ranked, time.perf_counter() - start), ranked
            shares |= {f"weighted-match-{key}": share for key, share in _logged(results[row]).items()}
        self._write(results, rankings, about)
        if run.source or step >= run.config.train.total_steps:
            if run.config.model.ipd == "off":
                self.calibrate(videos, images, sharpness, params, matches)
            self.report(results, row, ranked, shares, params)
        return shares

    def embed(self, embedder: Embedder, params: PyTree) -> tuple[VideoEmbeddings, Images]:
        """Computes the embeddings of all videos, and what is kept of all images."""
        images = self._compute(embedder.image, params, self._batches("gallery"), len(self._gallery.image_ids))
        videos = self._compute(embedder.video, params, self._batches("query"), len(self._queries))
        return videos if isinstance(videos, VideoEmbeddings) else VideoEmbeddings(videos), images

    def rank(self, videos: VideoEmbeddings, images: Images, sharpness: float) -> ranking.Ranking:
        """Ranks every query's gallery by embeddings."""
        queries, gallery = self._ranking_queries(videos, by_frames=self._by_frames), self._images(images, sharpness)
        return ranking.rank(queries, gallery, num_top=max(NUM_TOP, self._num_matched))

    def rank_fused(
        self, videos: VideoEmbeddings, images: Images, sharpness: float
    ) -> tuple[ranking.Ranking, Float[np.ndarray, " Q"]]:
        """Ranks every query's gallery by pictures and texts, each query with a weight that is not fitted to it."""
        queries, gallery = self._ranking_queries(videos, by_frames=self._by_frames), self._images(images, sharpness)
        texts, weight = self._texts(videos, images), self._run.config.eval.fixed_text_weight
        weights = np.full(len(self._queries), weight) if weight else fusion.cross_fitted(queries, gallery, texts)
        fused = fusion.fuse(queries, gallery, texts, weights)
        return ranking.rank(*fused, num_top=max(NUM_TOP, self._num_matched)), weights

    def match(self, ranked: ranking.Ranking, images: Images, params: PyTree) -> rerank.Matched:
        """Lets the decoder match every query with its first products."""
        rows = rerank.candidates(ranked, self._num_matched, self._gallery.gallery_ids, self._gallery.image_ids)
        kept = None if images.queries is None else np.asarray(images.queries)
        batches = rerank.match_batches(self._data, self._batch_size, rows, kept)
        return rerank.Matched(ranked, self._compute(self._matcher, params, batches, len(self._queries)))

    def reorder(
        self, matches: rerank.Matched, videos: VideoEmbeddings, images: Images, sharpness: float
    ) -> tuple[ranking.Ranking, Float[np.ndarray, " Q"]]:
        """Re-orders the first products by score + weight · match, each query with a weight that is not fitted to it.

        Neither is the weight of the texts that the match's is fitted with.
        """
        queries, gallery = self._ranking_queries(videos, by_frames=self._by_frames), self._images(images, sharpness)

        def fit(among: Bool[np.ndarray, " Q"]) -> float:
            scored = queries, gallery
            if self._fuses:
                texts = self._texts(videos, images)
                weight = self._run.config.eval.fixed_text_weight or fusion.fit_weight(*scored, texts, among=among)
                scored = fusion.fuse(*scored, texts, weight)
            return rerank.fit_weight(matches, *scored, among=among)

        weights = cross_fit([truths[0] for truths in matches.ranked.truths], fit)
        return rerank.reorder(matches.ranked, rerank.add_matches(matches, weights)), weights

    def calibrate(
        self, videos: VideoEmbeddings, images: Images, sharpness: float, params: PyTree, matches: rerank.Matched | None
    ) -> None:
        """Fits and writes `calibration.json`, unless no query has a truth in its gallery.

        With texts, their weight is fitted to all queries, and the calibration to the scores with it. The weights of the
        matches are fitted to all queries, too; matches have no part in the confidences.
        """
        gallery = self._images(images, sharpness)
        mean = self._ranking_queries(videos, by_frames=False)
        by_frames = self._ranking_queries(videos, by_frames=True) if self._keeps_frames else None
        weight = 0.0
        if self._fuses:
            texts, pictures = self._texts(videos, images), gallery
            ranked = by_frames if self._by_frames and by_frames else mean
            weight = self._run.config.eval.fixed_text_weight or fusion.fit_weight(ranked, pictures, texts)
            mean, gallery = fusion.fuse(mean, pictures, texts, weight)
            by_frames = fusion.fuse(by_frames, pictures, texts, weight)[0] if by_frames else None
        calibration = fit_calibration(
            mean,
            gallery,
            num_frames=self._data.num_frames,
            fingerprint=embedding_fingerprint(params, self._run.model, self._data.resize),
            by_frames=by_frames,
        )
        fingerprint, model = self._text_model(params) if weight else ("", "")
        decoder = match_fingerprint(params, self._run.model) if matches else None
        if calibration and jax.process_index() == 0:
            told = dataclasses.replace(calibration, text_weight=weight, text_fingerprint=fingerprint, text_model=model)
            if matches:
                told = dataclasses.replace(
                    told,
                    match_weight=rerank.fit_weight(matches, mean, gallery),
                    match_weight_by_frames=rerank.fit_weight(matches, by_frames, gallery) if by_frames else None,
                    match_fingerprint=decoder,
                )
            write_calibration(self._run.place.directory, told)

    def report(
        self,
        results: Mapping[Row, metrics.Result],
        row: Row,
        ranked: ranking.Ranking,
        shares: Mapping[str, float],
        params: PyTree,
    ) -> None:
        """Writes `report.html`."""
        seen = self._attention(ranked, params) if self._has_decoder else None  # on all devices, in all processes
        if jax.process_index():
            return
        data, workdir, place = self._data, self._run.workdir, self._run.place
        boxes = ProductBoxes(data, data.query_boxes, ()) if data.query_boxes else None
        album = Album(data.data_dir, data.query, data.gallery, self._rows, data.num_frames, boxes)
        evaluation = report.Evaluation(
            run=place.run_name(workdir),
            results=results,
            row=row,
            ranking=ranked,
            queries=self._queries,
            log=report.run_log(workdir, row.step or 0, shares if place.is_own else None),
            skipped=read_metadata(data, "query").get("skipped", {}),
            by_frames=self._by_frames,
        )
        report.write_report(place.directory / "report.html", evaluation, album, seen)

    def _can_calibrate_by_frames(self) -> bool:
        model = nnx.merge(self._run.graphdef, self._run.params)
        return self._run.config.model.ipd == "off" and SupportsStreaming in model.capabilities

    def _ranking_queries(self, videos: VideoEmbeddings, *, by_frames: bool) -> ranking.Queries:
        return ranking.Queries(
            embeddings=np.asarray(videos.frames if by_frames else videos.embedding),
            ids=[query.clip_id for query in self._queries],
            gallery_ids=[query.gallery_id for query in self._queries],
            truths=[query.image_ids for query in self._queries],
            frame_mask=np.asarray(videos.frame_mask) if by_frames else None,
        )

    def _texts(self, videos: VideoEmbeddings, images: Images) -> fusion.TextVectors:
        return fusion.TextVectors(np.asarray(images.title), np.asarray(videos.speech))

    def _text_model(self, params: PyTree) -> tuple[str, str]:
        """Fingerprint and directory of what embeds the texts; "" = unknown, or the run itself."""
        texts = self._run.config.data.texts
        if texts:
            return known_fingerprint(texts), known_model(texts)
        tower, data = self._run.config.model.texts, self._data
        assert tower and tower.tower, "the settings exclude an evaluation by texts without any"
        tokenizer = Tokenizer(data.tokenizer, data.text_context)
        return text_fingerprint(params["text"], tower.tower, tokenizer.digest), ""

    def _images(self, images: Images, sharpness: float) -> ranking.GalleryImages:
        gallery_ids, image_ids, product_ids = self._gallery
        embeddings = np.asarray(images.embedding)
        return ranking.GalleryImages(embeddings, gallery_ids, image_ids, self._skipped_images, product_ids, sharpness)

    def _sharpness(self, params: PyTree) -> float:
        """By which the scores of a product's images are pooled, as in recognition."""
        if self._gallery.product_ids == self._gallery.image_ids:
            return 0.0
        return SHARPNESS * float(nnx.merge(self._run.graphdef, params).similarity_scale())

    def _write(
        self,
        results: Mapping[Row, metrics.Result],
        rankings: Mapping[Row, ranking.Ranking],
        further: Mapping[str, Any],
    ) -> None:
        """Writes the results and the rankings of this evaluation, the newest of which comes last."""
        if jax.process_index():
            return
        data, place = self._data, self._run.place
        *_, row = rankings
        former = read_about(place.results) if place.results.exists() else {}
        if former.get("step") == row.step:  # an evaluation with fewer rows leaves the others as they are
            further = {**{name: former[name] for name in WEIGHTS if name in former}, **further}
        about = {
            "step": row.step,
            "data_dir": data.data_dir,
            "query": data.query,
            "gallery": data.gallery,
            "num_frames": data.num_frames,
            "rankings": dataclasses.asdict(row),
            "evaluation": place.evaluation,
            **further,
        }
        write_results(place.results, results, about)
        for own, ranked in rankings.items():
            name = "rankings.jsonl" if own == row else rankings_file(own.ranking)
            write_rankings(place.directory / name, ranked)

    def _score(self, ranked: ranking.Ranking, seconds: float | None = None) -> metrics.Result:
        values = {label: [getattr(query, label) for query in self._queries] for label in LABELS}
        known = {label: column for label, column in values.items() if any(column)}  # others are not in the data set
        result = metrics.evaluate(ranked, num_queries=self._num_queries, labels=known)
        # Times only serve to compare two rankings. Without them, equal runs write equal files.
        return dataclasses.replace(result, seconds=seconds if self._num_matched else None)

    def _attention(self, ranked: ranking.Ranking, params: PyTree) -> Attention | None:
        places = report.choose_queries(ranked.rank)[: attention.NUM_QUERIES]
        found = attention.true_images(places, ranked, self._rows)
        if not found:
            return None
        images = [self._rows[ranked.gallery_ids[place], image_id] for place, image_id in found.items()]
        batches = attention.attention_batches(self._data, self._batch_size, list(found), images)
        function = compile_rows(attention.attention_maps(self._run.graphdef), params, self._run.mesh)
        return Attention(self._data, found, self._compute(function, params, batches, len(found)))

    def _batches(self, role: str) -> Iterable[dict]:
        return eval_batches(self._data, role, self._batch_size, jax.process_index(), jax.process_count())

    def _compute(self, function: Callable, params: PyTree, batches: Iterable[dict], num_rows: int) -> PyTree:
        return compute_rows(function, params, batches, num_rows, self._run.mesh)


def _with_speech(queries: Sequence[Query], videos: VideoEmbeddings) -> list[Query]:
    speech = np.asarray(videos.speech)
    return [
        query._replace(speech="with" if own.any() else "without") for query, own in zip(queries, speech, strict=True)
    ]


def _logged(result: metrics.Result) -> dict[str, float]:
    """What training logs of an evaluation; `results.json` has more."""
    return result.score.rank | {"mAP": result.score.order["mAP"].mean}

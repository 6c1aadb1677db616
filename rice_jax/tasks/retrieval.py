"""The retrieval evaluator: embeds queries and galleries, ranks, and keeps the run's results."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from rice_jax.config import Config
from rice_jax.eval import attention, metrics, ranking, rerank
from rice_jax.eval.calibration import fit_calibration, write_calibration
from rice_jax.eval.embed import (
    Embedder,
    Images,
    compile_embedder,
    compile_rows,
    compute_rows,
    model_embedder,
    pixel_embedder,
)
from rice_jax.eval.results import read_results, write_rankings, write_results
from rice_jax.input.ground_truth import read_gallery_index, read_metadata, read_query_index
from rice_jax.input.pipeline import eval_batches
from rice_jax.input.product_boxes import ProductBoxes
from rice_jax.models.weights import embedding_fingerprint
from rice_jax.pages import report
from rice_jax.pages.album import Album
from rice_jax.parallel.processes import agree

LABELS = ("scale", "duration", "number", "category", "source")
PIXELS = "nearest raw pixels"
NUM_TOP = 10  # images by name and score in `rankings.jsonl`, or as many as are matched


def row_name(step: int, num_matched: int = 0) -> str:
    """The name of a step's row in `results.json` and in the table."""
    matched = f", first {num_matched} matched" if num_matched else ""
    return (f"after {step:,} steps" if step else "before training") + matched


def retrieval_evaluator(
    config: Config,
    graphdef: nnx.GraphDef,
    params: PyTree,
    mesh: Mesh,
    workdir: Path,
    *,
    match_before_training: bool = False,
    report_from_step: int | None = None,
    with_attention: bool = False,
) -> Callable[[int, PyTree], dict[str, float]]:
    """Prepares the evaluation of a run's parameters on its queries and galleries.

    Args:
        config: data sets, batch size, whether to rank raw pixels too, and how many images to match.
        graphdef: structure of the model.
        params: parameters or their shapes.
        mesh: all devices.
        workdir: where `results.json` (one row per evaluated step, another one where images were matched) and
            `rankings.jsonl` (the newest row's, which `results.json` names) are written.
        match_before_training: whether the decoder of step 0 has been trained elsewhere; a fresh one is not asked.
        report_from_step: from this step on `report.html` (`page`) is written too, and `calibration.json` unless boxes
            tell where to look, which nobody does of a livestream; None = never.
        with_attention: whether the report draws the decoder's attention: there is one, which has been trained by then.

    Returns:
        A function of (step, params) that evaluates, writes both files and returns rank-k as {"rank-1": share, …}, and
        where images were matched {"matched-rank-1": share, …}.

    Raises:
        FileNotFoundError: a data set is missing.
        ValueError: later, for a ground truth that is in no gallery, or a query without gallery.
    """
    data = dataclasses.replace(config.data, num_frames=config.eval.num_frames)
    batch_size, num_matched = config.eval.batch_size, config.eval.rerank
    queries = read_query_index(data)
    gallery_ids, image_ids = read_gallery_index(data)
    num_queries = read_metadata(data, "query")["num_queries"]
    skipped_images = read_metadata(data, "gallery")["skipped"]
    with_queries = num_matched > 0 and config.eval.rerank_keep_tokens
    embedder = compile_embedder(model_embedder(graphdef, with_queries=with_queries), params, mesh)
    match = compile_rows(rerank.matcher(graphdef), params, mesh)
    path = workdir / "results.json"

    def embed(function: Callable, params: PyTree, role: str, num_rows: int) -> PyTree:
        batches = eval_batches(data, role, batch_size, jax.process_index(), jax.process_count())
        return compute_rows(function, params, batches, num_rows, mesh)

    def rank(embedder: Embedder, params: PyTree) -> tuple[ranking.Ranking, Images, np.ndarray]:
        images = embed(embedder.image, params, "gallery", len(image_ids))
        videos = embed(embedder.video, params, "query", len(queries))
        ranked = ranking.rank(
            videos,
            [query.clip_id for query in queries],
            [query.gallery_id for query in queries],
            [query.image_ids for query in queries],
            images.embedding,
            gallery_ids,
            image_ids,
            skipped_images=skipped_images,
            num_top=max(NUM_TOP, num_matched),
        )
        return ranked, images, videos

    def match_first(ranked: ranking.Ranking, images: Images, params: PyTree) -> ranking.Ranking:
        rows = rerank.candidates(ranked, num_matched, gallery_ids, image_ids)
        batches = rerank.match_batches(data, batch_size, rows, images.queries)
        return rerank.reorder(ranked, compute_rows(match, params, batches, len(queries), mesh))

    def score(ranked: ranking.Ranking, seconds: float | None = None) -> metrics.Result:
        values = {label: [getattr(query, label) for query in queries] for label in LABELS}
        labels = {label: known for label, known in values.items() if any(known)}  # that the data set tells
        result = metrics.evaluate(ranked, num_queries=num_queries, labels=labels)
        # Times are there to compare two rankings; without them equal runs write equal files.
        return dataclasses.replace(result, seconds=seconds if num_matched else None)

    def calibrate(videos: np.ndarray, images: Images, params: PyTree) -> None:
        calibration = fit_calibration(
            videos,
            [query.gallery_id for query in queries],
            [query.image_ids for query in queries],
            images.embedding,
            gallery_ids,
            image_ids,
            num_frames=data.num_frames,
            fingerprint=embedding_fingerprint(params, config.model, data.resize),
        )
        if calibration and jax.process_index() == 0:
            write_calibration(workdir, calibration)

    def write_page(
        results: dict[str, metrics.Result],
        name: str,
        ranked: ranking.Ranking,
        step: int,
        shares: dict[str, float],
        params: PyTree,
    ) -> None:
        rows = {pair: row for row, pair in enumerate(zip(gallery_ids, image_ids, strict=True))}
        seen = attend(ranked, rows, params) if with_attention else None  # on all devices, and so in all processes
        if jax.process_index():
            return
        boxes = ProductBoxes(data, data.query_boxes, ()) if data.query_boxes else None
        album = Album(data.data_dir, data.query, data.gallery, rows, data.num_frames, boxes)
        now = {"step": step} | {f"retrieval/{key}": share for key, share in shares.items()}
        log = [line for line in report.read_log(workdir / "metrics.jsonl") if line["step"] < step or "loss" in line]
        report.write_report(
            workdir / "report.html",
            workdir.name,
            results,
            name,
            ranked,
            queries,
            LABELS,
            album,
            [*log, now],  # a training logs its last evaluation only after this
            read_metadata(data, "query").get("skipped", {}),
            seen,
        )

    def attend(ranked: ranking.Ranking, rows: dict[tuple[str, str], int], params: PyTree) -> attention.Attention | None:
        places = report.choose_queries(ranked.rank)[: attention.NUM_QUERIES]
        found = attention.true_images(places, ranked, rows)
        if not found:
            return None
        images = [rows[ranked.gallery_ids[place], image_id] for place, image_id in found.items()]
        batches = attention.attention_batches(data, batch_size, list(found), images)
        function = compile_rows(attention.attention_maps(graphdef), params, mesh)
        return attention.Attention(data, found, compute_rows(function, params, batches, len(found), mesh))

    def evaluate(step: int, params: PyTree) -> dict[str, float]:
        results = read_results(path) if path.exists() else {}
        if config.eval.pixels and agree(PIXELS not in results):
            results = {PIXELS: score(rank(compile_embedder(pixel_embedder(), {}, mesh), {})[0]), **results}
        start, name = time.perf_counter(), row_name(step)
        ranked, images, videos = rank(embedder, params)
        results[name] = score(ranked, time.perf_counter() - start)
        shares = results[name].score.rank
        if num_matched and (step or match_before_training):
            start, name = time.perf_counter(), row_name(step, num_matched)
            ranked = match_first(ranked, images, params)
            results[name] = score(ranked, time.perf_counter() - start)
            shares = shares | {f"matched-{key}": share for key, share in results[name].score.rank.items()}
        if jax.process_index() == 0:
            about = {
                "step": step,
                "data_dir": data.data_dir,
                "query": data.query,
                "gallery": data.gallery,
                "num_frames": data.num_frames,
                "rankings": name,
            }
            write_results(path, results, about)
            write_rankings(workdir / "rankings.jsonl", ranked)
        if report_from_step is not None and step >= report_from_step:
            if config.model.ipd == "off":
                calibrate(videos, images, params)
            write_page(results, name, ranked, step, shares, params)
        return shares

    return evaluate

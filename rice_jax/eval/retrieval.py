"""The retrieval evaluator: embeds queries and galleries, ranks, and keeps the run's results."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from rice_jax.config import Config
from rice_jax.eval import metrics, ranking, report
from rice_jax.eval.embed import Embedder, compile_embedder, embed_all, model_embedder, pixel_embedder
from rice_jax.input.index import read_gallery_index, read_metadata, read_query_index
from rice_jax.input.pipeline import eval_batches

LABELS = ("scale", "duration", "number", "category")
PIXELS = "nearest raw pixels"


def row_name(step: int) -> str:
    """The name of a step's row in `results.json` and in the table."""
    return f"after {step:,} steps" if step else "before training"


def retrieval_evaluator(
    config: Config, graphdef: nnx.GraphDef, params: PyTree, mesh: Mesh, workdir: Path
) -> Callable[[int, PyTree], dict[str, float]]:
    """Prepares the evaluation of a run's parameters on its queries and galleries.

    Args:
        config: data sets, batch size, and whether to rank raw pixels too.
        graphdef: structure of the model.
        params: parameters or their shapes.
        mesh: all devices.
        workdir: where `results.json` (one row per evaluated step) and `rankings.jsonl` (the newest) are written.

    Returns:
        A function of (step, params) that evaluates, writes both files and returns rank-k as {"rank-1": share, …}.

    Raises:
        FileNotFoundError: a data set is missing.
        ValueError: later, for a ground truth that is in no gallery, or a query without gallery.
    """
    data = dataclasses.replace(config.data, num_frames=config.eval.num_frames)
    queries = read_query_index(data)
    gallery_ids, image_ids = read_gallery_index(data)
    num_queries = read_metadata(data, "query")["num_queries"]
    skipped_images = read_metadata(data, "gallery")["skipped"]
    embedder = compile_embedder(model_embedder(graphdef), params, mesh)
    path = workdir / "results.json"

    def embed_data_set(function: Callable, params: PyTree, role: str):
        share = (config.eval.batch_size, jax.process_index(), jax.process_count())
        return embed_all(function, params, eval_batches(data, role, *share), mesh)

    def rank(embedder: Embedder, params: PyTree) -> tuple[ranking.Ranking, metrics.Result]:
        ranked = ranking.rank(
            embed_data_set(embedder.video, params, "query"),
            [query.clip_id for query in queries],
            [query.gallery_id for query in queries],
            [query.image_ids for query in queries],
            embed_data_set(embedder.image, params, "gallery"),
            gallery_ids,
            image_ids,
            skipped_images=skipped_images,
        )
        labels = {label: [getattr(query, label) for query in queries] for label in LABELS}
        return ranked, metrics.evaluate(ranked, num_queries=num_queries, labels=labels)

    def evaluate(step: int, params: PyTree) -> dict[str, float]:
        results = report.read_results(path) if path.exists() else {}
        if config.eval.pixels and PIXELS not in results:
            results = {PIXELS: rank(compile_embedder(pixel_embedder(), {}, mesh), {})[1], **results}
        ranked, results[row_name(step)] = rank(embedder, params)
        if jax.process_index() == 0:
            about = {"step": step, "query": config.data.query, "gallery": config.data.gallery}
            report.write_results(path, results, about)
            report.write_rankings(workdir / "rankings.jsonl", ranked)
        return results[row_name(step)].score.rank

    return evaluate

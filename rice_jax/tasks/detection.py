"""Task "detection": a detector of the intended product learns from boxes, and is measured by COCO's metrics."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, PyTree

from rice_jax.config import Config, ConfigError, DetectionLossConfig, InputConfig
from rice_jax.eval import coco
from rice_jax.eval.embed import compile_rows, compute_rows, padded_batch_size
from rice_jax.eval.results import MEAN_BOX, Row, labeled, read_results, write_results
from rice_jax.input.detection import clip_windows, detection_batches, window_batches
from rice_jax.input.ground_truth import read_metadata
from rice_jax.input.product_boxes import frame_boxes
from rice_jax.input.source import Source
from rice_jax.losses.detection import detection_loss
from rice_jax.models.detr import DetrConfig
from rice_jax.models.weights import require_trained
from rice_jax.ops.boxes import iou, to_corners
from rice_jax.pages import tables
from rice_jax.pages.draw import draw_clips
from rice_jax.tasks.detections import detect_function, write_detections
from rice_jax.tasks.task import Evaluator, Run
from rice_jax.train.steps import Batch, Loss, Metrics
from rice_jax.types import DataError, DetectionBatch

BASELINE_CLIPS = 1000  # of the training clips, evenly spread; enough for the mean of their boxes
COLUMNS = ("AP", "AP50", "AP75", "AP-small", "AP-medium", "AP-large", "AR", "top-1")


class Detection:
    """A detector of single frames or of clips, by `config.model.detector.kind`."""

    def check(self, config: Config) -> None:
        for problem in _problems(config):
            raise ConfigError(problem)

    def model(self, config: Config) -> DetrConfig:
        return DetrConfig(config.model.encoder, config.model.detector)

    def batches(self, config: Config, start: int, process_index: int, process_count: int) -> grain.DatasetIterator:
        return detection_batches(config.input, start, process_index, process_count)

    def loss(self, config: Config, mesh: Mesh) -> Loss:
        def loss(
            graphdef: nnx.GraphDef, params: PyTree, batch: Batch, step: Int32[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            return detector_loss(graphdef, params, batch, config.loss.detection)

        return loss

    def evaluators(self, run: Run) -> Mapping[str, Evaluator]:
        if run.source:
            _require_trained(run.source, run.params)
        return {"detection": detection_evaluator(run)}

    def summary(self, config: Config, workdir: Path, step: int) -> str:
        return detection_table(workdir / "results.json")

    def detect(self, run: Run, step: int) -> Path:
        """Writes the boxes that the run's detector finds in `config.data.detect`, and draws some clips.

        Args:
            run: with trained parameters and their `source`.
            step: updates behind them.

        Returns:
            The file of boxes; drawings are beside it.

        Raises:
            ConfigError: no data set is set.
            CheckpointError: the checkpoint has no trained detector.
        """
        config = run.config
        assert run.source
        if not config.data.detect:
            raise ConfigError("config.data.detect: found '', expected the data set to search, e.g. lpr4m/query")
        _require_trained(run.source, run.params)
        path = write_detections(run, run.workdir / f"detections-{step}", f"{run.source} after {step} steps")
        if jax.process_index() == 0:
            draw_clips(config.input, path, config.eval.draw_clips, config.model.detector.num_boxes)
        return path


def detector_loss(
    graphdef: nnx.GraphDef, params: PyTree, batch: DetectionBatch, config: DetectionLossConfig
) -> tuple[Float[Array, ""], Metrics]:
    """Total loss over the global batch, and what is reported of it.

    Every layer answers for itself, with an assignment of its own.

    Source: DETR, section 3.2, "auxiliary decoding losses".
    """
    found = nnx.merge(graphdef, params).detect(batch)
    layers = jax.vmap(
        lambda logits, boxes: detection_loss(
            logits,
            boxes,
            batch["boxes"],
            batch["box_mask"],
            batch["frame_mask"],
            no_object_weight=config.no_object_weight,
            l1_weight=config.l1_weight,
            giou_weight=config.giou_weight,
        )
    )(found.logits, found.boxes)
    metrics = {name: values[-1] for name, values in layers.items()}
    loss = metrics["loss"] = layers["loss"].sum()
    metrics["accuracy"] = top_accuracy(found.logits[-1], found.boxes[-1], batch["boxes"], batch["box_mask"])
    return loss, metrics


def top_accuracy(
    logits: Float[Array, "B T Q"],
    predicted: Float[Array, "B T Q 4"],
    boxes: Float[Array, "B T M 4"],
    box_mask: Bool[Array, "B T M"],
) -> Float[Array, ""]:
    """Share of the frames with a box in which the highest score's box has an IoU of at least 0.5 with one.

    Args:
        logits: of the scores.
        predicted: centres.
        boxes: corners.
        box_mask: True = a box.
    """
    best = jnp.argmax(logits, axis=-1)[..., None, None]
    overlap = iou(to_corners(jnp.take_along_axis(predicted, best, axis=2)), boxes)  # [B, T, M]
    hit, asked = (jnp.where(box_mask, overlap, 0) >= 0.5).any(axis=-1), box_mask.any(axis=-1)
    return (hit & asked).sum() / jnp.maximum(asked.sum(), 1)


def detection_evaluator(run: Run) -> Evaluator:
    """Prepares the evaluation of a detector's parameters on all frames of `config.data.query`.

    The true boxes of a frame are the first `config.model.detector.num_boxes`: with 1 only the intended product's is
    right. The baseline answers every frame with the mean of the training boxes.

    Returns:
        A function of (step, params) that evaluates, writes `results.json` (one row per evaluated step) into the workdir
        and returns the metrics of `coco.evaluate`.

    Raises:
        FileNotFoundError: a data set is missing.
        DataError: it has no frame ids.
    """
    data, path = run.config.eval_input, run.workdir / "results.json"
    batch_size = padded_batch_size(run.config.eval.batch_size, run.mesh)
    windows = clip_windows(data, data.query)
    function = compile_rows(detect_function(run.graphdef), run.params, run.mesh)
    skipped = read_metadata(data, "query").get("skipped", 0)

    def evaluate(step: int, params: PyTree) -> dict[str, float]:
        batches = window_batches(data, data.query, windows, batch_size, jax.process_index(), jax.process_count())
        found = compute_rows(function, params, batches, len(windows), run.mesh)
        found = {name: values[found["frame_mask"]] for name, values in found.items()}  # [F, ...]
        results = read_results(path, dict) if path.exists() else {}
        if MEAN_BOX not in results:
            boxes = np.broadcast_to(mean_box(data), (len(found["boxes"]), 1, 4))
            results = {MEAN_BOX: _score(found | {"boxes": boxes, "scores": np.ones(boxes.shape[:2])}), **results}
        scores = results[Row(step, "detector")] = _score(found)
        about = {"step": step, "data_set": data.query, "num_clips": len(np.unique(windows[:, 0])), "skipped": skipped}
        if jax.process_index() == 0:
            write_results(path, results, about)
        return {name: scores[name] or 0.0 for name in COLUMNS}

    return evaluate


def mean_box(config: InputConfig) -> Float[np.ndarray, "4"]:
    """The mean of the training frames' first boxes: left, top, right, bottom.

    Raises:
        DataError: there are none.
    """
    source = Source(config.data_dir, config.train, ("frames", "boxes"), ("box_frame",))
    rows = np.unique(np.linspace(0, len(source) - 1, BASELINE_CLIPS).astype(int))
    boxes = [found[0] for row in rows for found in frame_boxes(source[int(row)]) if found]
    if not boxes:
        raise DataError(f"{source.directory}: found no box in {len(rows)} clips, expected boxes to learn from")
    return np.mean(boxes, axis=0)


def detection_table(path: Path) -> str:
    """The table of a detector's `results.json`, without a newline at the end."""
    about = json.loads(path.read_text(encoding="utf-8"))["about"]
    results = labeled(read_results(path, dict))
    first = next(iter(results.values()))
    title = f"{first['num_frames']:,} frames of {about['num_clips']:,} clips, {first['num_boxes']:,} boxes"
    if about["skipped"]:
        title += f"; {about['skipped']:,} clips were left out when the data set was built"
    rows = [
        [name, *("" if scores[column] is None else f"{100 * scores[column]:.1f} %" for column in COLUMNS)]
        for name, scores in results.items()
    ]
    return "\n".join([title, "", *tables.align(["", *COLUMNS], rows)])


def _score(found: Mapping[str, np.ndarray]) -> dict:
    scores = coco.evaluate(*(found[name] for name in ("boxes", "scores", "truths", "truth_mask")))
    return scores | {"num_frames": len(found["truths"]), "num_boxes": int(found["truth_mask"].sum())}


def _require_trained(source: Path, params: PyTree) -> None:
    require_trained(source, params, "detector", "detector of this kind", "use the --config of a run that trained one")


def _problems(config: Config) -> Iterator[str]:
    """Settings of a detection run that exclude each other."""
    if config.data.domains:
        yield (
            f"config.data.domains: found {config.data.domains!r} with config.task='detection', which does not read it; "
            "set config.task='domains'"
        )
    if config.model.ipd != "off":
        yield (
            f"config.model.ipd: found {config.model.ipd!r}, expected 'off' with config.task='detection': a detector "
            "finds the product by itself"
        )
    if config.train.grad_cache_chunks > 1:
        yield (
            f"config.train.grad_cache_chunks: found {config.train.grad_cache_chunks}, expected 1 with "
            "config.task='detection'; use a smaller batch instead"
        )

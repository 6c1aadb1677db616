"""Task "detection": trains a detector of the intended product on boxes and measures it by COCO's metrics."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, PyTree

from rice_jax.config import Config, ConfigError, DetectionLossConfig
from rice_jax.config.model import OF_PATCHES
from rice_jax.eval.results import labeled, read_about, read_results
from rice_jax.input.detection import detection_batches
from rice_jax.losses.detection import detection_loss
from rice_jax.models.detr import DetrConfig
from rice_jax.models.weights import require_trained
from rice_jax.ops.boxes import iou, to_corners
from rice_jax.pages import tables
from rice_jax.pages.draw import draw_clips
from rice_jax.tasks.detection_evaluation import DetectionEvaluator
from rice_jax.tasks.detections import write_detections
from rice_jax.tasks.task import Evaluator, Run, require_data_sets
from rice_jax.train.steps import Batch, Loss, Metrics


class Detection:
    """A detector of single frames or of clips, by `config.model.detector.kind`."""

    def check(self, config: Config) -> None:
        for problem in _problems(config):
            raise ConfigError(problem)

    def prepare(self, config: Config, workdir: Path) -> Config:
        require_data_sets(config, "train", "query")
        return config

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
        require_data_sets(run.config, "query")
        if run.source:
            _require_trained(run.source, run.params)
        return {run.place.name("detection"): DetectionEvaluator(run).evaluate}

    def summary(self, run: Run, step: int) -> str:
        path = run.place.results
        about = read_about(path)
        return tables.detection_table(labeled(read_results(path, dict)), about["num_clips"], about["skipped"])

    def detect(self, run: Run, step: int, params: PyTree) -> Path:
        """Writes the boxes that the run's detector finds in `config.data.detect`, and draws some clips.

        Args:
            run: with the `source` of the parameters.
            step: number of updates of the parameters.
            params: trained parameters.

        Returns:
            The file of boxes; the drawings are beside it.

        Raises:
            ConfigError: `config.data.detect` is empty.
            CheckpointError: the checkpoint has no trained detector.
        """
        config = run.config
        assert run.source
        if not config.data.detect:
            raise ConfigError("config.data.detect: found '', expected the data set to search, e.g. lpr4m/query")
        _require_trained(run.source, run.params)
        path = write_detections(run, params, run.workdir / f"detections-{step}", f"{run.source} after {step} steps")
        if jax.process_index() == 0:
            draw_clips(config.input, path, config.eval.draw_clips, config.model.detector.num_boxes)
        return path


def detector_loss(
    graphdef: nnx.GraphDef, params: PyTree, batch: Batch, config: DetectionLossConfig
) -> tuple[Float[Array, ""], Metrics]:
    """Total loss over the global batch and all layers of the decoder, each with an assignment of its own.

    Args:
        graphdef: of a detector.
        params: of the detector.
        batch: global, a `types.DetectionBatch`.
        config: weights of the losses.

    Returns:
        The loss, and the metrics: `loss`; its parts in the last layer; `accuracy` of the last layer (`top_accuracy`).

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
    """Share of the frames with a true box in which the box with the highest score has an IoU of at least 0.5 with one.

    Args:
        logits: of the predicted boxes.
        predicted: boxes as center, width and height.
        boxes: true boxes as corners.
        box_mask: True = a box, False = padding.
    """
    best = jnp.argmax(logits, axis=-1)[..., None, None]
    overlap = iou(to_corners(jnp.take_along_axis(predicted, best, axis=2)), boxes)  # [B, T, M]
    hit, asked = (jnp.where(box_mask, overlap, 0) >= 0.5).any(axis=-1), box_mask.any(axis=-1)
    return (hit & asked).sum() / jnp.maximum(asked.sum(), 1)


def _require_trained(source: Path, params: PyTree) -> None:
    require_trained(source, params, "detector", "detector of this kind", "use the --config of a run that trained one")


def _problems(config: Config) -> Iterator[str]:
    """Settings of a detection run that exclude each other."""
    if config.data.domains:
        yield (
            f"config.data.domains: found {config.data.domains!r} with config.task='detection', which does not read it; "
            "set config.task='domains'"
        )
    if config.model.architecture not in OF_PATCHES:
        yield (
            f"config.model.architecture: found {config.model.architecture!r} with config.task='detection', expected "
            f"{' or '.join(map(repr, OF_PATCHES))}: a detector attends to patches of a single grid, which this encoder "
            "does not have"
        )
    if config.model.ipd != "off":
        yield (
            f"config.model.ipd: found {config.model.ipd!r}, expected 'off' with config.task='detection': a detector "
            "finds the product by itself"
        )
    if config.eval.rerank or config.eval.pixels:
        yield (
            f"config.eval.rerank and pixels: found {config.eval.rerank} and {config.eval.pixels}, expected 0 and False "
            "with config.task='detection': boxes are not ranked"
        )
    if config.train.grad_cache_chunks > 1:
        yield (
            f"config.train.grad_cache_chunks: found {config.train.grad_cache_chunks}, expected 1 with "
            "config.task='detection'; use a smaller batch instead"
        )
    if config.model.aggregation.kind != "features" or config.loss.kind != "softmax":
        yield (
            f"config.model.aggregation.kind and config.loss.kind: found {config.model.aggregation.kind!r} and "
            f"{config.loss.kind!r} with config.task='detection', which does not read them; leave them out"
        )

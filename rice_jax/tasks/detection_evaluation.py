"""The evaluation of task "detection": COCO's metrics of a detector and of a baseline."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from rice_jax.config import InputConfig
from rice_jax.eval import coco
from rice_jax.eval.embed import compile_rows, compute_rows, padded_batch_size
from rice_jax.eval.results import MEAN_BOX, Row, read_results, write_results
from rice_jax.input.detection import clip_windows, window_batches
from rice_jax.input.ground_truth import read_metadata
from rice_jax.input.product_boxes import frame_boxes
from rice_jax.input.source import Source
from rice_jax.tasks.detections import detect_function
from rice_jax.tasks.task import Run
from rice_jax.types import DataError

BASELINE_CLIPS = 1000  # of the training clips, spread evenly; enough for the mean of their boxes


class DetectionEvaluator:
    """Evaluates a detector's parameters on all frames of `config.data.query`.

    The true boxes of a frame are the first `config.model.detector.num_boxes`; with 1 only the intended product's box is
    right. The baseline is the mean of the training boxes in every frame. `results.json` gets one row per evaluated step
    and one for the baseline.
    """

    def __init__(self, run: Run):
        """Reads the frames' places and prepares the program.

        Raises:
            FileNotFoundError: a data set is missing.
            DataError: a data set has no frame ids.
        """
        self._run, self._data = run, run.config.eval_input
        self._windows = clip_windows(self._data, self._data.query)
        self._detect = compile_rows(detect_function(run.graphdef), run.params, run.mesh)
        self._skipped = read_metadata(self._data, "query").get("skipped", 0)

    def evaluate(self, step: int, params: PyTree) -> dict[str, float]:
        """Evaluates parameters after `step` updates.

        Returns:
            The metrics of `coco.evaluate`, 0 where there is no true box.

        Raises:
            DataError: the training set has no boxes.
        """
        place, found = self._run.place, self._boxes(params)
        path = place.results
        results = read_results(path, dict) if path.exists() else {}
        if MEAN_BOX not in results:
            boxes = np.broadcast_to(mean_box(self._data), (len(found["boxes"]), 1, 4))
            results = {MEAN_BOX: _score(found | {"boxes": boxes, "scores": np.ones(boxes.shape[:2])}), **results}
        scores = results[Row(step, "detector", source=place.source)] = _score(found)
        about = {
            "step": step,
            "data_set": self._data.query,
            "num_clips": len(np.unique(self._windows[:, 0])),
            "skipped": self._skipped,
            "evaluation": place.evaluation,
        }
        if jax.process_index() == 0:
            write_results(path, results, about)
        return {name: scores[name] or 0.0 for name in coco.METRICS}

    def _boxes(self, params: PyTree) -> dict[str, np.ndarray]:
        """What `detect_function` returns of every frame, [F, ...]."""
        run, data, windows = self._run, self._data, self._windows
        batch_size = padded_batch_size(run.config.eval.batch_size, run.mesh)
        batches = window_batches(data, data.query, windows, batch_size, jax.process_index(), jax.process_count())
        found = compute_rows(self._detect, params, batches, len(windows), run.mesh)
        return {name: values[found["frame_mask"]] for name, values in found.items() if name != "index"}


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


def _score(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    scores = coco.evaluate(found["boxes"], found["scores"], found["truths"], found["truth_mask"])
    return scores | {"num_frames": len(found["truths"]), "num_boxes": int(found["truth_mask"].sum())}

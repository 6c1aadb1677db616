"""A detector's boxes on disk: one JSON line for each frame of a data set."""

import functools
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Int32, PyTree

from rice_jax.eval.embed import compile_rows, padded_batch_size
from rice_jax.files import write_lines
from rice_jax.input.detection import clip_windows, frame_id, window_batches
from rice_jax.input.source import Source
from rice_jax.ops.boxes import to_corners
from rice_jax.parallel.mesh import global_batch
from rice_jax.parallel.processes import agree
from rice_jax.tasks.task import Run
from rice_jax.types import DataError

logger = logging.getLogger(__name__)


def write_detections(run: Run, params: PyTree, directory: Path, source: str) -> Path:
    """Writes the boxes that a detector finds in the frames of `config.data.detect`; continues where it was killed.

    The file has one JSON line for each frame of the data set, clip by clip:

        {"frame_id": "7b60…-0081", "boxes": [[0.12, 0.3, 0.61, 0.97], …], "scores": [0.93, …]}

    Boxes are left, top, right, bottom as shares of the whole frame, 0 to 1, with left < right and top < bottom, rounded
    to five decimals. Scores are 0 to 1, rounded to four decimals, highest first. Boxes with a score below
    `config.eval.min_score` are left out, so both lists may be empty. An unfinished file is named `….jsonl.partial`;
    `….about.json` describes the detector and the settings.

    Args:
        run: with the settings `data.detect`, `eval.batch_size`, `eval.num_frames` (frames of a window) and
            `eval.min_score`.
        params: of a trained detector.
        directory: for the file, `NAME.jsonl` for data set NAME with "-" instead of "/".
        source: identifies the parameters, e.g. a path and a step; a file with another source is not continued.

    Returns:
        The file.

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: the data set has no frame ids, or the file was begun by another detector or with other settings.
    """
    config, data = run.config, run.config.eval_input
    batch_size = padded_batch_size(config.eval.batch_size, run.mesh)
    path = directory / f"{data.detect.replace('/', '-')}.jsonl"
    about = {
        "source": source,
        "data_set": str(Source(data.data_dir, data.detect, ("frame_ids",)).directory),
        "num_frames": data.num_frames,
        "image_size": data.image_size,
        "dtype": config.model.dtype,
        "min_score": config.eval.min_score,
    }
    _require_same(path.with_suffix(".about.json"), about)
    if agree(path.exists()):  # a process may see the disk as it was before
        logger.info("%s: already complete", path)
        return path
    windows = clip_windows(data, data.detect)
    partial = path.with_suffix(".jsonl.partial")
    writes = jax.process_index() == 0
    done = _continue(partial, windows, batch_size) if writes else 0
    done = int(multihost_utils.broadcast_one_to_all(np.int32(done)))
    logger.info("%s: %d of %d frames done", partial, windows[:done, 3].sum(), windows[:, 3].sum())
    function = compile_rows(detect_function(run.graphdef), run.params, run.mesh)
    batches = window_batches(data, data.detect, windows[done:], batch_size, jax.process_index(), jax.process_count())
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
        write_lines(path.with_suffix(".about.json"), [json.dumps(about, indent=2)])
    with partial.open("a", encoding="utf-8") if writes else open(os.devnull, "w") as file:
        for local in batches:
            found = jax.device_get(function(params, global_batch(run.mesh, local)))
            if writes:
                file.writelines(_lines(found, config.eval.min_score))
                file.flush()
    if writes:
        partial.rename(path)
    return path


@functools.cache
def detect_function(graphdef: nnx.GraphDef) -> Callable[[PyTree, dict], dict[str, jax.Array]]:
    """The function of (params, batch) that finds boxes in windows.

    It returns `boxes` [b, T, Q, 4], as corners, and `scores` [b, T, Q], with the batch's index, masks, ids and true
    boxes.
    """

    def detect(params: PyTree, batch: dict) -> dict[str, jax.Array]:
        found = nnx.merge(graphdef, params).detect(batch)
        return {
            "boxes": jnp.clip(to_corners(found.boxes[-1]), 0, 1),
            "scores": jax.nn.sigmoid(found.logits[-1]),
            "index": batch["index"],
            "truths": batch["boxes"],
            "truth_mask": batch["box_mask"],
            "frame_mask": batch["frame_mask"],
            "frame_ids": batch["frame_ids"],
        }

    return detect


def _lines(found: Mapping[str, np.ndarray], min_score: float) -> list[str]:
    """The lines of a batch's frames, in the order of its windows, which the devices may hold in another."""
    windows, lines = np.argsort(found["index"]), []
    found = {name: rows[windows] for name, rows in found.items()}
    for place in zip(*np.nonzero(found["frame_mask"]), strict=True):
        order = np.argsort(-found["scores"][place], kind="stable")
        boxes = found["boxes"][place][order].astype(float).round(5)
        scores = found["scores"][place][order].astype(float).round(4)
        kept = (scores >= min_score) & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
        line = {"frame_id": frame_id(found["frame_ids"][place])}
        line |= {"boxes": boxes[kept].tolist(), "scores": scores[kept].tolist()}
        lines.append(json.dumps(line) + "\n")
    return lines


def _continue(partial: Path, windows: Int32[np.ndarray, "W 4"], batch_size: int) -> int:
    """Truncates the file of a killed run to whole batches; returns the number of their windows."""
    if not partial.exists():
        return 0
    ends = np.cumsum(windows[:, 3])[batch_size - 1 :: batch_size]  # frames until the end of each full batch
    done, size, lines = 0, 0, 0
    offset = 0
    with partial.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset, lines = offset + len(line), lines + 1
            if done < len(ends) and lines == ends[done]:
                done, size = done + 1, offset
    os.truncate(partial, size)
    return done * batch_size


def _require_same(path: Path, about: Mapping) -> None:
    if path.exists() and (found := json.loads(path.read_text())) != about:
        different = [
            f"{key}: found {found.get(key)!r}, now {about[key]!r}" for key in about if found.get(key) != about[key]
        ]
        raise DataError(
            f"{path}: is of other detections ({'; '.join(different)}); delete it and its .jsonl, or use another "
            "--workdir"
        )

"""Batches for the detector: frames and the boxes in them, for training and for looking at every frame of a data set.

As in `pipeline`, the order and every draw are made before the stream is shared out: the position of a run is one
integer.
"""

from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int32

from rice_jax.config import InputConfig
from rice_jax.input import pipeline, transforms
from rice_jax.input.decode import WHOLE
from rice_jax.input.product_boxes import ProductBoxes, frame_boxes
from rice_jax.input.source import Source
from rice_jax.input.transforms import Box, Crop
from rice_jax.types import DataError

# A box of which a crop leaves less than this share of its area is dropped: too little to be recognised.
LEAST_REST = 0.25
FRAME_ID_BYTES = 128  # ids travel with their frames as bytes filled up with zeros; LPR4M's have 69


def detection_batches(
    config: InputConfig, start: int = 0, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Endless training batches, each epoch in a new order.

    Args:
        config: what to read and how; `num_boxes` of a frame at most, the first ones.
        start, process_index, process_count: as of `train_batches`.

    Returns:
        Iterator over dicts of numpy arrays, see `DetectionBatch`, b = batch_size / process_count: `video` uint8
        [b, T, S, S, 3], `frame_mask` bool [b, T], `boxes` float32 [b, T, M, 4] (left, top, right, bottom in shares of
        the picture after crop and flip, cut at its edge), `box_mask` bool [b, T, M], `index` int32 [b].

    Raises:
        FileNotFoundError: the data set is not there.
        DataError: as `train_batches`.
    """
    local_size = pipeline.share(config.batch_size, process_index, process_count, "config.data.batch_size")
    source = Source(config.data_dir, config.train, ("clip_id", "frames", "boxes"), optional=("box_frame",))
    if len(source) < config.batch_size:
        raise DataError(
            f"{source.directory}: found {len(source)} clips, expected at least one batch of {config.batch_size}; lower "
            "config.data.batch_size or build more data"
        )
    rows = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat(None)
    examples = rows.random_map(_TrainClip(config, source, ProductBoxes(config, "", ())))[start:]
    return pipeline.read(examples, config, local_size, process_index, process_count)


def clip_windows(config: InputConfig, name: str) -> Int32[np.ndarray, "W 4"]:
    """Cuts the clips of a data set into windows of at most `num_frames` frames, every frame in one of them.

    A window spans its clip: of n frames it takes every s-th, s = n / num_frames rounded up. Reads the whole data set.

    Returns:
        Row of the data set, first frame, step s and number of frames of each window, in the order of the data set.

    Raises:
        FileNotFoundError: the data set is not there.
        DataError: it does not tell the ids of its frames.
    """
    windows = []
    for row in Source(config.data_dir, name, ("frame_ids",)):
        count = len(row["frame_ids"])
        step = -(-count // config.num_frames)
        windows += [(row["index"], first, step, len(range(first, count, step))) for first in range(step)]
    return np.array(windows, np.int32).reshape(-1, 4)


def window_batches(
    config: InputConfig,
    name: str,
    windows: Int32[np.ndarray, "W 4"],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """The frames of all windows once, in their order, whole and unmirrored, without anything random.

    Args:
        config: how to read.
        name: the data set, e.g. "lpr4m/detection_test".
        windows: what `clip_windows` gave, or a part of it.
        batch_size: global number of windows; the last batch is filled up.
        process_index, process_count: as of `eval_batches`.

    Returns:
        Iterator over dicts as of `detection_batches`, and `frame_ids` uint8 [b, T, 128] (`frame_id` reads them),
        `index` int32 [b], place in `windows`, and `mask` bool [b], True = a window, False = filling (zeros). A data set
        without boxes has none.

    Raises:
        FileNotFoundError: the data set is not there.
        DataError: as `eval_batches`; a frame's id is too long.
    """
    local_size = pipeline.share(batch_size, process_index, process_count, "config.eval.batch_size")
    rows = len(windows) + -len(windows) % batch_size
    examples = grain.MapDataset.range(rows).map(_Window(config, name, windows))
    return pipeline.read(examples, config, local_size, process_index, process_count)


def frame_id(encoded: np.ndarray) -> str:
    """A frame's id from a row of `frame_ids`."""
    return encoded.tobytes().rstrip(b"\0").decode()


class _TrainClip(pipeline.TrainExample):
    """As of pairs, without the image, and with the boxes wherever the frames go."""

    def random_map(self, index: int, rng: np.random.Generator) -> dict:
        row = self._source[index]
        pipeline.count_frames(self._source, row)
        boxes = frame_boxes(row)
        first = [found[0] if found else None for found in boxes]
        frames = self._frames(rng, len(boxes), first)
        colour = self._colour(rng, transforms.random_hue(rng, self._config.pair_hue))
        if self._config.crop == "frame":
            crops = [self._frame_crop(rng, first[frame]) for frame in frames]
        else:
            crops = [self._frame_crop(rng)] * len(frames)
        return {
            **pipeline.encoded_frames(self._source, row, frames, crops, self._config, colour),
            **_cropped_boxes([boxes[frame] for frame in frames], crops, self._config),
            "index": np.int32(index),
        }


class _Window(grain.transforms.Map):
    def __init__(self, config: InputConfig, name: str, windows: Int32[np.ndarray, "W 4"]):
        self._config, self._windows = config, windows
        self._source = Source(config.data_dir, name, ("clip_id", "frames", "frame_ids"), ("boxes", "box_frame"))

    def map(self, index: int) -> dict:
        is_window = index < len(self._windows)
        row, frames, boxes = {}, np.arange(0), []
        if is_window:
            number, first, step, count = self._windows[index].tolist()
            row, frames = self._source[number], first + step * np.arange(count)
            boxes = frame_boxes(row)
        crops = [WHOLE] * len(frames)
        ids = np.zeros((self._config.num_frames, FRAME_ID_BYTES), np.uint8)
        for position, frame in enumerate(frames):
            ids[position] = self._encode(row["frame_ids"][frame])
        return {
            **pipeline.encoded_frames(self._source, row, frames, crops, self._config),
            **_cropped_boxes([boxes[frame] for frame in frames], crops, self._config),
            "frame_ids": ids,
            "index": np.int32(index),
            "mask": np.bool_(is_window),
        }

    def _encode(self, frame_id: bytes) -> np.ndarray:
        if len(frame_id) > FRAME_ID_BYTES:
            raise DataError(
                f"{self._source.directory}: found the frame id {frame_id.decode()!r} of {len(frame_id)} bytes, "
                f"expected at most {FRAME_ID_BYTES}; raise FRAME_ID_BYTES in rice_jax/input/detection.py"
            )
        return np.frombuffer(frame_id.ljust(FRAME_ID_BYTES, b"\0"), np.uint8)


def _cropped_boxes(boxes: Sequence[Sequence[Box]], crops: Sequence[Crop], config: InputConfig) -> dict[str, np.ndarray]:
    """The `boxes` [T, M, 4] and `box_mask` [T, M] of frames that have been cropped."""
    cropped = np.zeros((config.num_frames, config.num_boxes, 4), np.float32)
    mask = np.zeros(cropped.shape[:2], bool)
    for frame, (found, crop) in enumerate(zip(boxes, crops, strict=True)):
        for place, box in enumerate(found[: config.num_boxes]):
            rest = transforms.box_inside(box, crop)
            if rest is not None and _share_left(box, rest, crop) >= LEAST_REST:
                cropped[frame, place], mask[frame, place] = rest, True
    return {"boxes": cropped, "box_mask": mask}


def _share_left(box: Box, rest: Box, crop: Crop) -> float:
    """The share of a box's area that a crop leaves; `rest` is in shares of the crop."""
    window = (crop.right - crop.left) * (crop.bottom - crop.top)
    area = (rest.right - rest.left) * (rest.bottom - rest.top) * window
    return area / ((box.right - box.left) * (box.bottom - box.top))

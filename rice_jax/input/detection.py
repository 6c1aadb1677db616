"""Batches for the detector: frames and their boxes, for training and for every frame of a data set.

As in `pipeline`, the order and all random draws are fixed before the stream is divided: the position of a run is one
integer.
"""

import grain
import numpy as np
from jaxtyping import Int32, UInt8

from rice_jax.config import InputConfig
from rice_jax.input import pipeline
from rice_jax.input.decode import WHOLE
from rice_jax.input.source import Source
from rice_jax.input.views import BoxesView, Example, Part, RandomFramesView, View, encoded_frames, open_source
from rice_jax.types import DataError

FRAME_ID_BYTES = 128  # length of an id in a batch, padded with zeros; LPR4M's ids have 69


def detection_batches(
    config: InputConfig, start: int = 0, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Makes endless training batches, with a new order in each epoch.

    Args:
        config: what to read and how; of a frame's boxes only the first `num_boxes` count.
        start: number of examples that all processes together have taken before.
        process_index: which share of each global batch to yield, 0..process_count - 1.
        process_count: processes that share a global batch.

    Returns:
        Iterator over dicts of numpy arrays, see `DetectionBatch`, b = batch_size / process_count: `video` uint8
        [b, T, S, S, 3], `frame_mask` bool [b, T], `boxes` float32 [b, T, M, 4] (left, top, right, bottom in shares of
        the picture after crop and flip, cut at its edge), `box_mask` bool [b, T, M], `index` int32 [b].

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: the batch does not divide by the number of processes, or is larger than the data set; later, a clip
            has no frames or a picture cannot be decoded.
    """
    views = train_views(config)
    source = open_source(config, config.train, views)
    return pipeline.random_batches(config, source, views, start, process_index, process_count)


def clip_windows(config: InputConfig, name: str) -> Int32[np.ndarray, "W 4"]:
    """Divides the clips of a data set into windows of at most `num_frames` frames, so that each frame is in one window.

    A window spans its clip: it takes every s-th of the clip's n frames, s = n / num_frames rounded up. The function
    reads the whole data set.

    Returns:
        Row of the data set, first frame, step s and number of frames of each window, in the order of the data set.

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: it has no ids of frames.
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
    """Makes batches of all windows in their order, with frames that are whole and not mirrored, without randomness.

    Args:
        config: how to read.
        name: data set, e.g. "lpr4m/detection_test".
        windows: result of `clip_windows`, or a part of it.
        batch_size: global number of windows; the last batch is filled up with zeros.
        process_index: which share of each global batch to yield, 0..process_count - 1.
        process_count: processes that share a global batch; all get the same number of batches.

    Returns:
        Iterator over dicts as in `detection_batches`, with `frame_ids` uint8 [b, T, 128], which `frame_id` reads;
        `index` int32 [b], place in `windows`; `mask` bool [b], True = a window, False = filling (zeros). If the data
        set has no boxes, `box_mask` is False.

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: the batch does not divide by the number of processes; later, a picture cannot be decoded, or a
            frame's id is too long.
    """
    views = window_views(config, windows)
    source = open_source(config, name, views)
    return pipeline.fixed_batches(config, source, views, windows[:, 0], batch_size, process_index, process_count)


def frame_id(encoded: UInt8[np.ndarray, " 128"]) -> str:
    """A frame's id from a row of `frame_ids`."""
    return encoded.tobytes().rstrip(b"\0").decode()


def train_views(config: InputConfig) -> list[View]:
    """Views of a clip with boxes."""
    return [RandomFramesView(config), BoxesView(config, ("boxes",), ("box_frame",))]


def window_views(config: InputConfig, windows: Int32[np.ndarray, "W 4"]) -> list[View]:
    """Views of a window of a clip, with boxes if the data set has them."""
    return [WindowView(config, windows), BoxesView(config, (), ("boxes", "box_frame")), FrameIdsView(config)]


class WindowView(View):
    """The frames of a window, whole and not mirrored: `video` and `frame_mask`."""

    columns = ("clip_id", "frames")

    def __init__(self, config: InputConfig, windows: Int32[np.ndarray, "W 4"]):
        self._config, self._windows = config, windows

    def evaluate(self, example: Example) -> Part:
        if example.row:
            _, first, step, count = self._windows[example.index].tolist()
            example.frames = first + step * np.arange(count)
        example.crops = [WHOLE] * len(example.frames)
        return encoded_frames(example, self._config.num_frames)


class FrameIdsView(View):
    """The ids of the chosen frames: `frame_ids` [T, 128]."""

    columns = ("frame_ids",)

    def __init__(self, config: InputConfig):
        self._config = config

    def evaluate(self, example: Example) -> Part:
        ids = np.zeros((self._config.num_frames, FRAME_ID_BYTES), np.uint8)
        for position, frame in enumerate(example.frames):
            encoded = example.row["frame_ids"][frame]
            if len(encoded) > FRAME_ID_BYTES:
                raise DataError(
                    f"{example.source.directory}: found the frame id {encoded.decode()!r} of {len(encoded)} bytes, "
                    f"expected at most {FRAME_ID_BYTES}; raise FRAME_ID_BYTES in rice_jax/input/detection.py"
                )
            ids[position] = np.frombuffer(encoded.ljust(FRAME_ID_BYTES, b"\0"), np.uint8)
        return {"frame_ids": ids}

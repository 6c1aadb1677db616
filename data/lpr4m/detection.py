"""Builds clips for a detector of the intended product: frames and the boxes in them."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from ..box_units import Box
from ..builder import PICTURE, TEXT, Example, Shard, chunks
from ..pictures import RawPictures, choose_frames
from ..skip_report import SkipReport, SkipSummary
from . import evaluation_files
from .ids import live_id_of
from .pictures import frame_box, in_order, read_frames
from .rows import RowBlock, read_rows
from .train import blocks_and_units

FEATURES = {
    "clip_id": TEXT(),
    "live_id": TEXT(),
    "frames": tfds.features.Sequence(PICTURE()),
    "frame_ids": tfds.features.Sequence(TEXT()),
    "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
    "box_frame": tfds.features.Sequence(np.int32),
}

Frames = Sequence[tuple[str, Sequence[Box]]]  # id and boxes of each frame of a clip


def detection_train_shards(
    raw_dir: Path,
    is_subset: bool,
    pictures: RawPictures,
    max_frames: int,
    units_of: Callable[[Iterable[Box]], str],
) -> list[Shard]:
    """Divides the training rows with boxes into shards; the arguments are those of `train_shards`."""
    blocks, units = blocks_and_units(raw_dir, is_subset, units_of)
    return [functools.partial(_train_examples, block, units, pictures, max_frames) for block in blocks]


def detection_test_shards(
    raw_dir: Path, pictures: RawPictures, units_of: Callable[[Iterable[Box]], str]
) -> list[Shard]:
    """Divides the clips with test boxes into shards, in the order of their file.

    Args:
        raw_dir: the raw files.
        pictures: the reader of the raw directory's pictures.
        units_of: returns the unit of the given boxes.
    """
    path = evaluation_files.find_file(raw_dir, "test_frameid2gtbox_*.json")
    clips = evaluation_files.read_boxes(path)
    units = units_of(box for clip in clips.values() for frame in clip.values() for box in frame)
    examples = functools.partial(_test_examples, where=str(path), units=units, pictures=pictures)
    return [functools.partial(examples, chunk) for chunk in chunks(list(clips.items()))]


def detection_metadata(summary: SkipSummary) -> dict[str, int]:
    """Returns the number of clips with boxes and the number of skipped ones."""
    return {"num_clips": summary.num_tried("clips"), "skipped": summary.num_skipped("clips")}


def _train_examples(
    block: RowBlock, units: str, pictures: RawPictures, max_frames: int, report: SkipReport
) -> Iterator[Example]:
    for row in read_rows(block):
        with_box = [(frame, [box]) for frame, box in zip(row.frames, row.boxes, strict=True) if any(box)]
        frames = [frame for _, frame in choose_frames(with_box, max_frames)]
        if frames:
            yield from _examples(row.clip_id, frames, row.where, units, pictures, report)


def _test_examples(
    clips: Sequence[tuple[str, dict[str, list[Box]]]],
    report: SkipReport,
    where: str,
    units: str,
    pictures: RawPictures,
) -> Iterator[Example]:
    for clip_id, boxes in clips:
        frames = [(frame_id, boxes[frame_id]) for frame_id in in_order(boxes, clip_id)]
        yield from _examples(clip_id, frames, f"{where}: {clip_id}", units, pictures, report)


def _examples(
    clip_id: str, frames: Frames, where: str, units: str, pictures: RawPictures, report: SkipReport
) -> Iterator[Example]:
    """Yields the clip's example, or only reports the clip if no frame can be used."""
    report.tried("clips")
    kept: list[tuple[str, bytes]] = []
    boxes: list[tfds.features.BBox | None] = []
    box_frame: list[int] = []
    names = [frame for frame, _ in frames]
    for index, frame_id, picture in read_frames(pictures, clip_id, names, len(names), report):
        relative = [frame_box(box, units, picture, frame_id, where, report) for box in frames[index][1]]
        if None in relative:
            continue  # a frame without one of its boxes would teach the detector that nothing is there
        box_frame += [len(kept)] * len(relative)
        boxes += relative
        kept.append((frame_id, picture.encoded))
    if not kept:
        report.skipped("clips", clip_id, where, "no usable frame")
        return
    yield {
        "clip_id": clip_id,
        "live_id": live_id_of(clip_id),
        "frames": [encoded for _, encoded in kept],
        "frame_ids": [frame_id for frame_id, _ in kept],
        "boxes": boxes,
        "box_frame": box_frame,
    }

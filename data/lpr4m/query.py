"""Builds queries: test clips with their ground truth."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ..box_units import Box
from ..builder import PICTURE, TEXT, Example, Shard, chunks
from ..errors import Unusable
from ..pictures import RawPictures
from ..skip_report import SkipReport, SkipSummary
from . import evaluation_files
from .clip_types import clip_types
from .evaluation_files import Query
from .ids import live_id_of
from .pictures import frame_box, frames_of, read_frames

FEATURES = {
    "clip_id": TEXT(),
    "gallery_id": TEXT(),
    "image_ids": tfds.features.Sequence(TEXT()),
    "title": TEXT(),
    "asr": TEXT(),
    "category": TEXT(),
    "scale": TEXT(),
    "duration": TEXT(),
    "number": TEXT(),
    "frames": tfds.features.Sequence(PICTURE()),
    "frame_ids": tfds.features.Sequence(TEXT()),
    "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
    "box_frame": tfds.features.Sequence(np.int32),
}

Boxes = dict[str, list[Box]]  # boxes of a clip's annotated frames, by frame id
Texts = dict[str, str]


def query_shards(
    raw_dir: Path,
    is_subset: bool,
    pictures: RawPictures,
    max_frames: int,
    units_of: Callable[[Iterable[Box]], str],
) -> list[Shard]:
    """Joins the test files and divides the queries into shards, in the order of the ground truth.

    The arguments are those of `train_shards`.
    """
    read = evaluation_files.read_subset_queries if is_subset else evaluation_files.read_queries
    queries = read(raw_dir)
    find = evaluation_files.find_optional_file if is_subset else evaluation_files.find_file
    boxes = evaluation_files.read_boxes(find(raw_dir, "test_frameid2gtbox_*.json"))
    units = units_of(box for clip in boxes.values() for frame in clip.values() for box in frame)
    titles = evaluation_files.read_texts(find(raw_dir, "test_image_title_*.txt"))
    asr = evaluation_files.read_texts(find(raw_dir, "test_videoid_asr_*.txt"))
    categories = evaluation_files.read_texts(evaluation_files.find_optional_file(raw_dir, "test_image_category.txt"))

    def joined(query: Query) -> tuple[Query, Boxes, Texts]:
        texts = {
            "title": titles.get(query.image_ids[0], ""),
            "category": categories.get(query.image_ids[0], ""),
            "asr": asr.get(query.clip_id, ""),
        }
        return query, boxes.get(query.clip_id, {}), texts

    return [
        functools.partial(_examples, chunk, units, pictures, max_frames) for chunk in chunks(list(map(joined, queries)))
    ]


def query_metadata(summary: SkipSummary) -> dict[str, Any]:
    """Returns the number of queries and {clip_id: reason} for the skipped ones."""
    return {"num_queries": summary.num_tried("queries"), "skipped": summary.reasons("queries")}


def _examples(
    queries: Sequence[tuple[Query, Boxes, Texts]],
    units: str,
    pictures: RawPictures,
    max_frames: int,
    report: SkipReport,
) -> Iterator[Example]:
    for query, boxes, texts in queries:
        report.tried("queries")
        try:
            yield _example(query, boxes, units, pictures, max_frames, report) | texts
        except Unusable as reason:
            report.skipped("queries", query.clip_id, query.where, str(reason))


def _example(
    query: Query, boxes_of: Boxes, units: str, pictures: RawPictures, max_frames: int, report: SkipReport
) -> Example:
    all_frames = query.frames or frames_of(pictures, query.clip_id)
    frames = read_frames(pictures, query.clip_id, all_frames, max_frames, report)
    if not frames:
        raise Unusable("no usable frame")
    own = {frame_id: picture for _, frame_id, picture in frames}
    first = frames[0][2]  # stands for the frames that are not stored: all frames of a clip have one size
    annotated = {
        frame_id: [frame_box(box, units, own.get(frame_id, first), frame_id, query.where, report) for box in boxes]
        for frame_id, boxes in boxes_of.items()
    }
    annotated = {frame_id: boxes for frame_id, boxes in annotated.items() if None not in boxes}
    stored = [annotated.get(frame_id, []) for _, frame_id, _ in frames]
    return {
        "clip_id": query.clip_id,
        "gallery_id": live_id_of(query.clip_id),
        "image_ids": list(query.image_ids),
        **clip_types(list(annotated.values())),
        "frames": [picture.encoded for _, _, picture in frames],
        "frame_ids": [frame_id for _, frame_id, _ in frames],
        "boxes": [box for boxes in stored for box in boxes],
        "box_frame": [index for index, boxes in enumerate(stored) for _ in boxes],
    }

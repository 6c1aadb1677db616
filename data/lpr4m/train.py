"""Builds training pairs: a clip and the image of the product that it shows."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from ..box_units import Box
from ..builder import EXAMPLES_PER_SHARD, PICTURE, TEXT, Example, Shard
from ..errors import FormatError, RawDataError, Unusable, fail
from ..pictures import RawPictures
from ..skip_report import SkipReport, SkipSummary
from .ids import README, live_id_of
from .pictures import frame_box, photos_of, read_frames, read_image
from .rows import RowBlock, TrainingRow, index_rows, read_rows

ROWS_TO_DETECT_UNITS = 100

FEATURES = {
    "clip_id": TEXT(),
    "live_id": TEXT(),
    "image_id": TEXT(),
    "title": TEXT(),
    "asr": TEXT(),
    "category": TEXT(),
    "category_id": TEXT(),
    "product_id": TEXT(),
    "scale": TEXT(),
    "duration": TEXT(),
    "number": TEXT(),
    "frames": tfds.features.Sequence(PICTURE()),
    "frame_ids": tfds.features.Sequence(TEXT()),
    "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
    "image": PICTURE(),
}
PHOTOS = {"photos": tfds.features.Sequence(PICTURE())}  # further ones of the product, if the builder looks for them


def train_shards(
    raw_dir: Path,
    is_subset: bool,
    pictures: RawPictures,
    max_frames: int,
    units_of: Callable[[Iterable[Box]], str],
    all_photos: bool,
) -> list[Shard]:
    """Divides the training rows into shards.

    Args:
        raw_dir: the raw files.
        is_subset: whether these are the files of the 641,821-row subset.
        pictures: the reader of the raw directory's pictures.
        max_frames: the maximum number of frames in an example, at least 1.
        units_of: returns the unit of the given boxes.
        all_photos: whether an example also has the photos that lie beside its image.

    Returns:
        Shards in the order of the rows.
    """
    blocks, units = blocks_and_units(raw_dir, is_subset, units_of)
    return [functools.partial(_examples, block, units, pictures, max_frames, all_photos) for block in blocks]


def train_metadata(summary: SkipSummary) -> dict[str, int]:
    """Returns the number of rows and the number of skipped ones."""
    return {"num_rows": summary.num_tried("clips"), "skipped": summary.num_skipped("clips")}


def blocks_and_units(
    raw_dir: Path,
    is_subset: bool,
    units_of: Callable[[Iterable[Box]], str],
    on_error: Callable[[FormatError], None] = fail,
) -> tuple[list[RowBlock], str]:
    """Divides the training rows into blocks of a shard's size, and detects the unit of their boxes.

    Args:
        raw_dir: the raw files.
        is_subset: whether these are the files of the 641,821-row subset.
        units_of: returns the unit of the given boxes.
        on_error: the error handler of `index_rows` and `read_rows`.

    Returns:
        (blocks in order, unit).
    """
    blocks = index_rows(_training_parts(raw_dir, is_subset), EXAMPLES_PER_SHARD, on_error)
    rows = itertools.chain.from_iterable(read_rows(block, on_error) for block in blocks)
    rows_with_boxes = (row for row in rows if any(map(any, row.boxes)))
    first_rows = itertools.islice(rows_with_boxes, ROWS_TO_DETECT_UNITS)
    return blocks, units_of(box for row in first_rows for box in row.boxes)


def _training_parts(raw_dir: Path, is_subset: bool) -> list[Path]:
    pattern = "annotations/train*.txt" if is_subset else "training_videoinfo_full_part_*.txt"
    parts = sorted(raw_dir.glob(pattern))
    if not parts:
        raise RawDataError(
            f"{raw_dir}: found no {pattern}, expected the training rows; {README} says where they come from, and "
            "--configs can leave out the training set"
        )
    numbers = [part.stem.rpartition("_")[2] for part in parts]
    expected = [f"{number:02}" for number in range(len(parts))]
    if not is_subset and numbers != expected:
        raise FormatError(
            str(raw_dir), f"parts {', '.join(numbers)}", "all parts from 00 on", "download the missing ones"
        )
    return parts


def _examples(
    block: RowBlock, units: str, pictures: RawPictures, max_frames: int, all_photos: bool, report: SkipReport
) -> Iterator[Example]:
    for row in read_rows(block):
        report.tried("clips")
        try:
            example = _example(row, units, pictures, max_frames, report)
            yield example | {"photos": _photos(row, pictures, report)} if all_photos else example
        except Unusable as reason:
            report.skipped("clips", row.clip_id, row.where, str(reason))


def _photos(row: TrainingRow, pictures: RawPictures, report: SkipReport) -> list[bytes]:
    """The further photos of a row's product; unreadable ones are left out and reported."""
    found = []
    for _, path in photos_of(pictures, row.image_id, row.image_path):
        with contextlib.suppress(Unusable):  # reported as a picture
            found.append(pictures.read(path, report).encoded)
    return found


def _example(row: TrainingRow, units: str, pictures: RawPictures, max_frames: int, report: SkipReport) -> Example:
    frames, frame_ids, boxes = [], [], []
    for index, frame_id, picture in read_frames(pictures, row.clip_id, row.frames, max_frames, report):
        box = frame_box(row.boxes[index], units, picture, frame_id, row.where, report)
        if box is None:
            continue  # a frame without its box would look like one without the product
        frames.append(picture.encoded)
        frame_ids.append(frame_id)
        boxes.append(box)
    if not frames:
        raise Unusable("no usable frame")
    image = read_image(pictures, row.image_id, row.image_path, report)
    return {
        "clip_id": row.clip_id,
        "live_id": live_id_of(row.clip_id),
        "image_id": row.image_id,
        "title": row.title,
        "asr": row.asr,
        "category": row.category,
        "category_id": row.category_id,
        "product_id": row.product_id,
        "scale": row.scale,
        "duration": row.duration,
        "number": row.number,
        "frames": frames,
        "frame_ids": frame_ids,
        "boxes": boxes,
        "image": image.encoded,
    }

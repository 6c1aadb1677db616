"""Training pairs: a clip and the image of the product that it shows."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from data.boxes import Box
from data.builder import EXAMPLES_PER_SHARD, PICTURE, TEXT, Example, Shard
from data.errors import DataError, FormatError, Unusable, fail
from data.lpr4m.ids import live_id_of
from data.lpr4m.pictures import frame_box, read_frames, read_image
from data.lpr4m.rows import RowBlock, TrainingRow, index_rows, read_rows
from data.pictures import RawPictures
from data.skip_report import SkipReport, SkipSummary

ROWS_THAT_TELL_UNITS = 100

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


def train_shards(
    raw_dir: Path,
    is_subset: bool,
    pictures: RawPictures,
    max_frames: int,
    units_of: Callable[[Iterable[Box]], str],
) -> list[Shard]:
    """Cuts the training rows into shards.

    Args:
        raw_dir: the raw files.
        is_subset: whether they are those of the 641,821-row subset.
        pictures: of the raw directory.
        max_frames: the most frames that an example holds.
        units_of: tells the unit of the boxes given.

    Returns:
        Shards in the order of the rows.
    """
    blocks, units = blocks_and_units(raw_dir, is_subset, units_of)
    return [functools.partial(_examples, block, units, pictures, max_frames) for block in blocks]


def train_metadata(summary: SkipSummary) -> dict[str, int]:
    """Returns the number of rows and how many of them were skipped."""
    return {"num_rows": summary.num_tried("clips"), "skipped": summary.num_skipped("clips")}


def blocks_and_units(
    raw_dir: Path,
    is_subset: bool,
    units_of: Callable[[Iterable[Box]], str],
    on_error: Callable[[FormatError], None] = fail,
) -> tuple[list[RowBlock], str]:
    """Returns the training rows in blocks of the size of a shard, and the unit of their boxes; as `train_shards`."""
    blocks = index_rows(_training_parts(raw_dir, is_subset), EXAMPLES_PER_SHARD, on_error)
    rows = itertools.chain.from_iterable(read_rows(block, on_error) for block in blocks)
    rows_with_boxes = (row for row in rows if any(map(any, row.boxes)))
    first_rows = itertools.islice(rows_with_boxes, ROWS_THAT_TELL_UNITS)
    return blocks, units_of(box for row in first_rows for box in row.boxes)


def _training_parts(raw_dir: Path, is_subset: bool) -> list[Path]:
    pattern = "annotations/train*.txt" if is_subset else "training_videoinfo_full_part_*.txt"
    parts = sorted(raw_dir.glob(pattern))
    if not parts:
        raise DataError(
            f"{raw_dir}: found no {pattern}, expected the training rows; data/lpr4m/README.md tells where they come "
            "from, and --configs leaves the training set out"
        )
    numbers = [part.stem.rpartition("_")[2] for part in parts]
    expected = [f"{number:02}" for number in range(len(parts))]
    if not is_subset and numbers != expected:
        raise FormatError(str(raw_dir), f"parts {', '.join(numbers)}", "all parts from 00 on", "download the others")
    return parts


def _examples(
    block: RowBlock, units: str, pictures: RawPictures, max_frames: int, report: SkipReport
) -> Iterator[Example]:
    for row in read_rows(block):
        report.tried("clips")
        try:
            yield _example(row, units, pictures, max_frames, report)
        except Unusable as reason:
            report.skipped("clips", row.clip_id, row.where, str(reason))


def _example(row: TrainingRow, units: str, pictures: RawPictures, max_frames: int, report: SkipReport) -> Example:
    frames, frame_ids, boxes = [], [], []
    for index, frame_id, picture in read_frames(pictures, row.clip_id, row.frames, max_frames, report):
        box = frame_box(row.boxes[index], units, picture, frame_id, row.where, report)
        if box is None:
            continue  # a frame without its box would be taken for one without the product
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

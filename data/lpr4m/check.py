"""Checks LPR4M's raw files before a build, those of the full set and of the subset."""

import collections
import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..box_units import PIXELS, Box, detect_units
from ..errors import RawDataError, Unusable
from ..findings import Findings
from ..pictures import Picture, RawPictures
from . import evaluation_files
from .evaluation_files import Query
from .gallery import REPEATED
from .ids import live_id_of
from .lpr4m_dataset_builder import Builder
from .pictures import frame_box, frames_of, read_frames, read_image
from .rows import TrainingRow, read_rows
from .train import blocks_and_units

MAX_FRAMES = 10
FULL = {"clips": 4_013_617, "queries": 20_079, "gallery images": 66_358, "livestreams": 110}
SUBSET = {"clips": 641_821, "queries": 20_079}


def check(raw_dir: Path, pictures: RawPictures, min_frames: int, findings: Findings) -> None:
    """Reads everything that a build would read, and lists every fault.

    Args:
        raw_dir: the raw files.
        pictures: the reader of the raw directory's pictures.
        min_frames: a clip with fewer usable frames is a fault, 1..10.
        findings: collects the faults and counts.
    """
    is_subset = "train_750k" in Builder.configs_for(raw_dir)
    findings.published |= SUBSET if is_subset else FULL
    for check_set in (_check_training, _check_test):
        with _listed("files", findings):
            check_set(raw_dir, is_subset, pictures, min_frames, findings)


def _check_training(raw_dir: Path, is_subset: bool, pictures: RawPictures, min_frames: int, findings: Findings) -> None:
    on_error = findings.error_handler("rows")
    blocks, units = blocks_and_units(raw_dir, is_subset, _usual_units, on_error)
    rows = itertools.chain.from_iterable(read_rows(block, on_error) for block in blocks)
    for row in findings.counted("clips", rows, sum(block.num_rows for block in blocks)):
        with _listed("pictures", findings):
            _check_row(row, units, pictures, min_frames, findings)


def _check_row(row: TrainingRow, units: str, pictures: RawPictures, min_frames: int, findings: Findings) -> None:
    usable = 0
    for index, frame_id, picture in _frames(row.clip_id, row.frames, pictures, findings):
        usable += _box_fits(row.boxes[index], units, picture, frame_id, row.where, findings)
    findings.check_frames("clips", row.clip_id, row.where, usable, min_frames)
    with contextlib.suppress(Unusable):  # listed as a picture
        read_image(pictures, row.image_id, row.image_path, findings)


def _check_test(raw_dir: Path, is_subset: bool, pictures: RawPictures, min_frames: int, findings: Findings) -> None:
    galleries = None
    with _listed("files", findings):
        galleries = _check_gallery(raw_dir, is_subset, pictures, findings)
    find_optional = evaluation_files.find_optional_file
    find = find_optional if is_subset else evaluation_files.find_file
    for find_texts, name in (
        (find, "test_videoid_asr_*.txt"),
        (find, "test_image_title_*.txt"),
        (find_optional, "test_image_category.txt"),
    ):
        with _listed("files", findings):
            evaluation_files.read_texts(find_texts(raw_dir, name))
    boxes: dict[str, dict[str, list[Box]]] = {}
    with _listed("files", findings):
        boxes = evaluation_files.read_boxes(find(raw_dir, "test_frameid2gtbox_*.json"))
    units = _usual_units(box for clip in boxes.values() for frame in clip.values() for box in frame)
    queries = (evaluation_files.read_subset_queries if is_subset else evaluation_files.read_queries)(raw_dir)
    for query in findings.counted("queries", queries, len(queries)):
        if galleries is not None:
            _check_truth(query, galleries, findings)
        with _listed("pictures", findings):
            _check_query(query, boxes.get(query.clip_id, {}), units, pictures, min_frames, findings)


def _check_gallery(raw_dir: Path, is_subset: bool, pictures: RawPictures, findings: Findings) -> set[tuple[str, str]]:
    """Lists the faults of the galleries and returns (livestream, image id) for all their products."""
    gallery = (evaluation_files.read_subset_gallery if is_subset else evaluation_files.read_gallery)(raw_dir)
    for entry in findings.counted("gallery images", gallery, len(gallery)):
        if entry.is_repeated:
            findings.skipped("gallery images", f"{entry.gallery_id}/{entry.image_id}", entry.where, REPEATED)
        with contextlib.suppress(Unusable):  # listed as a picture
            read_image(pictures, entry.image_id, entry.path, findings)
    findings.counts["livestreams"] = len({entry.gallery_id for entry in gallery})
    return {(entry.gallery_id, entry.product_id) for entry in gallery}


def _check_truth(query: Query, galleries: set[tuple[str, str]], findings: Findings) -> None:
    for image_id in query.image_ids:
        if (live_id_of(query.clip_id), image_id) not in galleries:
            findings.skipped("ground truth", image_id, query.where, "not in the gallery of its livestream")


def _check_query(
    query: Query,
    boxes: dict[str, list[Box]],
    units: str,
    pictures: RawPictures,
    min_frames: int,
    findings: Findings,
) -> None:
    frames = _frames(query.clip_id, query.frames or frames_of(pictures, query.clip_id), pictures, findings)
    findings.check_frames("queries", query.clip_id, query.where, len(frames), min_frames)
    for frame_id, its_boxes in boxes.items() if frames else ():
        for box in its_boxes:  # all frames of a clip have one size
            _box_fits(box, units, frames[0][2], frame_id, query.where, findings)


def _frames(
    clip_id: str, frames: Sequence[str], pictures: RawPictures, findings: Findings
) -> list[tuple[int, str, Picture]]:
    try:
        return read_frames(pictures, clip_id, frames, MAX_FRAMES, findings)
    except Unusable:  # the clip has no frames
        return []


def _box_fits(box: Box, units: str, picture: Picture, frame_id: str, where: str, findings: Findings) -> bool:
    try:
        return frame_box(box, units, picture, frame_id, where, findings) is not None
    except RawDataError as error:  # a box in the other unit
        findings.skipped("boxes", frame_id, where, str(error))
        return False


def _usual_units(boxes: Iterable[Box]) -> str:
    """Returns the unit of most boxes, so that a box in the other unit is a fault.

    The builder decides by the largest coordinate, which a single wrong box changes.
    """
    units = collections.Counter(detect_units([box]) for box in boxes if any(box))
    return units.most_common(1)[0][0] if units else PIXELS


@contextlib.contextmanager
def _listed(kind: str, findings: Findings) -> Iterator[None]:
    """Lists an error that ends a block of code, and continues after the block."""
    try:
        yield
    except RawDataError as error:
        findings.error(kind, error)

"""Finds and reads LPR4M's pictures in the full layout and the subset's."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from ..box_units import Box, box_as_shown, relative_box
from ..errors import FormatError, Unusable
from ..pictures import IMAGE_EXTENSIONS, Picture, RawPictures, choose_frames, stems_in
from ..skip_report import SkipReport
from .ids import parse_photo

FRAMES_BEYOND_END = 10  # in case numbers start at 1, or a clip ends a little late


def read_frames(
    pictures: RawPictures, clip_id: str, frames: Sequence[str], max_frames: int, report: SkipReport
) -> list[tuple[int, str, Picture]]:
    """Reads at most `max_frames` of a clip's frames; unreadable ones are left out and reported.

    Args:
        pictures: the reader of the raw directory's pictures.
        clip_id: the clip.
        frames: all frames of the clip: ids (full layout) or paths relative to the raw directory (subset).
        max_frames: the maximum number of frames, at least 1.
        report: lists unreadable frames.

    Returns:
        (index among all frames, frame id, picture) of each frame that was read, in order.

    Raises:
        Unusable: `frames` is empty.
    """
    if not frames:
        raise Unusable("no frames")
    read = []
    for index, frame in choose_frames(frames, max_frames):
        is_path = frame.lower().endswith(IMAGE_EXTENSIONS)
        path = frame if is_path else f"frames/{clip_id}/{frame}.jpg"
        try:
            picture = pictures.read(path, report)
        except Unusable:
            continue
        read.append((index, path.rpartition("/")[2].rpartition(".")[0], picture))
    return read


def frames_of(pictures: RawPictures, clip_id: str) -> list[str]:
    """Returns the ids of all frames of a clip in the full layout, ordered by number; empty if there are none.

    Pictures that img2dataset downloaded cannot be listed by clip. So every possible name is looked up: a clip has one
    frame per second.
    """
    start, end = map(int, clip_id.rsplit("-", 2)[1:])
    numbers = range(min((end - start) // 1000, 86_400) + FRAMES_BEYOND_END)  # at most a day, in case the id is wrong
    listed = {name for number in numbers if pictures.was_listed(name := f"{clip_id}-{number:04}")}
    on_disk = pictures.stems(f"frames/{clip_id}")
    return in_order(listed.union(on_disk), clip_id)


def in_order(frame_ids: Iterable[str], clip_id: str) -> list[str]:
    """Sorts the frames of a clip by number."""
    return sorted(frame_ids, key=lambda frame_id: _frame_number(frame_id, clip_id))


def read_image(pictures: RawPictures, image_id: str, path: str, report: SkipReport) -> Picture:
    """Reads a shop's image.

    Args:
        pictures: the reader of the raw directory's pictures.
        image_id: the image, which names its file if `path` is empty.
        path: the file relative to the raw directory; '' = `images/<image_id>.jpg`.
        report: counts the picture and lists it if it cannot be used.

    Raises:
        Unusable: "image missing", or "image" and another reason.
    """
    try:
        return pictures.read(path or f"images/{image_id}.jpg", report)
    except Unusable as reason:
        raise Unusable(f"image {reason}") from None


def photos_of(pictures: RawPictures, image_id: str, path: str) -> list[tuple[int, str]]:
    """Finds the further photos of a product, `<image_id>-<k>.jpg` with k above 0 beside its image.

    Args:
        pictures: the reader of the raw directory's pictures.
        image_id: the product's image.
        path: of the image, relative to the raw directory; '' = `images/<image_id>.jpg`.

    Returns:
        (k, path relative to the raw directory) of each, ordered by k.
    """
    folder, _, name = (path or f"images/{image_id}.jpg").rpartition("/")
    numbers = set(_photos_in(pictures.folder(folder)).get(image_id, ()))
    downloaded = itertools.takewhile(lambda k: pictures.was_listed(f"{image_id}-{k}"), itertools.count(1))
    numbers = (numbers | set(downloaded)) - {0, parse_photo(name)[1]}
    return [(number, f"{folder}/{image_id}-{number}.jpg") for number in sorted(numbers)]


@functools.lru_cache(maxsize=8)
def _photos_in(folder: Path) -> dict[str, list[int]]:
    """{image id: numbers of its photos} of a directory, which may hold hundreds of thousands."""
    found: dict[str, list[int]] = {}
    for stem in stems_in(folder):
        image_id, number = parse_photo(f"{stem}.jpg")
        if stem == f"{image_id}-{number}":
            found.setdefault(image_id, []).append(number)
    return found


def frame_box(
    box: Box, units: str, frame: Picture, frame_id: str, where: str, report: SkipReport
) -> tfds.features.BBox | None:
    """Converts a box of the stored pixels to shares of its frame as a viewer shows it.

    A box that cannot be used is reported.

    Args:
        box: x1, y1, x2, y2; all zeros = no box.
        units: the unit of the file's boxes.
        frame: the frame, for its size and orientation.
        frame_id: the frame, for the report.
        where: place in the raw file, for errors and the report.
        report: counts the box and lists it if it cannot be used.

    Returns:
        The box, or None if it cannot be used.

    Raises:
        FormatError: the box is in the other unit.
    """
    report.tried("boxes")
    try:
        relative = relative_box(box, units, (frame.width, frame.height), where)
    except Unusable as reason:
        report.skipped("boxes", frame_id, where, str(reason))
        return None
    return box_as_shown(relative, frame.orientation)


def _frame_number(frame_id: str, clip_id: str) -> int:
    number = frame_id.rpartition("-")[2]
    is_utf8 = frame_id == frame_id.encode(errors="ignore").decode()  # a file's name may not be
    if not number.isdecimal() or not is_utf8:
        raise FormatError(f"frames of {clip_id}", repr(frame_id), "a frame id clip_id-NNNN", "rename or remove it")
    return int(number)

"""Where LPR4M's pictures lie, in the full layout and in the subset's, and reading a clip's frames."""

from collections.abc import Iterable, Sequence

import tensorflow_datasets as tfds

from data.boxes import Box, relative_box
from data.errors import FormatError, Unusable
from data.pictures import IMAGE_EXTENSIONS, Picture, RawPictures, choose_frames
from data.skip_report import SkipReport

FRAMES_BEYOND_END = 10  # in case that numbers start at 1, or that a clip is cut a little late


def read_frames(
    pictures: RawPictures, clip_id: str, frames: Sequence[str], max_frames: int, report: SkipReport
) -> list[tuple[int, str, Picture]]:
    """Reads at most `max_frames` of a clip's frames; those that cannot be read are left out and reported.

    Args:
        pictures: of the raw directory.
        clip_id: the clip.
        frames: all its frames: ids (full layout) or paths relative to the raw directory (subset).
        max_frames: the most to read.
        report: is told what was left out.

    Returns:
        (index among all frames, frame id, picture), in order.

    Raises:
        Unusable: there are no frames to read from.
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
    """Returns the ids of all frames of a clip in the full layout, by number; none if there is no such clip.

    What img2dataset downloaded cannot be listed by clip, so names are tried: a clip has one frame a second.
    """
    start, end = map(int, clip_id.rsplit("-", 2)[1:])
    numbers = range(min((end - start) // 1000, 86_400) + FRAMES_BEYOND_END)  # no more than a day, whatever the id says
    listed = {name for number in numbers if pictures.was_listed(name := f"{clip_id}-{number:04}")}
    on_disk = pictures.stems(f"frames/{clip_id}")
    return in_order(listed.union(on_disk), clip_id)


def in_order(frame_ids: Iterable[str], clip_id: str) -> list[str]:
    """Sorts the frames of a clip by number."""
    return sorted(frame_ids, key=lambda frame_id: _frame_number(frame_id, clip_id))


def read_image(pictures: RawPictures, image_id: str, path: str, report: SkipReport) -> Picture:
    """Reads a shop's image, given by id (full layout) or by path (subset).

    Raises:
        Unusable: "image missing" and the like.
    """
    try:
        return pictures.read(path or f"images/{image_id}.jpg", report)
    except Unusable as reason:
        raise Unusable(f"image {reason}") from None


def frame_box(
    box: Box, units: str, frame: Picture, frame_id: str, where: str, report: SkipReport
) -> tfds.features.BBox | None:
    """Returns a box relative to its frame, or None, and a line in the report, if it cannot be used."""
    report.tried("boxes")
    try:
        return relative_box(box, units, (frame.width, frame.height), where)
    except Unusable as reason:
        report.skipped("boxes", frame_id, where, str(reason))
        return None


def _frame_number(frame_id: str, clip_id: str) -> int:
    number = frame_id.rpartition("-")[2]
    if not number.isdecimal():
        raise FormatError(f"frames of {clip_id}", repr(frame_id), "a frame id clip_id-NNNN", "rename or remove it")
    return int(number)

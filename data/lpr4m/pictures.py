"""Where the raw pictures lie, which frames of a clip are kept, and reading them with a check."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from data.errors import FormatError, Unusable
from data.lpr4m.values import IMAGE_EXTENSIONS

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Picture:
    """The bytes of a picture file as they are, and its size in pixels."""

    encoded: bytes
    width: int
    height: int


class RawPictures:
    """Finds picture files under a raw directory; the only place that knows how they are laid out."""

    def __init__(self, raw_dir: Path):
        self._raw_dir = raw_dir

    def frame(self, clip_id: str, frame: str) -> Path:
        """Returns the file of a frame, given by id (full layout) or by relative path (subset)."""
        if frame.lower().endswith(IMAGE_EXTENSIONS):
            return self._inside(frame)
        return self._inside(f"frames/{clip_id}/{frame}.jpg")

    def image(self, image_id: str, path: str = "") -> Path:
        """Returns the file of a shop's image, given by id (full layout) or by relative path (subset)."""
        return self._inside(path or f"images/{image_id}.jpg")

    def frames_of(self, clip_id: str) -> list[str]:
        """Returns the ids of all frames of a clip on disk, by number; none if there is no such clip."""
        folder = self._inside(f"frames/{clip_id}")
        if not folder.is_dir():
            return []
        return sorted((path.stem for path in folder.glob("*.jpg")), key=lambda stem: frame_number(stem, str(folder)))

    def _inside(self, relative: str) -> Path:
        if relative.startswith("/") or ".." in relative.split("/"):
            raise FormatError(str(self._raw_dir), repr(relative), "a path inside the raw directory", "mend the file")
        return self._raw_dir / relative


def frame_number(frame_id: str, where: str) -> int:
    """Returns NNNN of a frame id `clip_id-NNNN`."""
    number = frame_id.rpartition("-")[2]
    if not number.isdecimal():
        raise FormatError(where, repr(frame_id), "a frame id clip_id-NNNN", "rename or remove the frame")
    return int(number)


def choose_frames(frames: Sequence[T], max_frames: int) -> list[tuple[int, T]]:
    """Chooses at most `max_frames` frames, evenly spread from the first to the last.

    Args:
        frames: all frames of a clip, in order.
        max_frames: at least 1.

    Returns:
        (index, frame) of the frames kept, in order.

    Source: RICE.md section 5: `linspace(0, n - 1, max_frames)` truncated to int if there are more.
    """
    if len(frames) <= max_frames:
        return list(enumerate(frames))
    return [(int(index), frames[int(index)]) for index in np.linspace(0, len(frames) - 1, max_frames)]


def read_picture(path: Path) -> Picture:
    """Reads a picture file and makes sure that it decodes to its end.

    Args:
        path: a JPEG, or anything else that Pillow knows.

    Raises:
        Unusable: "missing", "zero bytes" or "undecodable".
    """
    try:
        encoded = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Unusable("missing") from None
    if not encoded:
        raise Unusable("zero bytes")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            image.draft("L", (width // 8, height // 8))  # reads all of a JPEG, but skips most of the arithmetic
            image.load()
    except Exception:  # Pillow has no common class for what a broken file may raise
        raise Unusable("undecodable") from None
    return Picture(encoded, width, height)

"""Raw pictures: reading them with a check, and which frames of a clip are kept."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from data.errors import FormatError, Unusable
from data.img2dataset import Download, open_index
from data.skip_report import SkipReport

T = TypeVar("T")

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture to store, and the size in pixels that it was published with, to which boxes in pixels refer.

    `encoded` is the bytes of its file as they are, unless `RawPictures` had to make it smaller.
    """

    encoded: bytes
    width: int
    height: int


class RawPictures:
    """Reads the pictures of a raw directory, be they files or what img2dataset made; can be sent to another process."""

    def __init__(self, raw_dir: Path, index: Path | None = None, max_short_side: int = 0):
        """Names the places.

        Args:
            raw_dir: the raw files.
            index: of the pictures that img2dataset downloaded, see `data.img2dataset.build_index`.
            max_short_side: a picture whose short side has more pixels is made that small, 0 = none is.
        """
        self._raw_dir = raw_dir
        self._index = index
        self._max_short_side = max_short_side

    def read(self, relative: str, report: SkipReport) -> Picture:
        """Reads a picture and makes sure that it decodes to its end; one that does not is reported.

        Args:
            relative: the file, from the raw directory; what img2dataset downloaded under its name comes first.
            report: counts it among the "pictures".

        Raises:
            Unusable: "missing", "zero bytes", "undecodable", or img2dataset's status of a failure.
            FormatError: the path leaves the raw directory.
        """
        file = self._inside(relative)
        report.tried("pictures")
        download = open_index(self._index).read(file.stem) if self._index else None
        try:
            picture = read_picture(file) if download is None else _check_download(download)
        except Unusable as reason:
            report.skipped("pictures", file.stem, download.where if download else file, str(reason))
            raise
        return _shrink(picture, self._max_short_side) if self._max_short_side else picture

    def was_listed(self, name: str) -> bool:
        """Tells whether img2dataset was given a URL with that name, be it downloaded or not."""
        return self._index is not None and name in open_index(self._index)

    def stems(self, relative: str) -> list[str]:
        """Returns the names, without extension, of the JPEG files in a directory; none if there is no such one."""
        return [path.stem for path in self._inside(relative).glob("*.jpg")]

    def _inside(self, relative: str) -> Path:
        if relative.startswith("/") or ".." in relative.split("/"):
            raise FormatError(str(self._raw_dir), repr(relative), "a path inside the raw directory", "mend the file")
        return self._raw_dir / relative


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
    return Picture(encoded, *_check(encoded))


def _check_download(download: Download) -> Picture:
    if download.status != "success":
        raise Unusable(download.status)
    _check(download.encoded)
    return Picture(download.encoded, download.width, download.height)


def _check(encoded: bytes) -> tuple[int, int]:
    """Decodes a picture to its end and returns width and height."""
    if not encoded:
        raise Unusable("zero bytes")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            image.draft("L", (width // 8, height // 8))  # reads all of a JPEG, but skips most of the arithmetic
            image.load()
    except Exception:  # Pillow has no common class for what a broken file may raise
        raise Unusable("undecodable") from None
    return width, height


def _shrink(picture: Picture, max_short_side: int) -> Picture:
    """Makes a picture smaller, with its proportions, unless its short side has at most `max_short_side` pixels."""
    with Image.open(io.BytesIO(picture.encoded)) as image:
        if min(image.size) <= max_short_side:
            return picture
        scale = max_short_side / min(image.size)
        size = [max(max_short_side, round(side * scale)) for side in image.size]
        smaller = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        exif = image.getexif()  # holds the orientation, which readers of the original would see too
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=95, exif=exif)
    return dataclasses.replace(picture, encoded=buffer.getvalue())

"""Reads and checks raw pictures, and chooses the frames of a clip to keep."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from .errors import FormatError, Unusable
from .img2dataset import Download, open_index
from .skip_report import SkipReport

T = TypeVar("T")

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
OTHER_SPELLINGS = (".JPG", ".jpeg", ".JPEG")  # of .jpg, which annotation files imply
MOST_EXIF = 65_533  # bytes, of a JPEG's segment
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # other decoders of Pillow start programs

# Pillow refuses a PNG with a larger text or color profile; editors write a megabyte of history.
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture to store.

    Attributes:
        encoded: the unchanged bytes of its file, or a JPEG if `RawPictures` shrank it.
        width: in pixels, as published, before any resizing; boxes in pixels refer to this size.
        height: likewise.
        orientation: EXIF's number for how a viewer turns the stored pixels, 1..8; 1 = not at all.
    """

    encoded: bytes
    width: int
    height: int
    orientation: int = 1


class RawPictures:
    """Reads the pictures of a raw directory, from files and from img2dataset's output; can be pickled."""

    def __init__(self, raw_dir: Path, index: Path | None = None, max_short_side: int = 0):
        """Makes a reader.

        Args:
            raw_dir: the raw directory.
            index: the index of the pictures that img2dataset downloaded, from `img2dataset.build_index`.
            max_short_side: pictures with a longer short side, in pixels, are shrunk to it; 0 = none is shrunk.
        """
        self._raw_dir = raw_dir
        self._index = index
        self._max_short_side = max_short_side

    def read(self, relative: str, report: SkipReport) -> Picture:
        """Reads a picture and checks that it decodes to its end; one that does not is reported.

        Args:
            relative: the file's path relative to the raw directory; a picture of that name that img2dataset downloaded
                takes precedence.
            report: counts the picture and lists it if it cannot be used.

        Raises:
            Unusable: "missing", "zero bytes", "undecodable", or img2dataset's status of a failed download.
            FormatError: the path leads out of the raw directory.
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
        """Returns whether img2dataset was given a URL with that name, even if the download failed."""
        return self._index is not None and name in open_index(self._index)

    def stems(self, relative: str) -> list[str]:
        """Returns `stems_in` of a directory relative to the raw directory."""
        return stems_in(self._inside(relative))

    def folder(self, relative: str) -> Path:
        """Returns the path of a directory relative to the raw directory.

        Raises:
            FormatError: it leads out of the raw directory.
        """
        return self._inside(relative)

    def _inside(self, relative: str) -> Path:
        if relative.startswith("/") or ".." in relative.split("/"):
            raise FormatError(str(self._raw_dir), repr(relative), "a path inside the raw directory", "fix the file")
        return self._raw_dir / relative


def stems_in(directory: Path) -> list[str]:
    """Returns the names of the JPEG files in a directory, without extension; empty if it does not exist.

    Hidden files do not count: copies by macOS have a `._NAME.jpg`, which is no picture, beside each file.
    """
    files = (path for path in directory.glob("*") if not path.name.startswith("."))
    return sorted({path.stem for path in files if path.suffix in (".jpg", *OTHER_SPELLINGS)})


def choose_frames(frames: Sequence[T], max_frames: int) -> list[tuple[int, T]]:
    """Chooses at most `max_frames` frames, spread evenly from the first to the last.

    Args:
        frames: all n frames of a clip, in order.
        max_frames: at least 1.

    Returns:
        (index, frame) of each chosen frame, in order: all if n <= max_frames, otherwise those at
        `linspace(0, n - 1, max_frames)`, truncated to integers.

    Source: docs/reference.md, section 5.
    """
    if len(frames) <= max_frames:
        return list(enumerate(frames))
    return [(int(index), frames[int(index)]) for index in np.linspace(0, len(frames) - 1, max_frames)]


def read_picture(path: Path) -> Picture:
    """Reads a picture file and checks that it decodes to its end.

    Args:
        path: a JPEG, or another of `FORMATS`; its extension may be spelled otherwise, such as .JPG for .jpg.

    Raises:
        Unusable: "missing", "zero bytes" or "undecodable".
    """
    spellings = [path, path.with_suffix(path.suffix.upper())]
    if path.suffix == ".jpg":
        spellings += map(path.with_suffix, OTHER_SPELLINGS)
    file = next(filter(Path.is_file, spellings), None)  # a pipe or a device is no picture, and may never end
    if file is None:
        raise Unusable("missing")
    encoded = file.read_bytes()
    return Picture(encoded, *_check(encoded))


def _check_download(download: Download) -> Picture:
    if download.status != "success":
        raise Unusable(download.status)
    _, _, orientation = _check(download.encoded)
    return Picture(download.encoded, download.width, download.height, orientation)


def _check(encoded: bytes) -> tuple[int, int, int]:
    """Decodes a picture to its end and returns its width, height and orientation."""
    if not encoded:
        raise Unusable("zero bytes")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            width, height = image.size
            # A JPEG is then read completely, but most of the arithmetic is skipped.
            image.draft("L", (max(1, width // 8), max(1, height // 8)))
            image.load()
            if image.mode in ("I", "F"):
                raise ValueError("numbers of 32 bits have no defined white")  # so training would refuse it
            return width, height, _orientation(image)
    except Exception:  # Pillow's errors for broken files have no common class
        raise Unusable("undecodable") from None


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation of a loaded picture; 1 if it has none or a damaged one."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow may raise anything on damaged EXIF data
        return 1
    return found if found in range(1, 9) else 1


def _shrink(picture: Picture, max_short_side: int) -> Picture:
    """Shrinks a picture to a short side of at most `max_short_side` pixels, keeping its proportions.

    A picture that is transparent, of 16 bits, with a gamma, or with the color profile of gray or CMYK stays as it is:
    as an RGB JPEG it would look different. So does one with more EXIF data than a JPEG can hold.
    """
    with Image.open(io.BytesIO(picture.encoded)) as image:
        image.load()  # a PNG's EXIF data may follow its pixels
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        is_transparent = alpha is not None and alpha.getextrema() != (255, 255)
        gamma = 1 / 2.2 if "srgb" in image.info else image.info.get("gamma", 1 / 2.2)
        differs = is_transparent or image.mode[0] in "IF" or abs(gamma * 2.2 - 1) > 0.05
        differs = differs or len(image.info.get("exif", b"")) > MOST_EXIF
        if differs or (image.mode != "RGB" and "icc_profile" in image.info) or min(image.size) <= max_short_side:
            return picture
        scale = max_short_side / min(image.size)
        size = [max(max_short_side, round(side * scale)) for side in image.size]
        smaller = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        kept = {name: value for name in ("exif", "icc_profile") if (value := image.info.get(name))}  # for readers
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=95, **kept)
    return dataclasses.replace(picture, encoded=buffer.getvalue())

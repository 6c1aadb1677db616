"""Samples the frames of a video, a directory of frames, or a list of them."""

import logging
import math
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from rice_jax.input.pictures import is_hidden
from rice_jax.recognition.container import LIMITS, Reading, VideoLimits, decode_video
from rice_jax.types import DataError

logger = logging.getLogger(__name__)

PICTURES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LIST = ".txt"
_URL = re.compile("[a-z]{3,}:/")  # of its two slashes, a path keeps one
_PARTS = re.compile(r"(?<![0-9.])[0-9]+\.[0-9]+(?![0-9.])|[0-9]+|[^0-9]+")


class Frame(NamedTuple):
    """A frame of a video."""

    time: float  # seconds from the beginning
    picture: Path | bytes | UInt8[np.ndarray, "H W 3"]  # a picture's file, its content, or RGB, 0 to 255


def require_video(path: Path) -> None:
    """Refuses a path at which there is nothing.

    Raises:
        DataError: it does not exist.
    """
    if not path.exists():
        found = "is a URL" if _URL.match(str(path)) else "does not exist"
        raise DataError(f"{path}: {found}; expected the path of a video, a directory of frames, or their list ({LIST})")


def read_video(
    path: str | os.PathLike,
    interval_seconds: float = 1.0,
    reading: Reading | None = None,
    limits: VideoLimits = LIMITS,
) -> Iterator[Frame]:
    """Reads one frame of each interval.

    Args:
        path: a video, of which the first frame of each interval is read, and frames that stay are read again
            (`clock.look`); a directory of frames, ordered by name and by the numbers in it (2 before 10); or a text
            file (.txt) with the path of one frame on each line, relative to that file. Frames of a directory or list
            are taken to be `interval_seconds` apart; they are not opened.
        interval_seconds: above 0.
        reading: is filled when the last frame has been read; None = warnings are logged.
        limits: of a video.

    Yields:
        Frames in order, at least one, decoded one by one.

    Raises:
        DataError: `path` does not exist, has no frame, or cannot be decoded.
        VideoTooLarge: a video exceeds a limit.
    """
    path, given = Path(path), Reading() if reading is None else reading
    if not 0 < interval_seconds < math.inf:
        raise DataError(f"interval_seconds: found {interval_seconds}, expected more than 0, and finite")
    require_video(path)
    if not path.is_dir() and path.suffix.lower() != LIST:
        interval = Fraction(repr(float(interval_seconds)))  # 0.1 is a tenth
        yield from (Frame(*looked) for looked in decode_video(path, interval, limits, given))
    else:
        files = _listed(path) if path.is_file() else _inside(path)
        yield from (Frame(place * interval_seconds, file) for place, file in enumerate(files))
        given.end = len(files) * interval_seconds
    if reading is None:
        for warning in given.warnings:
            logger.warning("%s: %s", path, warning)


def _inside(directory: Path) -> list[Path]:
    files = [file for file in directory.iterdir() if file.suffix.lower() in PICTURES and not is_hidden(file.name)]
    if not files:
        raise DataError(f"{directory}: found no frame, expected files that end in {', '.join(PICTURES)}")
    return sorted(files, key=_in_order)


def _in_order(file: Path) -> tuple[list[tuple[float, str]], str]:
    """Sorts names by the numbers in them; a number with one point, such as a time of 1.25 seconds, is a decimal."""
    parts = _PARTS.findall(file.stem)
    return [(float(part), "") if part[0] in "0123456789" else (math.inf, part) for part in parts], file.name


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error}); expected the path of a frame on each line") from error
    files = []
    for number, line in enumerate(lines, start=1):
        if name := line.strip():
            files.append(path.parent / name)
            if not files[-1].is_file():
                raise DataError(f"{path}:{number}: found {name!r}, which is not a file; paths are relative to the list")
    if not files:
        raise DataError(f"{path}: is empty, expected the path of a frame on each line")
    return files

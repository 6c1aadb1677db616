"""Samples the frames of a video, a directory of frames, or a list of them."""

import logging
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from rice_jax.recognition.container import LIMITS, Reading, VideoLimits, decode_video
from rice_jax.types import DataError

logger = logging.getLogger(__name__)

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LIST = ".txt"


class Frame(NamedTuple):
    """A frame of a video."""

    time: float  # seconds from the beginning
    picture: bytes | UInt8[np.ndarray, "H W 3"]  # the content of a picture's file, or RGB, 0 to 255


def read_video(
    path: str | os.PathLike,
    interval_seconds: float = 1.0,
    reading: Reading | None = None,
    limits: VideoLimits = LIMITS,
) -> Iterator[Frame]:
    """Reads one frame of each interval.

    Args:
        path: a video, of which the first frame of each interval is read, and frames that stay are read again
            (`clock.look`); a directory of frames, ordered by name; or a text file (.txt) with the path of one frame on
            each line, relative to that file. Frames of a directory or list are taken to be `interval_seconds` apart.
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
        raise DataError(f"interval_seconds: found {interval_seconds}, expected more than 0")
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected a video, a directory of frames, or a list of them ({LIST})")
    if not path.is_dir() and path.suffix.lower() != LIST:
        interval = Fraction(repr(float(interval_seconds)))  # 0.1 is a tenth
        yield from (Frame(*looked) for looked in decode_video(path, interval, limits, given))
    else:
        files = _listed(path) if path.is_file() else _inside(path)
        for place, file in enumerate(files):
            yield Frame(place * interval_seconds, file.read_bytes())
        given.end = len(files) * interval_seconds
    if reading is None:
        for warning in given.warnings:
            logger.warning("%s: %s", path, warning)


def _inside(directory: Path) -> list[Path]:
    files = sorted(file for file in directory.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"{directory}: found no frame, expected files that end in {', '.join(PICTURES)}")
    return files


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
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

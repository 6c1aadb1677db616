"""Samples the frames of a video, a directory of frames, or a list of them."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from rice_jax.input.pictures import is_hidden
from rice_jax.types import DataError

PICTURES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LIST = ".txt"
_PARTS = re.compile(r"(?<![0-9.])[0-9]+\.[0-9]+(?![0-9.])|[0-9]+|[^0-9]+")


class Frame(NamedTuple):
    """A frame of a video."""

    time: float  # seconds from the beginning
    picture: Path | bytes | UInt8[np.ndarray, "H W 3"]  # a picture's file, its content, or RGB, 0 to 255


def read_video(path: str | os.PathLike, interval_seconds: float = 1.0) -> Iterator[Frame]:
    """Reads one frame of each interval.

    Args:
        path: a video, of which the first frame of each interval is read; a directory of frames, ordered by name and
            by the numbers in it (2 before 10); or a text file (.txt) with the path of one frame on each line, relative
            to that file. Frames of a directory or list are taken to be `interval_seconds` apart; they are not opened.
        interval_seconds: above 0.

    Yields:
        Frames in order, at least one, decoded one by one.

    Raises:
        DataError: `path` does not exist, has no frame, or cannot be decoded.
    """
    path = Path(path)
    if not interval_seconds > 0:
        raise DataError(f"interval_seconds: found {interval_seconds}, expected more than 0")
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected a video, a directory of frames, or a list of them ({LIST})")
    if not path.is_dir() and path.suffix.lower() != LIST:
        yield from _decode(path, interval_seconds)
        return
    for place, file in enumerate(_listed(path) if path.is_file() else _inside(path)):
        yield Frame(place * interval_seconds, file)


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


def _decode(path: Path, interval_seconds: float) -> Iterator[Frame]:
    first: float | None = None  # time of the first frame
    wanted = 0.0  # next interval to take a frame of
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: found no video stream, expected a video such as mp4")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for place, frame in enumerate(container.decode(stream)):
                # Raw streams have no times.
                now = place / float(stream.average_rate or 25) if frame.time is None else frame.time
                first = now if first is None else first
                if (now - first) // interval_seconds >= wanted:
                    wanted = (now - first) // interval_seconds + 1
                    yield Frame(now - first, _upright(frame))
    except av.error.FFmpegError as error:
        where = "" if first is None else f" after second {max(wanted - 1, 0) * interval_seconds:g}"
        raise DataError(f"{path}: cannot be decoded{where}: {error.strerror}; expected a video such as mp4") from error
    if first is None:
        raise DataError(f"{path}: found no frame, expected at least one")


def _upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """Rotates a frame as a player does: phones held upright record lying frames with a rotation."""
    picture = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(picture, quarters)) if quarters else picture

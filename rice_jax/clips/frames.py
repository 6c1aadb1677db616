"""Encodes the frames of labeled clips; each film is read once."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from rice_jax.clips.labels import Clip
from rice_jax.recognition.container import Reading
from rice_jax.recognition.engine import Engine, Frames
from rice_jax.recognition.recognizer import encode_video
from rice_jax.recognition.video import Frame, read_video
from rice_jax.types import DataError

BATCH_SIZE = 8  # frames encoded together

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Unusable(NamedTuple):
    """A clip that cannot be used."""

    clip: Clip
    reason: str

    def __str__(self) -> str:
        return f"{self.clip.place}: {self.reason}"


def by_video(clips: Sequence[Clip]) -> dict[Path, list[Clip]]:
    """The clips of each video, in the order of their first clips."""
    videos: dict[Path, list[Clip]] = {}
    for clip in clips:
        videos.setdefault(clip.path, []).append(clip)
    return videos


def encode_clips(
    engine: Engine, clips: Sequence[Clip], interval_seconds: float = 1.0
) -> tuple[list[tuple[Clip, Frames]], list[Unusable]]:
    """Encodes the frames of clips.

    Args:
        engine: preferably compiled for `BATCH_SIZE`.
        clips: at least one; those of one video may overlap.
        interval_seconds: one frame of each such interval of a video is read.

    Returns:
        The clips with their frames, at least one for each, in the order of the clips; and the clips that cannot be
        used.
    """

    def encode(frames: Iterator[Frame]) -> tuple[list[float], Frames]:
        return encode_video(engine, frames, BATCH_SIZE)

    found, unusable = {}, []
    for path, own in by_video(clips).items():
        logger.info("%s: %d %s", path, len(own), "clip" if len(own) == 1 else "clips")
        read, broken = read_parts(own, encode, interval_seconds)
        unusable += broken
        if read:
            times, frames = read
            for clip in own:
                if rows := [row for row, time in enumerate(times) if clip.holds(time)]:
                    found[clip] = frames.take(np.array(rows))
    failed = {entry.clip for entry in unusable}
    lost = "holds no frame that can be decoded"
    unusable += [Unusable(clip, lost) for clip in clips if clip not in found and clip not in failed]
    return [(clip, found[clip]) for clip in clips if clip in found and clip not in failed], unusable


def read_parts(
    clips: Sequence[Clip], use: Callable[[Iterator[Frame]], T], interval_seconds: float
) -> tuple[T | None, list[Unusable]]:
    """Reads the frames of a video that belong to its clips, as far as the last of them.

    Args:
        clips: of one video.
        use: gets the frames, at least one.
        interval_seconds: one frame of each such interval is read.

    Returns:
        What `use` returns, None if the video has no such frame or cannot be read; and the clips that cannot be used.
    """
    reading, times = Reading(), []
    path, ends = clips[0].path, [clip.end for clip in clips]
    last = None if None in ends else max(end for end in ends if end is not None)

    def wanted() -> Iterator[Frame]:
        for frame in read_video(path, interval_seconds, reading):
            if last is not None and frame.time >= last:
                return
            if any(clip.holds(frame.time) for clip in clips):
                times.append(frame.time)
                yield frame

    try:
        frames = wanted()
        first = next(frames, None)
        used = None if first is None else use(itertools.chain([first], frames))
    except (DataError, OSError) as error:
        return None, [Unusable(clip, str(error)) for clip in clips]
    for warning in reading.warnings:
        logger.warning("%s: %s", path, warning)
    empty = [clip for clip in clips if not any(map(clip.holds, times))]
    for clip in clips:
        cut = reading.end is not None and clip.end is not None and clip.end > reading.end + interval_seconds
        if cut and clip not in empty:
            logger.warning(
                "%s: ends at second %g, but %s at %g; used up to there", clip.place, clip.end, path, reading.end
            )
    return used, [Unusable(clip, _emptiness(clip, reading.end, interval_seconds)) for clip in empty]


def _emptiness(clip: Clip, end: float | None, interval_seconds: float) -> str:
    if end is not None and clip.start >= end:
        return f"begins at second {clip.start:g}, but {clip.path} ends at {end:g}"
    return f"is too short to hold a frame; lower --interval_seconds ({interval_seconds:g})"

"""The products shown in a stream, frame by frame, and in a whole video, over time."""

import math
import os
import threading
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from rice_jax.recognition.engine import Engine, Frames, Match, Recognition, join_frames
from rice_jax.recognition.timeline import Segment, timeline
from rice_jax.recognition.video import Frame
from rice_jax.types import DataError


class Window:
    """The last sampled frames of one stream in the order of their times, at most one of each interval.

    Any number of threads may use it at once. A stream that starts again needs a new one: in this its frames would come
    too late.
    """

    def __init__(self, num_frames: int, interval_seconds: float = 1.0):
        """Starts empty.

        Args:
            num_frames: that it holds at most.
            interval_seconds: above 0.

        Raises:
            DataError: it is not.
        """
        if not 0 < interval_seconds < math.inf:
            raise DataError(f"interval_seconds: found {interval_seconds}, expected more than 0")
        self._num_frames, self._interval = num_frames, interval_seconds
        self._lock = threading.Lock()
        self._frames: dict[int, tuple[float, Frames]] = {}  # by interval, in order

    def wants(self, time: float) -> bool:
        """Whether a frame of that time would be kept: it is neither too late nor the second of its interval.

        Raises:
            DataError: the time is not finite.
        """
        interval = self._interval_of(time)
        with self._lock:
            full = len(self._frames) == self._num_frames
            return interval not in self._frames and not (full and interval < next(iter(self._frames)))

    def put(self, time: float, frame: Frames) -> bool:
        """Puts an encoded frame where its time belongs, if it is still wanted, and says whether it was."""
        interval = self._interval_of(time)
        with self._lock:
            kept = {interval: (time, frame)} | self._frames  # the first of an interval stays
            self._frames = dict(sorted(kept.items())[-self._num_frames :])
            return self._frames.get(interval, (None, None))[1] is frame

    def frames(self) -> tuple[float, Frames] | None:
        """The newest time, and the frames in order; None = there are none yet."""
        with self._lock:
            found = list(self._frames.values())
        return (found[-1][0], join_frames([frame for _, frame in found])) if found else None

    def _interval_of(self, time: float) -> int:
        if not math.isfinite(time):
            raise DataError(f"time: found {time}, expected a number of seconds")
        return math.floor(time / self._interval)


class Recognizer:
    """Follows one stream: which of a gallery's images its last frames show.

    Any number of threads may push at once. Nobody waits for a frame of somebody else: a frame that is ready is ranked
    with what the window holds by then, and one that comes late is put where its time belongs.
    """

    def __init__(
        self,
        index: str | os.PathLike,
        *,
        model: str | os.PathLike | None = None,
        gallery: str | None = None,
        top: int = 5,
        rerank: int = 0,
        interval_seconds: float = 1.0,
    ):
        """Loads, compiles, and runs everything once.

        Args:
            checkpoint, index, rerank: as of `Engine`.
            gallery: id of the stream's gallery; None = all images of the index.
            top: how many images to name.
            interval_seconds: one frame in each is encoded; more of them only ask for the ranking.

        Raises:
            CheckpointError, DataError: as of `Engine`; the gallery is not in the index.
        """
        self.engine = Engine(index, model=model, rerank=rerank)
        self._gallery, self._top = gallery, top
        self._window = Window(self.engine.num_frames, interval_seconds)
        self.engine.rows(gallery)  # is there

    def push(self, frame: bytes | UInt8[np.ndarray, "H W 3"], time: float) -> Recognition:
        """Takes a frame, and ranks the images for the frames of the window.

        Args:
            frame: a picture's file, or RGB, 0 to 255.
            time: seconds from any beginning.

        Raises:
            DataError: the picture cannot be decoded, or the time is not finite.
        """
        if self._window.wants(time):
            self._window.put(time, self.engine.encode(self.engine.prepare(frame)[None]))
        newest, frames = self._window.frames()
        return self.engine.rank(frames, self._gallery, self._top, newest)


class Shown(NamedTuple):
    """A part of a video in which one product is shown, or none of the gallery's."""

    start: float  # seconds
    end: float
    product: Match | None
    confidence: float | None  # that this is so; None = the index has no calibration
    products: tuple[Match, ...]  # best first, by the part's frames alone
    frames: slice  # of the video's sampled ones


def encode_video(engine: Engine, video: Iterable[Frame], batch_size: int = 1) -> tuple[list[float], Frames]:
    """Encodes frames as they come.

    Args:
        engine: one that was compiled for that batch size, best of all.
        video: at least one frame, e.g. of `read_video`.
        batch_size: frames at once.

    Returns:
        Their times, and what is kept of them.

    Raises:
        DataError: a picture cannot be decoded; it says which.
    """
    video, times, parts = iter(video), [], []
    while some := list(islice(video, batch_size)):
        times += [frame.time for frame in some]
        parts.append(engine.encode(np.stack([_prepare(engine, frame) for frame in some])))
    return times, join_frames(parts)


def products_over_time(
    engine: Engine,
    times: Sequence[float],
    frames: Frames,
    *,
    gallery: str | None = None,
    top: int = 5,
    interval_seconds: float = 1.0,
) -> list[Shown]:
    """Says which product a video shows from when to when.

    `timeline` says where its parts begin and end, and which of them show none of the gallery's products. The product of
    another one is the first that `Engine.rank` names for the part's frames, which are a clip; so are the confidences.
    Neighbours of which it names the same are one part.

    Args:
        engine: that encoded the frames.
        times: of the frames, ascending, in seconds.
        frames: of the video.
        gallery: whose images may be shown; None = all of the index.
        top: how many images to name for each part, at least 1.
        interval_seconds: between sampled frames.

    Raises:
        DataError: as of `Engine.rank`.
    """
    calibration = engine.calibration
    segments = timeline(
        frames.features,
        np.asarray(times, np.float64),
        engine.index.vectors[engine.rows(gallery)],
        calibration.scale if calibration else engine.logit_scale,
        calibration.scale * calibration.threshold if calibration else None,
        num_frames=engine.num_frames,
        interval_seconds=interval_seconds,
    )

    def shown(segment: Segment) -> Shown:
        ranked = engine.rank(frames.take(segment.frames), gallery, top)
        product = None if segment.row is None else ranked.products[0]
        confidence = product.confidence if product else ranked.none
        return Shown(segment.start, segment.end, product, confidence, ranked.products, segment.frames)

    # As a clip a part may look like its neighbour: then they are one, which is looked at again.
    while True:
        parts = [shown(segment) for segment in segments]
        alike = groupby(zip(segments, parts, strict=True), lambda pair: _name(pair[1].product))
        segments = [_join([segment for segment, _ in pairs]) for _, pairs in alike]
        if len(segments) == len(parts):
            return parts


def _name(product: Match | None) -> tuple[str, str] | None:
    return product and (product.gallery, product.id)


def _join(segments: Sequence[Segment]) -> Segment:
    """One segment of neighbours, the first of which says what its row is."""
    first, last = segments[0], segments[-1]
    return first._replace(end=last.end, frames=slice(first.frames.start, last.frames.stop))


def _prepare(engine: Engine, frame: Frame) -> UInt8[np.ndarray, "S S 3"]:
    try:
        return engine.prepare(frame.picture)
    except DataError as error:
        raise DataError(f"frame at second {frame.time:g}: {error}") from error

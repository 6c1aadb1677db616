"""What changes in a live stream: when a product is shown, and when it is gone."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rice_jax.recognition.engine import Engine, Frames, Match, join_frames
from rice_jax.recognition.follow import LiveFrame
from rice_jax.recognition.products import Where
from rice_jax.recognition.recognizer import Segment, products_over_time

CONFIRMED = 3  # frames of a part after which it counts
WINDOW = 60  # frames that are kept, and whose likeliest parts are searched
TICK = 0.001  # seconds between the dates of two events of one kind, which are written in milliseconds
LOST_SECONDS = 30.0  # without a frame, after which the product is gone; longer than a segment of HLS


class Event(NamedTuple):
    """A product is shown, or is gone."""

    event: str  # "shown" or "gone"
    date: float  # when, in seconds since 1970
    second: float  # the same since the stream's first frame, on a clock that goes on through cuts
    product: Match
    confidence: float | None  # probability that it is shown, or was at last; None = the index has no calibration
    products: tuple[Match, ...]  # those most similar then, best first
    reason: str | None = None  # "changed", "lost" (no frame has come), or "stopped"; None = it is shown
    seconds: float | None = None  # for which it was shown; None = it is shown


def changes(
    batches: Iterable[Sequence[LiveFrame]],
    engine: Engine,
    *,
    gallery: str | None = None,
    top: int = 5,
    where: Where | None = None,
    now: Callable[[], float] = time.monotonic,
    date: Callable[[], float] = time.time,
) -> Iterator[Event]:
    """Recognizes the products of a live stream.

    The parts of the last `WINDOW` frames are found as those of a video (`products_over_time`), anew with each frame. A
    part counts once it has `CONFIRMED` frames.

    Args:
        batches: frames as they come (`follow`), and empty batches while none come.
        engine: encodes and ranks.
        gallery: id of the gallery that is searched; None = all products of the index.
        top: number of products that an event lists, at least 1.
        where: searches only these products, see `Engine.products`.
        now: the clock of `LiveFrame.arrived`.
        date: seconds since 1970.

    Yields:
        Events in order. Every product that is shown is gone at some time, at the latest when the batches end.

    Raises:
        DataError: there is no such gallery, column, or product, or a cosine is not finite.
    """
    last: LiveFrame | None = None
    state = _State()
    told = -math.inf  # date of the latest event
    latest: dict[str, float] = {}  # the same of each kind of event: a kind and a date identify an event

    def dated(events: Iterable[Event], newest: LiveFrame) -> Iterator[Event]:
        nonlocal told
        begin = newest.shown - newest.second + date() - now()  # of the stream; earlier with every quicker frame
        for event in events:
            told = max(told, begin + event.second, latest.get(event.event, -math.inf) + TICK)
            latest[event.event] = told
            yield event._replace(date=told)

    for batch in batches:
        newest = batch[-1].arrived if batch else now()
        if last is not None and newest - last.arrived > LOST_SECONDS:
            yield from dated(state.leave(last.second, "lost"), last)
            state = _State()
        if batch:
            encoded = engine.encode(np.stack([frame.picture for frame in batch]))
            for place, frame in enumerate(batch):
                state.window.append((frame.second, encoded.take(slice(place, place + 1))))
            last = batch[-1]
            times, frames = [second for second, _ in state.window], join_frames([own for _, own in state.window])
            parts = products_over_time(engine, times, frames, end=last.second, gallery=gallery, top=top, where=where)
            yield from dated(state.update(parts), last)
    if last is not None:
        yield from dated(state.leave(last.second, "stopped"), last)


class _State:
    """What is known at some time.

    Attributes:
        window: the last frames with their times.
    """

    def __init__(self) -> None:
        self.window: deque[tuple[float, Frames]] = deque(maxlen=WINDOW)
        self._shown: Event | None = None  # with the confidence and products of its latest frames
        self._changed = -math.inf  # when the newest part began that has counted

    def update(self, parts: Sequence[Segment]) -> Iterator[Event]:
        """The events that follow from the parts of the window.

        Parts before the last change have counted, and are only looked at again if no other part follows.
        """
        for place, part in enumerate(parts):
            is_new = part.start >= self._changed or place == len(parts) - 1
            if not is_new or part.frames.stop - part.frames.start < CONFIRMED:
                continue
            if not self._shows(part):
                begin = max(part.start, self._changed)
                yield from self.leave(max((own.end for own in parts[:place] if self._shows(own)), default=begin))
                if part.product:
                    self._shown = Event("shown", 0.0, begin, part.product, part.confidence, part.products)
                    yield self._shown
                self._changed = begin
            elif self._shown and part.product:
                self._shown = self._shown._replace(confidence=part.confidence, products=part.products)

    def leave(self, second: float, reason: str = "changed") -> Iterator[Event]:
        """The event that the product is gone, if one is shown."""
        if self._shown:
            second = max(second, self._shown.second)
            seconds = second - self._shown.second
            yield self._shown._replace(event="gone", second=second, reason=reason, seconds=seconds)
        self._shown = None

    def _shows(self, part: Segment) -> bool:
        """Whether a part shows what is shown."""
        names = [match and (match.gallery, match.id) for match in (part.product, self._shown and self._shown.product)]
        return names[0] == names[1]

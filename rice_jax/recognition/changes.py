"""What changes in a live stream: when a product is shown, and when it is gone."""

import logging
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rice_jax.index.model import Model
from rice_jax.recognition.engine import Engine, Frames, Match, join_frames
from rice_jax.recognition.follow import LiveFrame
from rice_jax.recognition.products import Where
from rice_jax.recognition.recognizer import Segment, products_over_time

CONFIRMED = 3  # frames of a part after which it counts
WINDOW = 60  # frames that are kept, and whose likeliest parts are searched
TICK = 0.001  # seconds between the dates of two events of one kind, which are written in milliseconds
SET_BACK_SECONDS = 60.0  # behind the latest event, from which on a clock has been put right, and dates follow it
LOST_SECONDS = 30.0  # without a frame, after which the product is gone, at least; longer than a segment of HLS

logger = logging.getLogger(__name__)

Turn = Callable[[Segment, Match], float]


class Search(NamedTuple):
    """Which products are searched, and how many an event lists."""

    gallery: str | None = None  # id of the gallery; None = all products of the index
    top: int = 5  # at least 1
    where: Where | None = None  # only these products, see `Engine.products`


class Event(NamedTuple):
    """A product is shown, or is gone."""

    event: str  # "shown" or "gone"
    date: float  # when, in seconds since 1970
    second: float  # the same since the stream's first frame, on a clock that goes on through cuts
    product: Match
    confidence: float | None  # probability that it is shown, or was at last; None = the index has no calibration
    products: tuple[Match, ...]  # those most similar then, best first
    # "changed", "corrected" (another product was shown all the time), "lost" (no frame has come, or none can be
    # recognized), or "stopped"; None = it is shown
    reason: str | None = None
    seconds: float | None = None  # for which it was shown; None = it is shown


def changes(
    batches: Iterable[Sequence[LiveFrame]],
    engine: Engine,
    *,
    gallery: str | None = None,
    top: int = 5,
    where: Where | None = None,
    interval_seconds: float = 1.0,
    now: Callable[[], float] = time.monotonic,
    date: Callable[[], float] = time.time,
) -> Iterator[Event]:
    """Recognizes the products of a live stream.

    Args:
        batches: frames as they come (`follow`), and empty batches while none come.
        engine: encodes and ranks.
        gallery: id of the gallery that is searched; None = all products of the index.
        top: number of products that an event lists, at least 1.
        where: searches only these products, see `Engine.products`.
        interval_seconds: time between frames, above 0.
        now: the clock of `LiveFrame.arrived`.
        date: seconds since 1970.

    Yields:
        Events in order. Every product that is shown is gone at some time, at the latest when the batches end.

    Raises:
        DataError: there is no such gallery, column, or product, or a cosine is not finite.
    """
    found = Changes(Search(gallery, top, where), interval_seconds, now=now, date=date)
    for batch in batches:
        if batch:
            encoded = engine.encode(np.stack([frame.picture for frame in batch]))
            yield from found.add(engine, batch, encoded)
        else:
            yield from found.wait()
    yield from found.end()


def lost_after(interval_seconds: float) -> float:
    """Seconds without a frame after which the product is gone, if frames come at an interval."""
    return max(LOST_SECONDS, 2 * interval_seconds)


class Changes:
    """Finds the events of one stream as its frames come.

    The parts of the last `WINDOW` frames are found as those of a video (`products_over_time`), anew with each frame. A
    part counts once it has `CONFIRMED` frames.

    Attributes:
        search: which products are searched; may change.
    """

    def __init__(
        self,
        search: Search = Search(),  # noqa: B008 (it cannot change)
        interval_seconds: float = 1.0,
        now: Callable[[], float] = time.monotonic,
        date: Callable[[], float] = time.time,
    ):
        """Starts without frames; for the interval and the clocks, see `changes`."""
        self.search, self._interval, self._now, self._date = search, interval_seconds, now, date
        # That has encoded the window; weak, as a silent stream would keep a model in memory that has been replaced.
        self._model: weakref.ref[Model] | None = None
        self._last: LiveFrame | None = None
        self._state = _State()
        self._told = -math.inf  # date of the latest event
        self._latest: dict[str, float] = {}  # the same of each kind of event: a kind and a date identify an event

    def add(self, engine: Engine, batch: Sequence[LiveFrame], encoded: Frames) -> Iterator[Event]:
        """The events that follow from some frames, at least one.

        Args:
            engine: ranks. It may differ from time to time; if its model does, the window starts anew.
            batch: the frames, later than all before.
            encoded: the same, encoded by the engine.

        Raises:
            DataError: there is no such gallery, column, or product, or a cosine is not finite.
        """
        yield from self._lose(batch[-1].arrived)
        if self._model is None or engine.model is not self._model():
            self._state.window.clear()
            self._model = weakref.ref(engine.model)
        for place, frame in enumerate(batch):
            self._state.window.append((frame.second, encoded.take(slice(place, place + 1))))
        last = self._last = batch[-1]
        times = [second for second, _ in self._state.window]
        frames = join_frames([own for _, own in self._state.window])
        gallery, top, where = self.search
        parts = products_over_time(engine, times, frames, end=last.second, gallery=gallery, top=top, where=where)
        yield from self._dated(
            self._state.update(parts, lambda part, former: _turn(engine, times, frames, part, former))
        )

    def wait(self) -> Iterator[Event]:
        """The event that the product is gone, if no frame has come for too long."""
        yield from self._lose(self._now())

    def end(self) -> Iterator[Event]:
        """The last event: the product is gone, if one is shown."""
        if self._last is not None:
            yield from self._dated(self._state.leave(self._last.second, "stopped"))

    def lose(self) -> Iterator[Event]:
        """The event that the product is lost, if one is shown; frames that follow begin anew."""
        if self._last is not None:
            yield from self._dated(self._state.leave(self._last.second, "lost"))
            self._state = _State()

    def _lose(self, newest: float) -> Iterator[Event]:
        if self._last is not None and newest - self._last.arrived > lost_after(self._interval):
            yield from self.lose()

    def _dated(self, events: Iterable[Event]) -> Iterator[Event]:
        assert self._last is not None
        date = self._date()
        # Of the stream; earlier with every quicker frame.
        begin = self._last.shown - self._last.second + date - self._now()
        if self._told - date > SET_BACK_SECONDS:
            behind = self._told - date
            logger.warning("this machine's clock is %.0f s behind the latest event; the next ones follow it", behind)
            self._told, self._latest = -math.inf, {}
        for event in events:
            self._told = max(self._told, begin + event.second, self._latest.get(event.event, -math.inf) + TICK)
            self._latest[event.event] = self._told
            yield event._replace(date=self._told)


def _turn(engine: Engine, times: Sequence[float], frames: Frames, part: Segment, former: Match) -> float:
    """From when on a part is likelier to show its product than another one, for which it was taken before.

    Before that it has been right, or nearer to it, to name the other one: the parts of a video are given as a whole to
    one product, while a live stream is told as it comes.
    """
    assert part.product
    features = frames.features[part.frames]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    own, other = (_cosines(engine, match, unit) for match in (part.product, former))
    first = part.frames.start
    turn = first + int(np.cumsum([0.0, *(own - other)[:-1]]).argmin())
    return part.start if turn == first else (times[turn - 1] + times[turn]) / 2


def _cosines(engine: Engine, match: Match, unit: Float[np.ndarray, "T E"]) -> Float[np.ndarray, " T"]:
    """Of frames and the most similar image of a product; -1 if it is no longer in the index."""
    return (unit @ product_vectors(engine, match).T).max(axis=1, initial=-1.0)


def product_vectors(engine: Engine, match: Match) -> Float[np.ndarray, "K E"]:
    """The vectors of a product's images, in the frames' space; none if it is no longer in the index."""
    index = engine.index
    names = zip(index.gallery_ids, index.product_ids, strict=True)
    rows = [row for row, name in enumerate(names) if name == (match.gallery, match.id)]
    return index.embeddings(np.array(rows, int))


class _State:
    """What is known at some time.

    Attributes:
        window: the last frames with their times.
    """

    def __init__(self) -> None:
        self.window: deque[tuple[float, Frames]] = deque(maxlen=WINDOW)
        self._shown: Event | None = None  # with the product, confidence, and products of its latest frames
        self._changed = -math.inf  # when the newest part began that has counted

    def update(self, parts: Sequence[Segment], turn: Turn) -> Iterator[Event]:
        """The events that follow from the parts of the window.

        Parts before the last change have counted, and are only looked at again if no other part follows.
        """
        for place, part in enumerate(parts):
            is_new = part.start >= self._changed or place == len(parts) - 1
            if not is_new or part.frames.stop - part.frames.start < CONFIRMED:
                continue
            if not self._shows(part):
                begin = max(part.start, self._changed)
                ends = [own.end for own in parts[:place] if self._shows(own)]
                if self._shown and part.product and not ends:  # its part has been given to another product
                    begin = max(begin, turn(part, self._shown.product))
                yield from self.leave(max(ends, default=begin))
                if part.product:
                    self._shown = Event("shown", 0.0, begin, part.product, part.confidence, part.products)
                    yield self._shown
                self._changed = begin
            elif self._shown and part.product:
                self._shown = self._shown._replace(
                    product=part.product, confidence=part.confidence, products=part.products
                )

    def leave(self, second: float, reason: str | None = None) -> Iterator[Event]:
        """The event that the product is gone, if one is shown; without a reason, since something else is shown."""
        if self._shown:
            second = max(second, self._shown.second)
            seconds = second - self._shown.second
            reason = reason or ("changed" if seconds else "corrected")
            yield self._shown._replace(event="gone", second=second, reason=reason, seconds=seconds)
        self._shown = None

    def _shows(self, part: Segment) -> bool:
        """Whether a part shows what is shown."""
        names = [match and (match.gallery, match.id) for match in (part.product, self._shown and self._shown.product)]
        return names[0] == names[1]

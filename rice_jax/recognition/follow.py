"""The frames of a live stream: received in a thread, over again after each cut, and dropped rather than late."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from rice_jax.index.pictures import AnyPicture
from rice_jax.recognition.source import LiveSource, Seen, SourceEnded, SourceLost, live_pictures
from rice_jax.types import DataError

BACK_OFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before the next try
MAX_QUEUED = 64  # prepared frames; a segment of an HLS stream brings many at once
MAX_TAKEN = 8  # frames that the caller gets at once
TICK = 0.5  # seconds without a frame after which the caller gets none
REPORT_SECONDS = 60.0  # between two reports of dropped frames
RECEIVER = "follow"  # name of the thread that receives
DRIFT = 1e-4  # seconds per second by which a sender's clock may be slow

logger = logging.getLogger(__name__)

Prepare = Callable[[AnyPicture], Any]
Connect = Callable[[LiveSource, Fraction, threading.Event, Seen], Iterator[tuple[float, AnyPicture]]]
Clock = Callable[[], float]


class LiveFrame(NamedTuple):
    """A frame of a live stream."""

    second: float  # since the first frame, on a clock that goes on through cuts
    shown: float  # when it would have been shown without any delay; on the receiver's clock
    arrived: float  # on the receiver's clock
    picture: Any  # what `prepare` has made of it


def follow(
    source: LiveSource,
    prepare: Prepare,
    stop: threading.Event,
    *,
    interval_seconds: float = 1.0,
    connect: Connect = live_pictures,
    now: Clock = time.monotonic,
) -> Iterator[list[LiveFrame]]:
    """Follows a live stream until it is stopped or complete; connects again whenever the connection is lost.

    Args:
        source: of the stream; frames that have waited for longer than its `max_delay` are dropped.
        prepare: makes what is needed of a picture, such as `Engine.prepare`: what waits is then small.
        stop: ends it.
        interval_seconds: time between sampled frames, above 0.
        connect: gives the pictures of one connection.
        now: the receiver's clock, in seconds.

    Yields:
        Up to `MAX_TAKEN` frames that have arrived, in order; none if none has arrived for `TICK` seconds.

    Raises:
        DataError: the source can never be followed, or was complete before it was.
    """
    receiver = _Receiver(source, prepare, stop, Fraction(repr(float(interval_seconds))), connect, now)
    thread = threading.Thread(target=receiver.run, name=RECEIVER, daemon=True)
    thread.start()
    dropped, reported = 0, now()
    while not stop.is_set():
        try:
            taken = receiver.take()
        except SourceEnded as error:
            if not receiver.has_received:
                raise
            logger.warning("%s", error)
            return
        fresh = [frame for frame in taken if now() - frame.arrived <= source.max_delay]
        dropped += len(taken) - len(fresh)
        if dropped + receiver.dropped and now() - reported > REPORT_SECONDS:
            logger.warning("%s: %d frames came too fast, and were dropped", source, dropped + receiver.dropped)
            dropped, receiver.dropped, reported = 0, 0, now()
        yield fresh


class _Receiver:
    """Receives frames in a thread of its own.

    Attributes:
        dropped: number of frames for which the queue was too short.
    """

    def __init__(
        self,
        source: LiveSource,
        prepare: Prepare,
        stop: threading.Event,
        interval: Fraction,
        connect: Connect,
        now: Clock,
    ):
        """See `follow`."""
        self._source, self._prepare, self._stop, self._now = source, prepare, stop, now
        seen = Seen()
        self._connection = lambda: connect(source, interval, stop, seen)
        self._queue: SimpleQueue[LiveFrame | Exception] = SimpleQueue()
        self._latest: LiveFrame | None = None
        self._ahead = 0.0  # of `second` to the receiver's clock, for frames without any delay
        self.dropped = 0

    @property
    def has_received(self) -> bool:
        """Whether there has been any frame."""
        return self._latest is not None

    def take(self) -> list[LiveFrame]:
        """Some frames that have arrived; waits for them for up to `TICK` seconds.

        Raises:
            Exception: that which has ended the receiver.
        """
        taken: list[LiveFrame] = []
        try:
            while len(taken) < MAX_TAKEN:
                item = self._queue.get(timeout=None if taken else TICK, block=not taken)
                if isinstance(item, Exception):
                    if taken:
                        self._queue.put(item)  # nothing follows it
                        break
                    raise item
                taken.append(item)
        except Empty:
            pass
        return taken

    def run(self) -> None:
        """Receives until the stop."""
        tries = 0  # without a frame
        try:
            while not self._stop.is_set():
                before = self._latest
                try:
                    self._receive()
                except SourceLost as error:
                    lost: Exception = error
                else:
                    lost = SourceLost(f"{self._source}: has ended")
                if self._stop.is_set():
                    return
                # A listener that waits is refusing its sender.
                tries = 0 if self._source.listen or self._latest is not before else tries
                pause = BACK_OFF[min(tries, len(BACK_OFF) - 1)]
                logger.warning("%s; next try in %.0f s", lost, pause)
                tries += 1
                self._stop.wait(pause)
        except Exception as error:
            self._queue.put(error)

    def _receive(self) -> None:
        """Receives the frames of one connection."""
        begin: float | None = None  # when it begins, as `LiveFrame.second`
        for second, picture in self._connection():
            if self._stop.is_set():
                return
            arrived, latest = self._now(), self._latest
            if begin is None:
                begin = 0.0 if latest is None else latest.second + (arrived - latest.arrived)
            try:
                prepared = self._prepare(picture)
            except (DataError, OSError) as error:
                logger.warning("%s: a frame is left out: %s", self._source, error)
                continue
            self._put(begin + second, arrived, prepared)

    def _put(self, second: float, arrived: float, picture: Any) -> None:
        latest, ahead = self._latest, second - arrived
        # No frame is shown after it has arrived, and the quickest one has hardly any delay.
        self._ahead = ahead if latest is None else max(ahead, self._ahead - DRIFT * (arrived - latest.arrived))
        self._latest = LiveFrame(second, second - self._ahead, arrived, picture)
        if self._queue.qsize() >= MAX_QUEUED:
            self._queue.get()  # the oldest
            self.dropped += 1
        self._queue.put(self._latest)

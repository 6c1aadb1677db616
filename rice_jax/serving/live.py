"""Streams whose events are sent: followed ones, and those whose pictures are pushed while somebody listens."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from rice_jax.pages.album import thumbnail
from rice_jax.recognition.changes import Changes, Event, Search, lost_after
from rice_jax.recognition.engine import Engine, Frames
from rice_jax.recognition.follow import LiveFrame, follow
from rice_jax.recognition.source import LiveSource, Seen, SourceLost, live_pictures
from rice_jax.recognition.stream import Window
from rice_jax.serving.events import EventLog
from rice_jax.serving.stills import Still, Stills
from rice_jax.types import DataError

THREAD = "source"  # beginning of the names of the threads that recognize what is followed

logger = logging.getLogger(__name__)


Write = Callable[[Event, Still | None], dict[str, Any]]  # an event and its frame as JSON


@runtime_checkable
class Encode(Protocol):
    """Encodes pictures together with those of others, and waits for them."""

    def __call__(self, engine: Engine, pictures: list[UInt8[np.ndarray, "S S 3"]]) -> Frames: ...


class Sent(NamedTuple):
    """An event that has been sent."""

    event: Event
    frame: Still | None  # by which it is seen


class EventSender:
    """Sends the events of a stream, in one thread at a time.

    Attributes:
        log: the events.
        shown: the event since which a product is shown.
    """

    def __init__(self, write: Write):
        """Starts without events, in the thread of the event loop; `write` writes an event as JSON."""
        self.log = EventLog()
        self.shown: Sent | None = None
        self._write, self._loop = write, asyncio.get_running_loop()
        self._stills = Stills()

    def look(self, engine: Engine, batch: Sequence[tuple[float, bytes]], encoded: Frames) -> None:
        """Adds frames.

        Args:
            engine: has encoded them.
            batch: the second and the thumbnail of each.
            encoded: the frames, encoded.
        """
        self._stills.add(engine, [Still(*own) for own in batch], encoded)

    def send(self, events: Iterable[Event], close: bool = False) -> None:
        """Sends events to listeners; `close` ends them."""
        try:
            for event in events:
                sent = Sent(event, self._stills.of(event))
                shows = event.event == "shown"
                self.shown = sent if shows else None
                text = json.dumps(self._write(*sent), ensure_ascii=False, allow_nan=False)
                self._loop.call_soon_threadsafe(self.log.add, text, shows, sent.frame)
        finally:
            if close:
                self._stills = Stills()  # frees them
                self._loop.call_soon_threadsafe(self.log.close)


class PushedPicture(NamedTuple):
    """A picture that is pushed."""

    time: float  # seconds
    frame: Frames  # the picture, encoded
    small: bytes  # its thumbnail


class Pushed:
    """The events of a stream whose pictures are pushed. Any number of threads may push."""

    def __init__(self, write: Write, interval: float = 1.0, now: Callable[[], float] = time.monotonic):
        """Starts without pictures.

        Args:
            write: writes an event as JSON.
            interval: distance in seconds between the pictures.
            now: the clock, in seconds.
        """
        self._sender, self._lock, self._now = EventSender(write), threading.Lock(), now
        self._changes = Changes(interval_seconds=interval, now=now)
        self._last: LiveFrame | None = None
        self._window: Window | None = None  # of the latest picture
        self._ahead = 0.0  # of the events' clock to that of the window's pictures

    @property
    def log(self) -> EventLog:
        """The events."""
        return self._sender.log

    @property
    def shown(self) -> Sent | None:
        """The event since which a product is shown."""
        return self._sender.shown

    def push(self, engine: Engine, picture: PushedPicture, window: Window, search: Search) -> None:
        """Adds a picture; one that is late is left out.

        Args:
            engine: ranks, and has encoded the picture.
            picture: to add.
            window: that the picture belongs to; each has a clock of its own.
            search: which products are searched.
        """
        with self._lock:
            now, last = self._now(), self._last
            if window is not self._window:
                self._window = window
                self._ahead = (last.second + now - last.arrived if last else 0.0) - picture.time
            second = picture.time + self._ahead
            if last is None or second > last.second:
                self._last = LiveFrame(second, now, now, None)
                self._changes.search = search
                self._sender.look(engine, [(second, picture.small)], picture.frame)
                self._sender.send(self._changes.add(engine, [self._last], picture.frame))

    def wait(self) -> None:
        """Tells that the product is gone if no picture has come for too long."""
        with self._lock:
            self._sender.send(self._changes.wait())

    def end(self) -> None:
        """Tells the last event, and ends the listeners."""
        with self._lock:
            self._sender.send(self._changes.end(), close=True)


class Looked(NamedTuple):
    """A picture of a followed source."""

    prepared: UInt8[np.ndarray, "S S 3"]  # for the engine
    small: bytes  # its thumbnail


class State(NamedTuple):
    """The state of a followed source."""

    state: str  # "connecting", "live", "waiting" (for the next try), "ended", or "failed"
    reason: str | None = None  # why it waits, has ended, or has failed, or why its pictures are not recognized
    pictures: int = 0  # that have been looked at


class Followed:
    """Follows a source in threads of its own: one receives pictures, one recognizes them.

    Attributes:
        source: what is followed.
    """

    def __init__(
        self,
        name: str,
        source: LiveSource,
        engine: Callable[[], Engine],
        encode: Encode,
        write: Write,
        interval: float,
        search: Search,
    ):
        """Starts.

        Args:
            name: of the stream.
            source: what is followed.
            engine: returns the engine that is to be used from now on.
            encode: encodes pictures.
            write: writes an event as JSON.
            interval: distance in seconds between the pictures that are looked at.
            search: which products are searched.
        """
        self.source = source
        self._sender, self._stop = EventSender(write), threading.Event()
        self._connection, self._latest = State("connecting"), time.monotonic()
        self._final: State | None = None
        self._trouble: str | None = None  # why the latest pictures could not be recognized
        self._engine_now, self._engine, self._encode = engine, engine(), encode
        self._changes, self._interval = Changes(search, interval), interval
        self._connected = threading.Lock()  # held while there is a connection
        self._thread = threading.Thread(target=self._run, name=f"{THREAD} {name}", daemon=True)
        self._thread.start()

    @property
    def log(self) -> EventLog:
        """The events."""
        return self._sender.log

    @property
    def shown(self) -> Sent | None:
        """The event since which a product is shown."""
        return self._sender.shown

    @property
    def state(self) -> State:
        """Of the source; one that is connected but silent, such as a file that no longer grows, is waited for."""
        state, patience = self._final or self._connection, lost_after(self._interval)
        if state.state == "live" and time.monotonic() - self._latest > patience:
            return state._replace(state="waiting", reason=f"no picture has come for {patience:g} seconds")
        return state._replace(reason=self._trouble) if state.state == "live" else state

    @property
    def is_running(self) -> bool:
        """Whether any of its threads is; a connection that does not answer outlives the end for a while."""
        return self._thread.is_alive() or self._connected.locked()

    def end(self) -> None:
        """Ends it, without waiting."""
        self._stop.set()

    def join(self) -> None:
        """Waits until the last event has been sent."""
        self._thread.join()

    def _run(self) -> None:
        state = "ended"
        try:
            for batch in self._batches():
                try:
                    self._recognize(batch)
                except Exception as error:  # the next picture or index may be better
                    self._report(error)
                    self._sender.send(self._changes.lose())
            reason = "it was stopped" if self._stop.is_set() else "it is complete"
        except Exception as error:
            expected = isinstance(error, DataError)
            state, reason = "failed", str(error) if expected else f"{self.source}: {type(error).__name__}"
            logger.warning("%s; it is no longer followed", reason, exc_info=None if expected else error)
        finally:
            self._stop.set()
        self._final, changes = State(state, reason, self._connection.pictures), self._changes
        del self._engine, self._changes  # it may be remembered for long, and would keep an index and a model in memory
        self._sender.send(changes.end(), close=True)

    def _recognize(self, batch: Sequence[LiveFrame]) -> None:
        if not batch:
            return self._sender.send(self._changes.wait())
        frames = self._encode(self._engine, [frame.picture.prepared for frame in batch])
        self._sender.look(self._engine, [(own.second, own.picture.small) for own in batch], frames)
        self._sender.send(self._changes.add(self._engine, batch, frames))
        self._trouble = None

    def _report(self, error: Exception) -> None:
        """Says why pictures are not recognized, once for all that follow one another."""
        expected = isinstance(error, DataError)
        reason = f"pictures are not recognized: {error if expected else type(error).__name__}"
        if reason != self._trouble:
            logger.warning("%s: %s", self.source, reason, exc_info=None if expected else error)
        self._trouble = reason

    def _batches(self) -> Iterator[list[LiveFrame]]:
        """Pictures, prepared for the engine; those that were for another model are left out."""
        changed = time.monotonic()
        for batch in follow(
            self.source,
            self._look,
            self._stop,
            interval_seconds=self._interval,
            connect=self._connect,
        ):
            former, self._engine = self._engine, self._engine_now()
            if former.model is not self._engine.model:
                changed = time.monotonic()
            yield [frame for frame in batch if frame.arrived >= changed]

    def _look(self, picture: Any) -> Looked:
        return Looked(self._engine.prepare(picture), thumbnail(picture)[0])

    def _connect(
        self, source: LiveSource, interval: Fraction, stop: threading.Event, seen: Seen
    ) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"]]]:
        with self._connected:
            self._connection = self._connection._replace(state="connecting")
            reason = "it has ended"
            try:
                for picture in live_pictures(source, interval, stop, seen):
                    self._latest = time.monotonic()
                    self._connection = State("live", None, self._connection.pictures + 1)
                    yield picture
            except SourceLost as error:
                reason = str(error)
                raise
            finally:
                self._connection = self._connection._replace(state="waiting", reason=reason)

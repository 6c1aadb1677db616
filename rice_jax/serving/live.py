"""Streams whose events are told: followed ones, and those whose pictures are pushed while somebody listens."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from rice_jax.recognition.changes import LOST_SECONDS, Changes, Event, Search
from rice_jax.recognition.engine import Engine, Frames
from rice_jax.recognition.follow import LiveFrame, follow
from rice_jax.recognition.source import Seen, Source, SourceLost, live_pictures
from rice_jax.serving.events import EventLog
from rice_jax.types import DataError

THREAD = "source"  # beginning of the names of the threads that recognize what is followed
NOTHING = np.zeros((0, 0, 3), np.uint8)

logger = logging.getLogger(__name__)


Write = Callable[[Event], dict[str, Any]]  # an event as JSON


@runtime_checkable
class Encode(Protocol):
    """Encodes pictures together with those of others, and waits for them."""

    def __call__(self, engine: Engine, pictures: list[UInt8[np.ndarray, "S S 3"]]) -> Frames: ...


@runtime_checkable
class Tell(Protocol):
    """Tells events to listeners; `close` ends them."""

    def __call__(self, events: Iterable[Event], close: bool = False) -> None: ...


class Pushed:
    """The events of a stream whose pictures are pushed. Any number of threads may push.

    Attributes:
        log: the events.
    """

    def __init__(self, write: Write, now: Callable[[], float] = time.monotonic):
        """Starts without pictures.

        Args:
            write: writes an event as JSON.
            now: the clock, in seconds.
        """
        self.log = EventLog()
        self._tell, self._lock, self._now = teller(self.log, write), threading.Lock(), now
        self._changes = Changes(now=now)
        self._last: LiveFrame | None = None
        self._ahead = 0.0  # of the events' clock to that of the pictures

    @property
    def shown(self) -> Event | None:
        """The event since which a product is shown."""
        return self._changes.shown

    def push(self, engine: Engine, time: float, frame: Frames, restarted: bool, search: Search) -> None:
        """Adds a picture; one that is late is left out.

        Args:
            engine: ranks.
            time: of the picture, in seconds.
            frame: the picture, encoded by the engine.
            restarted: whether the clock of the pictures has jumped.
            search: which products are searched.
        """
        with self._lock:
            now, last = self._now(), self._last
            if last is None or restarted:
                self._ahead = (last.second + now - last.arrived if last else 0.0) - time
            second = time + self._ahead
            if last is None or second > last.second:
                self._last = LiveFrame(second, now, now, NOTHING)
                self._changes.search = search
                self._tell(self._changes.add(engine, [self._last], frame))

    def wait(self) -> None:
        """Tells that the product is gone if no picture has come for too long."""
        with self._lock:
            self._tell(self._changes.wait())

    def end(self) -> None:
        """Tells the last event, and ends the listeners."""
        with self._lock:
            self._tell(self._changes.end(), close=True)


class State(NamedTuple):
    """The state of a followed source."""

    state: str  # "connecting", "live", "waiting" (for the next try), "ended", or "failed"
    reason: str | None = None  # why it waits, has ended, or has failed
    pictures: int = 0  # that have been looked at


class Followed:
    """Follows a source in threads of its own: one receives pictures, one recognizes them.

    Attributes:
        log: the events.
        source: what is followed.
    """

    def __init__(
        self,
        name: str,
        source: Source,
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
        self.log, self.source = EventLog(), source
        self._tell, self._stop = teller(self.log, write), threading.Event()
        self._connection, self._latest = State("connecting"), time.monotonic()
        self._final: State | None = None
        self._engine_now, self._engine, self._encode = engine, engine(), encode
        self._changes, self._interval = Changes(search), interval
        self._connected = threading.Lock()  # held while there is a connection
        self._thread = threading.Thread(target=self._run, name=f"{THREAD} {name}", daemon=True)
        self._thread.start()

    @property
    def shown(self) -> Event | None:
        """The event since which a product is shown."""
        return self._changes.shown

    @property
    def state(self) -> State:
        """Of the source; one that is connected but silent, such as a file that no longer grows, is waited for."""
        state, patience = self._final or self._connection, max(LOST_SECONDS, 2 * self._interval)
        if state.state == "live" and time.monotonic() - self._latest > patience:
            return state._replace(state="waiting", reason=f"no picture has come for {patience:g} seconds")
        return state

    @property
    def is_running(self) -> bool:
        """Whether any of its threads is; a connection that does not answer outlives the end for a while."""
        return self._thread.is_alive() or self._connected.locked()

    def end(self) -> None:
        """Ends it, without waiting."""
        self._stop.set()

    def join(self) -> None:
        """Waits until the last event has been told."""
        self._thread.join()

    def _run(self) -> None:
        state = "ended"
        try:
            for batch in self._batches():
                if batch:
                    frames = self._encode(self._engine, [frame.picture for frame in batch])
                    self._tell(self._changes.add(self._engine, batch, frames))
                else:
                    self._tell(self._changes.wait())
            reason = "it was stopped" if self._stop.is_set() else "it is complete"
        except Exception as error:
            expected = isinstance(error, DataError)
            state, reason = "failed", str(error) if expected else f"{self.source}: {type(error).__name__}"
            logger.warning("%s; it is no longer followed", reason, exc_info=None if expected else error)
        finally:
            self._stop.set()
        self._final = State(state, reason, self._connection.pictures)
        self._tell(self._changes.end(), close=True)

    def _batches(self) -> Iterator[list[LiveFrame]]:
        """Pictures, prepared for the engine; those that were for another model are left out."""
        changed = time.monotonic()
        for batch in follow(
            self.source,
            lambda picture: self._engine.prepare(picture),
            self._stop,
            interval_seconds=self._interval,
            connect=self._connect,
        ):
            former, self._engine = self._engine, self._engine_now()
            if former.model is not self._engine.model:
                changed = time.monotonic()
            yield [frame for frame in batch if frame.arrived >= changed]

    def _connect(
        self, source: Source, interval: Fraction, stop: threading.Event, seen: Seen
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


def teller(log: EventLog, write: Write) -> Tell:
    """Returns a function that adds events to a log, from any thread; created in the thread of the event loop."""
    loop = asyncio.get_running_loop()

    def tell(events: Iterable[Event], close: bool = False) -> None:
        for event in events:
            text = json.dumps(write(event), ensure_ascii=False, allow_nan=False)
            loop.call_soon_threadsafe(log.add, text, event.event == "shown")
        if close:
            loop.call_soon_threadsafe(log.close)

    return tell

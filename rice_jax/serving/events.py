"""The events of a stream, for any number of listeners: the latest ones are kept, and no listener has a queue."""

import asyncio
import collections
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from rice_jax.serving.connections import ENDLESS
from rice_jax.serving.limits import Limits, at_limit
from rice_jax.serving.stills import Still

MAX_EVENTS, MAX_BYTES = 1000, 2_000_000  # that are kept of a stream, frames included
KEEP_ALIVE_SECONDS = 15.0  # without an event, after which a comment tells proxies that the connection is in use
KEEP_ALIVE = b": \n\n"


class Entry(NamedTuple):
    """An event that is kept."""

    number: int
    text: str  # JSON
    shows: bool  # whether a product is shown since then
    frame: Still | None  # by which the event is seen

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.text) + (len(self.frame.jpeg) if self.frame else 0)


class EventLog:
    """The latest events of a stream. All methods are for the server's event loop.

    Attributes:
        is_closed: whether no further event will come.
    """

    def __init__(self) -> None:
        """Starts without events."""
        self._kept: collections.deque[Entry] = collections.deque()
        self._bytes = 0
        self._newest = 0  # number of the newest event
        self._name = secrets.token_hex(4)  # tells this stream from an earlier one of the same id
        self._changed = asyncio.Event()
        self.is_closed = False

    def add(self, text: str, shows: bool, frame: Still | None = None) -> None:
        """Adds an event; the oldest ones make room for it."""
        self._newest += 1
        self._kept.append(Entry(self._newest, text, shows, frame))
        self._bytes += self._kept[-1].size
        while len(self._kept) > 1 and (len(self._kept) > MAX_EVENTS or self._bytes > MAX_BYTES):
            self._bytes -= self._kept.popleft().size
        self._wake()

    def frame(self, name: str) -> bytes | None:
        """The frame of an event that is kept, as a JPEG; None = there is none of this name."""
        return next((entry.frame.jpeg for entry in self._kept if entry.frame and entry.frame.name == name), None)

    def close(self) -> None:
        """Ends all listeners after the last event."""
        self.is_closed = True
        self._wake()

    def has_after(self, last: str | None) -> bool:
        """Whether a listener would get anything, at once or later."""
        return not self.is_closed or self._begin(last) < self._newest

    async def listen(self, last: str | None) -> AsyncIterator[bytes]:
        """The events as server-sent events.

        A listener that falls behind so far that an event it has not got is no longer kept is ended.

        Args:
            last: id of the last event that the listener knows, of this stream or an earlier one; None = it gets the one
                that tells what is shown now, and those that follow.

        Yields:
            Events and comments.
        """
        number, first, beginning = self._begin(last), self._first() - 1, KEEP_ALIVE
        if number < first:
            beginning += f'data: {{"event": "missed", "events": {first - number}}}\n\n'.encode()
            number = first
        yield beginning  # and with it the response's header
        while number >= self._first() - 1:
            changed = self._changed
            if found := [entry for entry in self._kept if entry.number > number]:
                number = found[-1].number
                yield "".join(self._written(entry) for entry in found).encode()
            elif self.is_closed:
                return
            else:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield KEEP_ALIVE

    def _first(self) -> int:
        """Number of the oldest event that is kept, or of the next one."""
        return self._kept[0].number if self._kept else self._newest + 1

    def _begin(self, last: str | None) -> int:
        """The number of the event after which a listener begins."""
        if last is None:
            return self._newest - (bool(self._kept) and self._kept[-1].shows)
        name, _, number = last.partition("-")
        known = name == self._name and number.isascii() and number.isdigit() and len(number) < 20
        return min(int(number), self._newest) if known else 0

    def _written(self, entry: Entry) -> str:
        return f"id: {self._name}-{entry.number}\ndata: {entry.text}\n\n"

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Listeners:
    """Counts listeners, since each holds a connection that other requests need too."""

    def __init__(self, limits: Limits):
        """Starts without listeners."""
        self._limits = limits
        self._addresses: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return self._addresses.total()

    @contextlib.contextmanager
    def place(self, address: str) -> Iterator[None]:
        """The place of a listener.

        Raises:
            HTTPException: there is none, in all or for its address (503).
        """
        for found, limit in (
            (len(self), min(self._limits.listeners, self._limits.connections // 2)),
            (self._addresses[address], self._limits.client_connections // 2),
        ):
            if found >= limit:
                detail = f"{at_limit(found, 'listener', 'connected')}; try again later"
                raise HTTPException(503, detail, {"Retry-After": "10"})
        self._addresses[address] += 1
        try:
            yield
        finally:
            self._addresses[address] -= 1
            self._addresses += collections.Counter()  # forgets addresses without listeners


class EventStream(StreamingResponse):
    """A response to one listener."""

    media_type = "text/event-stream"

    def __init__(self, log: EventLog, last: str | None, listeners: Listeners):
        """Keeps the arguments of `EventLog.listen`, and who listens."""
        # The second header is for nginx.
        super().__init__(log.listen(last), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._listeners = listeners

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Responds until the stream, the client, or the server ends.

        Raises:
            HTTPException: there are too many listeners (503).
        """
        with self._listeners.place((scope.get("client") or ("",))[0]):
            scope[ENDLESS] = True
            await super().__call__(scope, receive, send)

"""The streams that the server follows, and those whose frames are pushed."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from fastapi import HTTPException

from rice_jax.recognition.stream import Stream
from rice_jax.serving.limits import Limits, at_limit
from rice_jax.serving.live import Followed, Pushed

logger = logging.getLogger(__name__)


class StreamName(NamedTuple):
    """Names a stream, whichever model encodes its frames."""

    shop: str  # name of the index that is searched
    id: str


class StreamKey(NamedTuple):
    """Identifies a stream."""

    shop: str  # name of the index that is searched
    model: str  # fingerprint of the model that encodes its frames
    id: str


class Streams:
    """The streams whose frames are pushed; idle streams are removed."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        """Starts without streams.

        Args:
            limits: largest number of streams, and their idle time.
            clock: returns seconds.
        """
        self._limits, self._clock = limits, clock
        self._streams: dict[StreamKey, tuple[float, Stream]] = {}  # {key: (when it was last opened, stream)}

    def __len__(self) -> int:
        self._forget_idle()
        return len(self._streams)

    def open(self, key: StreamKey, new: Callable[[], Stream]) -> Stream:
        """The stream of a key; `new` makes it if there is none.

        Raises:
            HTTPException: the stream is new, and the limit is reached (503).
        """
        if len(self) >= self._limits.streams and key not in self._streams:
            detail = f"{at_limit(len(self._streams), 'stream', 'followed')}; try again later"
            raise HTTPException(503, detail, {"Retry-After": str(max(1, round(self._limits.stream_seconds)))})
        stream = self._streams[key][1] if key in self._streams else new()
        self._streams[key] = self._clock(), stream
        return stream

    def get(self, key: StreamKey) -> Stream | None:
        """The stream of a key; None = there is none."""
        self._forget_idle()
        return self._streams[key][1] if key in self._streams else None

    def __contains__(self, name: StreamName) -> bool:
        self._forget_idle()
        return any((key.shop, key.id) == name for key in self._streams)

    def end(self, key: StreamKey) -> bool:
        """Forgets a stream; returns whether there was one."""
        self._forget_idle()
        return self._streams.pop(key, None) is not None

    def forget_other_models(self, shop: str, model: str) -> None:
        """Forgets the streams of an index whose frames another model has encoded."""
        kept = [key for key in self._streams if key.shop != shop or key.model == model]
        self._streams = {key: self._streams[key] for key in kept}

    def _forget_idle(self) -> None:
        oldest = self._clock() - self._limits.stream_seconds
        self._streams = {key: kept for key, kept in self._streams.items() if kept[0] >= oldest}


class Lives:
    """The streams whose events are sent."""

    def __init__(self, limits: Limits):
        """Starts without streams."""
        self._limits = limits
        self._followed: dict[StreamName, Followed] = {}
        self._ended: list[Followed] = []  # that are followed no longer, while a thread of theirs runs
        self.pushed: dict[StreamName, Pushed] = {}

    def __len__(self) -> int:
        """The number of sources that are followed, or were until a moment ago."""
        self._ended = [own for own in self._ended if own.is_running]
        return len(self._ended) + sum(own.is_running for own in self._followed.values())

    def followed(self, name: StreamName) -> Followed | None:
        """What is followed, or has ended by itself and is still remembered."""
        return self._followed.get(name)

    def get(self, name: StreamName) -> Followed | Pushed | None:
        """The stream of a name."""
        return self._followed.get(name) or self.pushed.get(name)

    def frame(self, name: StreamName, frame: str) -> bytes:
        """A frame of a stream's events, as a JPEG.

        Raises:
            HTTPException: there is none (404).
        """
        live = self.get(name)
        found = live.log.frame(frame) if live else None
        if found is None:
            raise HTTPException(404, "found no such frame; frames are kept as long as the events of their stream")
        return found

    def follow(self, name: StreamName, new: Callable[[], Followed]) -> Followed:
        """Follows what `new` makes.

        Raises:
            HTTPException: the stream is followed already (409), or the limit is reached (503).
        """
        former = self._followed.get(name)
        if former and not former.log.is_closed:
            raise HTTPException(409, f"stream {name.id!r} is followed already; end it first")
        if len(self) >= self._limits.sources:
            detail = f"{at_limit(len(self), 'source', 'followed')}; end one, or try again later"
            raise HTTPException(503, detail, {"Retry-After": "30"})
        self._followed.pop(name, None)
        over = [own for own, stream in self._followed.items() if stream.log.is_closed]
        for own in over[: max(0, len(over) - self._limits.sources)]:  # the oldest are forgotten
            del self._followed[own]
        self._followed[name] = new()
        return self._followed[name]

    async def wait(self, streams: Streams, pool: ThreadPoolExecutor) -> None:
        """Tells that the product of a stream is gone if no picture comes any more, and ends streams that are forgotten.

        A stream whose event cannot be sent is ended, and the log says why; the others go on.

        Args:
            streams: whose pictures are pushed.
            pool: of the threads that send events.
        """
        for name, pushed in list(self.pushed.items()):
            if name not in streams:
                await self._end_pushed(name, pushed, pool)
                continue
            try:
                await asyncio.get_running_loop().run_in_executor(pool, pushed.wait)
            except Exception:
                logger.exception("stream %r: an event cannot be sent, so its listeners are ended", name.id)
                await self._end_pushed(name, pushed, pool)

    async def end(self, name: StreamName, pool: ThreadPoolExecutor) -> bool:
        """Ends a stream; returns whether there was one.

        Args:
            name: of the stream.
            pool: of the threads that send events.
        """
        followed, pushed = self._followed.pop(name, None), self.pushed.get(name)
        if followed:
            followed.end()
            self._ended.append(followed)
        if pushed:
            await self._end_pushed(name, pushed, pool)
        return bool(followed or pushed)

    async def _end_pushed(self, name: StreamName, pushed: Pushed, pool: ThreadPoolExecutor) -> None:
        if self.pushed.get(name) is pushed:  # and not a newer one of this name
            del self.pushed[name]
        try:  # in a thread, as it waits while a picture of the stream is ranked
            await asyncio.get_running_loop().run_in_executor(pool, pushed.end)
        except Exception:  # its listeners are ended all the same
            logger.exception("stream %r: its last event cannot be sent", name.id)

    async def end_all(self, pool: ThreadPoolExecutor) -> Iterable[Followed]:
        """Ends all streams, as `end`; returns those whose threads are to be waited for."""
        await asyncio.gather(*(self.end(name, pool) for name in [*self._followed, *self.pushed]))
        return self._ended

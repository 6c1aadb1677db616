"""The decoding of a request: it ends when its time is over or nobody waits for it."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")


class Work:
    """A request's decoding, in any thread. A thread cannot be stopped, so it asks before every picture."""

    def __init__(self, seconds: float):
        """Starts with the time that decoding may take."""
        self._seconds, self._spent = seconds, 0.0
        self._ended = False

    def end(self) -> None:
        """Ends the work before the next picture."""
        self._ended = True

    def take(self, pictures: Iterator[T], count: int) -> list[T]:
        """Decodes pictures, up to `count`; [] = there are no more.

        Raises:
            ClientDisconnect: the work was ended.
            HTTPException: it has taken too long.
        """
        taken: list[T] = []
        while len(taken) < count:
            if self._ended:
                raise ClientDisconnect
            if self._spent > self._seconds:
                detail = f"decoding takes more than {self._seconds:g} seconds, which is this server's limit"
                raise HTTPException(413, f"{detail}; send fewer or smaller pictures, or a shorter video")
            start = time.monotonic()
            some = list(itertools.islice(pictures, 1))
            self._spent += time.monotonic() - start
            if not some:
                break
            taken += some
        return taken


@contextlib.asynccontextmanager
async def working(request: Request, seconds: float) -> AsyncIterator[Work]:
    """The work of a request whose body has been read; ends when its client disconnects and with the `with` block."""
    work = Work(seconds)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        work.end()

    watching = asyncio.create_task(watch())
    try:
        yield work
    finally:
        work.end()
        watching.cancel()

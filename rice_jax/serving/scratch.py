"""The server's temporary directory."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool

FULL = (errno.ENOSPC, errno.EDQUOT)
LARGE = 1 << 18  # bytes that are worth a thread


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Makes an HTTPException of an OSError: 507 if the disk is full, else 503."""
    try:
        yield
    except OSError as error:
        detail = f"the server cannot write to its temporary directory: {error.strerror}"
        raise HTTPException(507 if error.errno in FULL else 503, detail, {"Retry-After": "60"}) from error


class Scratch:
    """A temporary directory for requests; it is made anew if something has removed it."""

    def __init__(self) -> None:
        """Creates the directory, where `tempfile` does."""
        self._directory = _create()

    @contextlib.contextmanager
    def file(self) -> Iterator[IO[bytes]]:
        """A new file with a name, which exists inside the `with` block.

        Raises:
            HTTPException: it cannot be created.
        """
        with storing():
            file = self._open()
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):  # something has removed it, or the disk is full
                file.close()

    def check(self) -> None:
        """Writes to a file, to check the server's health.

        Raises:
            HTTPException: this is not possible.
        """
        with self.file() as file, storing():
            file.write(bytes(1 << 16))
            file.flush()

    def close(self) -> None:
        """Removes the directory."""
        self._directory.cleanup()

    def _open(self) -> IO[bytes]:
        try:
            return tempfile.NamedTemporaryFile(dir=self._directory.name)
        except FileNotFoundError:
            self._directory = _create()
            return tempfile.NamedTemporaryFile(dir=self._directory.name)


class Spool:
    """Writes pieces of a request to a file, in a thread, as a disk may be slow.

    Attributes:
        size: bytes added so far.
    """

    def __init__(self, file: IO[bytes]):
        """Starts with an empty file."""
        self.file, self.size = file, 0
        self._waiting = bytearray()

    def add(self, piece: bytes) -> None:
        """Adds a piece in memory."""
        self._waiting += piece
        self.size += len(piece)

    async def store_if_large(self) -> None:
        """Writes the pieces to the file if they are many."""
        if len(self._waiting) >= LARGE:
            await self.store()

    async def store(self) -> None:
        """Writes the pieces to the file.

        Raises:
            HTTPException: this is not possible.
        """
        await run_in_threadpool(self._write)
        self._waiting.clear()

    def _write(self) -> None:
        with storing():
            self.file.write(self._waiting)
            self.file.flush()


def _create() -> tempfile.TemporaryDirectory[str]:
    parent = Path(tempfile.gettempdir())
    os.makedirs(parent, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="rice_jax-", dir=parent, ignore_cleanup_errors=True)

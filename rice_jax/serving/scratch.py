"""The server's temporary directory."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool

FULL = (errno.ENOSPC, errno.EDQUOT)
LARGE = 1 << 18  # bytes that are worth a thread
PREFIX = "rice_jax-requests-"  # of the names of these directories; people may call theirs rice_jax-…
NEW_SECONDS = 60  # a directory that has just been made may not be locked yet


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Makes an HTTPException of an OSError: 507 if the disk is full, else 503."""
    try:
        yield
    except OSError as error:
        detail = f"the server cannot write to its temporary directory: {error.strerror}"
        raise HTTPException(507 if error.errno in FULL else 503, detail, {"Retry-After": "60"}) from error


class Scratch:
    """A temporary directory for requests; it is made anew if something has removed it.

    It is locked while its process lives, so that the next start can tell what a killed server has left.
    """

    def __init__(self) -> None:
        """Creates the directory, where `tempfile` does, and removes those of servers that were killed."""
        _remove_abandoned()
        self._directory, self._lock = _create()

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
        os.close(self._lock)

    def _open(self) -> IO[bytes]:
        try:
            return tempfile.NamedTemporaryFile(dir=self._directory.name)
        except FileNotFoundError:
            former, (self._directory, self._lock) = self._lock, _create()
            os.close(former)
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


def _create() -> tuple[tempfile.TemporaryDirectory[str], int]:
    """A new directory, and the descriptor that holds its lock."""
    parent = Path(tempfile.gettempdir())
    os.makedirs(parent, exist_ok=True)
    directory = tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True)
    descriptor = os.open(directory.name, os.O_RDONLY)
    with contextlib.suppress(OSError):  # e.g. NFS without a lock service, where nothing is removed either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return directory, descriptor


def _remove_abandoned() -> None:
    """Removes the directories of this user that no process holds."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is no directory, or in use
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(descriptor)
                if found.st_uid == os.geteuid() and time.time() - found.st_mtime > NEW_SECONDS:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)

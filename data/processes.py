"""What builders and the doctor share with the operating system: worker processes, locks, and SIGTERM."""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from .errors import RawDataError

T = TypeVar("T")
R = TypeVar("R")


def in_workers(function: Callable[[T], R], arguments: Iterable[T], workers: int) -> Iterator[R]:
    """Calls a function in worker processes and yields the results in order.

    Raises:
        RawDataError: a worker was killed, which a pool of `multiprocessing` would wait for forever.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(function, arguments)
    except BrokenProcessPool as error:
        raise RawDataError(
            "a worker process was killed, probably for lack of memory: lower --workers; finished shards are kept, and "
            "the same command continues from them"
        ) from error
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a directory, which is created; waits while another process holds it.

    The lock is free again however the process ends. A file system without locks only costs the protection.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{directory}: another build is running; waiting until it is done", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            print(f"{directory}: cannot be locked ({error}); run one build at a time", file=sys.stderr)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def cleaning_up_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM end the program as Ctrl-C does, with an exception, so that partial results are removed."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

"""What programs that read or write data share with the operating system: worker processes, locks, and SIGTERM."""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from .errors import WorkerError

T = TypeVar("T")
R = TypeVar("R")


def in_workers(
    function: Callable[[T], R], arguments: Iterable[T], workers: int, *, chunksize: int = 1
) -> Generator[R, None, None]:
    """Calls a function in worker processes and yields the results in order; close it to end them before the last one.

    Args:
        function: to call; it and the arguments are pickled.
        arguments: of the calls.
        workers: number of processes.
        chunksize: calls that a worker is given at a time.

    Raises:
        WorkerError: a worker was killed, which a pool of `multiprocessing` would wait for forever.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
    try:
        yield from pool.map(function, arguments, chunksize=chunksize)
    except BrokenProcessPool as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise WorkerError(
            f"a worker process has ended unexpectedly, for example for lack of memory{cause}; lower --workers"
        ) from error
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends a worker whose parent is killed: nothing else would tell it, and the next build would meet it."""
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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

"""Encodes frames of many requests together, in the engine's batch sizes, in one thread."""

import asyncio
import collections
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree, UInt8


@runtime_checkable
class Encodes(Protocol):
    """What encodes pictures, such as an `Engine`; those that share a model encode them alike."""

    model: Any

    def encode(self, pictures: UInt8[np.ndarray, "b S S 3"]) -> PyTree:
        """Encodes pictures into arrays with one row for each."""


class _Job(NamedTuple):
    engine: Encodes
    picture: UInt8[np.ndarray, "S S 3"]
    future: "Future[_Row]"


class _Row(NamedTuple):
    row: PyTree  # of the engine's arrays
    start: float  # seconds, of the batch's encoding
    end: float


class Batcher:
    """Encodes queued pictures in the largest batch that fits, first come, first served.

    While a batch is encoded, the next one gathers. A picture never waits for a batch to fill, and the busier the server
    is, the larger its batches are. Batches have exactly the given sizes, so none is padded, and the pictures of a batch
    are for one model. If a batch fails, its pictures are encoded one by one, so that an error reaches only the request
    that caused it.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        encoded: Callable[[int], None] = lambda count: None,
        spent: Callable[[float, float], None] = lambda waiting, encoding: None,
    ):
        """Starts the thread.

        Args:
            sizes: sizes of batches; 1 must be among them.
            encoded: called with the number of pictures of each batch.
            spent: called with the seconds that a caller's pictures have waited, and those in which any of them was
                encoded; together they are the time of the call.
        """
        self._sizes, self._encoded, self._spent = sorted(sizes), encoded, spent
        self._waiting: collections.deque[_Job] = collections.deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    async def encode(self, engine: Encodes, pictures: Sequence[UInt8[np.ndarray, "S S 3"]]) -> PyTree:
        """Encodes pictures, possibly together with those of other callers.

        Args:
            engine: encodes them, or another one with the same model does.
            pictures: at least one, from `Engine.prepare`.

        Returns:
            The arrays of the engine, in the order of the pictures.

        Raises:
            Exception: whatever `encode` raises for one of these pictures.
            RuntimeError: the batcher is closed.
        """
        start = time.perf_counter()
        # A cancelled caller cancels its queued pictures, which are then not encoded.
        rows = await asyncio.gather(*map(asyncio.wrap_future, self._submit(engine, pictures)))
        return self._joined(rows, start)

    def encode_and_wait(self, engine: Encodes, pictures: Sequence[UInt8[np.ndarray, "S S 3"]]) -> PyTree:
        """Does the same for a thread, which waits."""
        start = time.perf_counter()
        return self._joined([future.result() for future in self._submit(engine, pictures)], start)

    @property
    def num_waiting(self) -> int:
        """Number of queued pictures."""
        return len(self._waiting)

    def close(self) -> None:
        """Encodes the queued pictures and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _submit(self, engine: Encodes, pictures: Sequence[UInt8[np.ndarray, "S S 3"]]) -> "list[Future[_Row]]":
        jobs = [_Job(engine, picture, Future()) for picture in pictures]
        with self._changed:
            if self._closed:
                raise RuntimeError("The batcher is closed because the server is stopping.")
            self._waiting.extend(jobs)
            self._changed.notify()
        return [job.future for job in jobs]

    def _work(self) -> None:
        while jobs := self._next_batch():
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._encode(jobs)
            del jobs  # and with them the index that was searched, while the thread waits for the next ones

    def _next_batch(self) -> list[_Job]:
        """Waits for pictures; [] = the batcher is closed and the queue is empty."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
            model = self._waiting[0].engine.model if self._waiting else None
            alike = [job for job in self._waiting if job.engine.model is model]
            jobs = alike[: max((size for size in self._sizes if size <= len(alike)), default=0)]
            taken = set(map(id, jobs))
            self._waiting = collections.deque(job for job in self._waiting if id(job) not in taken)
            return jobs

    def _encode(self, jobs: Sequence[_Job]) -> None:
        start = time.perf_counter()
        try:
            rows = jax.device_get(jobs[0].engine.encode(np.stack([job.picture for job in jobs])))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:
                for job in jobs:
                    self._encode([job])
            return
        end = time.perf_counter()
        self._encoded(len(jobs))
        for place, job in enumerate(jobs):
            job.future.set_result(_Row(jax.tree.map(lambda array, place=place: array[place], rows), start, end))

    def _joined(self, rows: Sequence[_Row], start: float) -> PyTree:
        """The rows as arrays; `start` is when the caller came."""
        encoding = sum(last - first for first, last in {(row.start, row.end) for row in rows})
        self._spent(time.perf_counter() - start - encoding, encoding)
        return jax.tree.map(lambda *parts: np.stack(parts), *(row.row for row in rows))

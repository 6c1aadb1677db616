"""Encodes frames of many requests together, in the engine's batch sizes, in one thread."""

import asyncio
import collections
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import jax
import numpy as np
from jaxtyping import PyTree, UInt8


class Batcher:
    """Encodes queued pictures in the largest batch that fits, first come, first served.

    While a batch is encoded, the next one gathers. A picture never waits for a batch to fill, and the busier the server
    is, the larger its batches are. Batches have exactly the given sizes, so none is padded. If a batch fails, its
    pictures are encoded one by one, so that an error reaches only the request that caused it.
    """

    def __init__(
        self,
        encode: Callable[[UInt8[np.ndarray, "b S S 3"]], PyTree],
        sizes: Sequence[int],
        encoded: Callable[[int], None] = lambda count: None,
    ):
        """Starts the thread.

        Args:
            encode: encodes pictures into arrays with one row for each, e.g. `Engine.encode`.
            sizes: sizes of batches; 1 must be among them.
            encoded: called with the number of pictures of each batch.
        """
        self._function, self._sizes, self._encoded = encode, sorted(sizes), encoded
        self._waiting: collections.deque[tuple[np.ndarray, Future]] = collections.deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    async def encode(self, pictures: Sequence[UInt8[np.ndarray, "S S 3"]]) -> PyTree:
        """Encodes pictures, possibly together with those of other callers.

        Args:
            pictures: at least one, from `Engine.prepare`.

        Returns:
            The arrays of `encode`, in the order of the pictures.

        Raises:
            Exception: whatever `encode` raises for one of these pictures.
            RuntimeError: the batcher is closed.
        """
        jobs: list[tuple[np.ndarray, Future]] = [(picture, Future()) for picture in pictures]
        with self._changed:
            if self._closed:
                raise RuntimeError("The batcher is closed because the server is stopping.")
            self._waiting.extend(jobs)
            self._changed.notify()
        # A cancelled caller cancels its queued pictures, which are then not encoded.
        rows = await asyncio.gather(*(asyncio.wrap_future(future) for _, future in jobs))
        return jax.tree.map(lambda *parts: np.stack(parts), *rows)

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

    def _work(self) -> None:
        while jobs := self._next_batch():
            jobs = [job for job in jobs if job[1].set_running_or_notify_cancel()]
            if jobs:
                self._encode(jobs)

    def _next_batch(self) -> list[tuple[np.ndarray, Future]]:
        """Waits for pictures; [] = the batcher is closed and the queue is empty."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
            fitting = [size for size in self._sizes if size <= len(self._waiting)]
            return [self._waiting.popleft() for _ in range(max(fitting, default=0))]

    def _encode(self, jobs: Sequence[tuple[np.ndarray, Future]]) -> None:
        pictures, futures = zip(*jobs, strict=True)
        try:
            rows = jax.device_get(self._function(np.stack(pictures)))
        except Exception as error:
            if len(jobs) == 1:
                futures[0].set_exception(error)
            else:
                for job in jobs:
                    self._encode([job])
            return
        self._encoded(len(jobs))
        for place, future in enumerate(futures):
            future.set_result(jax.tree.map(lambda array, place=place: array[place], rows))

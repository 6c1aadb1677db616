"""Frames of many requests, encoded together in the engine's batch sizes by one thread."""

import asyncio
import collections
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import jax
import numpy as np
from jaxtyping import PyTree, UInt8


class Batcher:
    """Encodes what waits, as much at once as goes, in the order in which it came.

    While a batch is encoded the next one gathers: nobody waits for company, and the busier the server, the larger its
    batches. Each has one of the sizes, so that none has to be filled up. Where a batch fails, each of its pictures is
    tried alone, so that nobody gets another one's error.
    """

    def __init__(
        self,
        encode: Callable[[UInt8[np.ndarray, "b S S 3"]], PyTree],
        sizes: Sequence[int],
        encoded: Callable[[int], None] = lambda count: None,
    ):
        """Starts the thread.

        Args:
            encode: of pictures to arrays with a row for each, the engine's.
            sizes: of the batches, 1 among them.
            encoded: is told how many pictures each batch had.
        """
        self._function, self._sizes, self._encoded = encode, sorted(sizes), encoded
        self._waiting: collections.deque[tuple[np.ndarray, Future]] = collections.deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    async def encode(self, pictures: Sequence[UInt8[np.ndarray, "S S 3"]]) -> PyTree:
        """Encodes pictures, together with other callers' and whatever becomes of those.

        Args:
            pictures: at least one, as the engine prepares them.

        Returns:
            The arrays of `encode`, in the order of the pictures.

        Raises:
            Exception: what `encode` raises for one of these pictures.
            RuntimeError: this is closed.
        """
        jobs = [(picture, Future()) for picture in pictures]
        with self._changed:
            if self._closed:
                raise RuntimeError("The batcher is closed: the server stops.")
            self._waiting.extend(jobs)
            self._changed.notify()
        # Whoever is cancelled cancels what has not begun, and it is not encoded.
        rows = await asyncio.gather(*(asyncio.wrap_future(future) for _, future in jobs))
        return jax.tree.map(lambda *parts: np.stack(parts), *rows)

    @property
    def num_waiting(self) -> int:
        """Pictures that are in no batch yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Encodes what waits, and ends the thread."""
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
        """Waits for pictures; [] = there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
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

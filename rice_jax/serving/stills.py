"""The frames that show the parts of a live stream: of each part, the one that is most similar to its product."""

import collections
import dataclasses
import functools
import hashlib
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from rice_jax.recognition.changes import WINDOW, Event, product_vectors
from rice_jax.recognition.engine import Engine, Frames


@dataclasses.dataclass(frozen=True)
class Still:
    """A small frame of a stream; its second is on the clock of the events."""

    second: float
    jpeg: bytes

    @functools.cached_property
    def name(self) -> str:
        """Tells it from other ones."""
        return hashlib.sha256(self.jpeg).hexdigest()[:16]


class Stills:
    """The latest frames of a stream, and the best one of the part that is shown."""

    def __init__(self) -> None:
        """Starts without frames."""
        # Weak, as a silent stream would keep an index and a model in memory that have been replaced.
        self._engine: weakref.ref[Engine] | None = None
        self._model: weakref.ref[Any] | None = None
        self._latest: collections.deque[tuple[Still, Float[np.ndarray, " E"]]] = collections.deque()
        self._begin = 0.0  # of the part
        self._vectors = np.zeros((0, 0))  # of its product
        self._best: tuple[float, Still] | None = None  # of its frames that are no longer among the latest

    def add(self, engine: Engine, stills: Iterable[Still], encoded: Frames) -> None:
        """Adds frames, later than all before, that the engine has encoded; those of another model are forgotten."""
        if self._model is None or engine.model is not self._model():
            self._latest.clear()
            self._vectors = np.zeros((0, encoded.features.shape[1]))
            self._model = weakref.ref(engine.model)
        self._engine = weakref.ref(engine)
        unit = encoded.features / np.linalg.norm(encoded.features, axis=1, keepdims=True)
        self._latest.extend(zip(stills, unit, strict=True))
        while len(self._latest) > WINDOW:
            self._best = self._better(self._best, *self._latest.popleft())

    def of(self, event: Event) -> Still | None:
        """The best frame until now of the part that begins, or the best one of the part that ends; None = unknown.

        A part begins only while the engine is in use that has encoded the latest frame.
        """
        engine = self._engine() if self._engine else None
        if event.event == "shown" and engine:
            self._begin, self._vectors = event.second, product_vectors(engine, event.product)
            self._best = None
        best = self._best
        for still, unit in self._latest:
            if event.event == "shown" or still.second <= event.second:
                best = self._better(best, still, unit)
        return best and best[1]

    def _better(
        self, best: tuple[float, Still] | None, still: Still, unit: Float[np.ndarray, " E"]
    ) -> tuple[float, Still] | None:
        if still.second < self._begin or not len(self._vectors):
            return best
        cosine = float((self._vectors @ unit).max())
        return (cosine, still) if best is None or cosine > best[0] else best

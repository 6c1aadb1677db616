"""The streams that the server follows."""

import time
from collections.abc import Callable
from typing import NamedTuple

from fastapi import HTTPException

from rice_jax.recognition.stream import Stream
from rice_jax.serving.limits import Limits


class StreamKey(NamedTuple):
    """Identifies a stream."""

    shop: str  # name of the index that is searched
    model: str  # fingerprint of the model that encodes its frames
    id: str


class Streams:
    """The followed streams; idle streams are removed."""

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
            detail = f"{len(self._streams)} streams are followed, which is this server's limit; try again later"
            raise HTTPException(503, detail, {"Retry-After": str(max(1, round(self._limits.stream_seconds)))})
        stream = self._streams[key][1] if key in self._streams else new()
        self._streams[key] = self._clock(), stream
        return stream

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

"""The streams that the server follows."""

import time
from collections.abc import Callable

from fastapi import HTTPException

from rice_jax.recognition.stream import Stream
from rice_jax.serving.limits import Limits


class Streams:
    """The followed streams by id; idle streams are removed."""

    def __init__(self, limits: Limits, new: Callable[[], Stream], clock: Callable[[], float] = time.monotonic):
        """Starts without streams.

        Args:
            limits: largest number of streams, and their idle time.
            new: creates a stream without frames.
            clock: returns seconds.
        """
        self._limits, self._new, self._clock = limits, new, clock
        self._streams: dict[str, tuple[float, Stream]] = {}  # {id: (when it was last opened, stream)}

    def __len__(self) -> int:
        self._forget_idle()
        return len(self._streams)

    def open(self, stream_id: str) -> Stream:
        """The stream of an id, which starts if it is new.

        Raises:
            HTTPException: the stream is new, and the limit is reached (503).
        """
        if len(self) >= self._limits.streams and stream_id not in self._streams:
            detail = f"{len(self._streams)} streams are followed, which is this server's limit; try again later"
            raise HTTPException(503, detail, {"Retry-After": str(max(1, round(self._limits.stream_seconds)))})
        stream = self._streams[stream_id][1] if stream_id in self._streams else self._new()
        self._streams[stream_id] = self._clock(), stream
        return stream

    def end(self, stream_id: str) -> bool:
        """Forgets a stream; returns whether there was one."""
        self._forget_idle()
        return self._streams.pop(stream_id, None) is not None

    def _forget_idle(self) -> None:
        oldest = self._clock() - self._limits.stream_seconds
        self._streams = {name: kept for name, kept in self._streams.items() if kept[0] >= oldest}

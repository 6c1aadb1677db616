"""The streams that the server follows."""

import time
from collections.abc import Callable

from fastapi import HTTPException

from rice_jax.recognition.recognizer import Window
from rice_jax.serving.uploads import Limits


class Streams:
    """The windows of streams by id; idle streams are removed."""

    def __init__(self, limits: Limits, new: Callable[[], Window], clock: Callable[[], float] = time.monotonic):
        """Starts without streams.

        Args:
            limits: largest number of streams, and their idle time.
            new: creates an empty window.
            clock: returns seconds.
        """
        self._limits, self._new, self._clock = limits, new, clock
        self._windows: dict[str, tuple[float, Window]] = {}  # {id: (when it was last opened, window)}

    def __len__(self) -> int:
        self._forget_idle()
        return len(self._windows)

    def open(self, stream_id: str) -> Window:
        """The window of a stream, which starts if it is new.

        Raises:
            HTTPException: the stream is new, and the limit is reached (503).
        """
        if len(self) >= self._limits.streams and stream_id not in self._windows:
            detail = f"{len(self._windows)} streams are followed, which is this server's limit; try again later"
            raise HTTPException(503, detail, {"Retry-After": str(max(1, round(self._limits.stream_seconds)))})
        window = self._windows[stream_id][1] if stream_id in self._windows else self._new()
        self._windows[stream_id] = self._clock(), window
        return window

    def end(self, stream_id: str) -> bool:
        """Forgets a stream; returns whether there was one."""
        self._forget_idle()
        return self._windows.pop(stream_id, None) is not None

    def _forget_idle(self) -> None:
        oldest = self._clock() - self._limits.stream_seconds
        self._windows = {name: kept for name, kept in self._windows.items() if kept[0] >= oldest}

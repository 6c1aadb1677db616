"""The streams that a server follows."""

import time
from collections.abc import Callable

from fastapi import HTTPException

from rice_jax.recognition.recognizer import Window
from rice_jax.serving.uploads import Limits


class Streams:
    """The windows of streams by their ids; those that get no frame for a while are forgotten."""

    def __init__(self, limits: Limits, new: Callable[[], Window], clock: Callable[[], float] = time.monotonic):
        """Starts with none.

        Args:
            limits: how many there are at most, and for how long without a frame.
            new: makes an empty window.
            clock: tells the seconds.
        """
        self._limits, self._new, self._clock = limits, new, clock
        self._windows: dict[str, tuple[float, Window]] = {}  # and when it was last opened

    def __len__(self) -> int:
        self._forget_idle()
        return len(self._windows)

    def open(self, stream_id: str) -> Window:
        """Finds the window of a stream, or makes one, and keeps it for a while.

        Raises:
            HTTPException: there is none, and no room for another one (503).
        """
        if len(self) >= self._limits.streams and stream_id not in self._windows:
            detail = f"{len(self._windows)} streams are kept, which is all that this server takes; try again later"
            raise HTTPException(503, detail, {"Retry-After": str(max(1, round(self._limits.stream_seconds)))})
        _, window = self._windows.get(stream_id) or (None, self._new())
        self._windows[stream_id] = self._clock(), window
        return window

    def end(self, stream_id: str) -> bool:
        """Forgets a stream, and says whether there was one."""
        self._forget_idle()
        return self._windows.pop(stream_id, None) is not None

    def _forget_idle(self) -> None:
        oldest = self._clock() - self._limits.stream_seconds
        self._windows = {name: kept for name, kept in self._windows.items() if kept[0] >= oldest}

"""The last frames of a stream."""

import collections
import math
import threading

from rice_jax.recognition.frames import Frames, join_frames
from rice_jax.recognition.subtitles import Sentence, join_sentences, said_between
from rice_jax.types import DataError

CONFIRMED = 3  # frames of a new window after which the previous one is forgotten
PAUSE = 3  # times the length of a window: frames that come after a longer gap do not belong to it
NUM_SENTENCES = 1000  # that a stream keeps
LATE_FRAMES = 3  # late frames in a row, each of a later interval, that show that the clock has gone back


class Window:
    """The last sampled frames of one stream in order of time, at most one for each interval.

    Any number of threads may use a window at once. A stream whose clock restarts needs a new window (`Stream`).
    """

    def __init__(self, num_frames: int, interval_seconds: float = 1.0):
        """Creates an empty window.

        Args:
            num_frames: largest number of frames to keep.
            interval_seconds: above 0.

        Raises:
            DataError: `interval_seconds` is not above 0.
        """
        if not 0 < interval_seconds < math.inf:
            raise DataError(f"interval_seconds: found {interval_seconds}, expected more than 0, and finite")
        self._num_frames, self._interval = num_frames, interval_seconds
        self._lock = threading.Lock()
        self._frames: dict[int, tuple[float, Frames]] = {}  # {interval: (time, frame)}, in order

    def wants(self, time: float) -> bool:
        """Whether `put` would keep a frame of that time: its interval is empty, and not older than the window.

        Raises:
            DataError: the time is not finite.
        """
        interval = self._interval_of(time)
        with self._lock:
            full = len(self._frames) == self._num_frames
            return interval not in self._frames and not (full and interval < next(iter(self._frames)))

    def put(self, time: float, frame: Frames) -> bool:
        """Puts an encoded frame in its place; returns whether the window keeps it.

        Raises:
            DataError: the time is not finite.
        """
        interval = self._interval_of(time)
        with self._lock:
            kept = {interval: (time, frame)} | self._frames  # the first frame of an interval stays
            self._frames = dict(sorted(kept.items())[-self._num_frames :])
            return interval in self._frames and self._frames[interval][1] is frame

    def frames(self) -> tuple[float, Frames] | None:
        """The time of the newest frame, and all frames in order; None = the window is empty."""
        with self._lock:
            found = list(self._frames.values())
        return (found[-1][0], join_frames([frame for _, frame in found])) if found else None

    def span(self) -> tuple[float, float]:
        """From when to when its frames are shown, each for an interval; both are 0 if the window is empty."""
        with self._lock:
            times = [time for time, _ in self._frames.values()]
        return (times[0], times[-1] + self._interval) if times else (0.0, 0.0)

    def _interval_of(self, time: float) -> int:
        if not math.isfinite(time):
            raise DataError(f"time: found {time}, expected a number of seconds")
        return math.floor(round(time / self._interval, 3))  # 0.3 / 0.1 is less than 3 in floating point


class Stream:
    """The windows of a stream whose clock may jump.

    A frame belongs to the window that holds the frames just before it. A new window starts

    - when time jumps ahead by more than `PAUSE` windows, as what was shown then is not what is shown now;
    - when it jumps back by more than a window, as after a reconnection;
    - when `LATE_FRAMES` frames in a row are late and bring nothing new, as after a small jump back.

    Until the new window has `CONFIRMED` frames, a frame that belongs to the previous one goes on with that and its
    sentences: a single stray time loses nothing.

    Any number of threads may use a stream at once.
    """

    def __init__(self, num_frames: int, interval_seconds: float = 1.0):
        """Starts with an empty window.

        Args:
            num_frames: largest number of frames in a window.
            interval_seconds: above 0.

        Raises:
            DataError: `interval_seconds` is not above 0.
        """
        self._new = lambda: Window(num_frames, interval_seconds)
        self._interval, self._length = interval_seconds, num_frames * interval_seconds
        self._lock = threading.Lock()
        self._current = self._new()
        self._newest: float | None = None  # time of the window's newest frame; None = it has none yet
        self._previous: tuple[Window, float] | None = None
        self._count = 0  # frames since the current window has begun or has been returned to
        self._late: list[float] = []  # times of late frames in a row
        self._sentences = _no_sentences()
        self._previous_sentences = _no_sentences()  # of the previous window

    def window(self, time: float) -> tuple[Window, bool]:
        """The window that a frame of this time belongs to, and whether it has been started for it.

        Raises:
            DataError: the time is not finite.
        """
        with self._lock:
            useless = not self._current.wants(time)
            restarted = False
            if self._newest is not None and not self._belongs(time, self._newest, useless):
                returns = self._previous and self._belongs(time, self._previous[1])
                other = self._previous if self._previous and returns else (self._new(), time)
                restarted = not returns
                if restarted:  # a speech recognizer is behind the frames: what it has told was said before
                    self._previous_sentences, self._sentences = self._sentences, _no_sentences()
                else:
                    self._previous_sentences.extend(self._sentences)
                    self._sentences, self._previous_sentences = self._previous_sentences, _no_sentences()
                self._previous, self._count = (self._current, self._newest), 0
                self._current, self._newest = other
            self._newest = time if self._newest is None else max(self._newest, time)
            self._count += 1
            if self._count >= CONFIRMED:
                self._previous = None
                self._previous_sentences.clear()
            if not useless:
                self._late.clear()
            return self._current, restarted

    def add_text(self, start: float, end: float, text: str) -> None:
        """Adds what is said from one moment to another, in any order; times are of the same clock as the frames'.

        The newest `NUM_SENTENCES` texts are kept. A new window begins without any.

        Args:
            start: seconds.
            end: seconds, at least `start`.
            text: what is said.

        Raises:
            DataError: a time is not finite, or the end is before the start.
        """
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise DataError(f"text: found second {start} to {end}, expected it to begin before it ends")
        with self._lock:
            self._sentences.append(Sentence(start, end, text))

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """What has been added, in order of time."""
        with self._lock:
            return tuple(sorted(self._sentences, key=lambda sentence: sentence.start))

    def said(self, window: Window) -> tuple[Sentence, ...]:
        """What is said while the frames of a window are shown, in order (`subtitles.said_between`)."""
        return said_between(self.sentences, *window.span())

    def speech(self, window: Window) -> str:
        """What is said while the frames of a window are shown, as one text for `Engine.rank`."""
        return join_sentences(self.said(window))

    def _belongs(self, time: float, newest: float, useless: bool = False) -> bool:
        near = newest - self._length <= time <= newest + PAUSE * self._length
        return near and not (useless and self._has_gone_back(time, newest))

    def _has_gone_back(self, time: float, newest: float) -> bool:
        """Whether a frame that brings nothing new is one of several late ones in a row."""
        if time > newest - self._interval:  # it is only another frame of the newest interval
            return False
        if self._late and not self._interval <= time - self._late[-1]:
            if time < self._late[-1]:
                self._late = [time]
            return False
        self._late.append(time)
        if len(self._late) < LATE_FRAMES:
            return False
        self._late.clear()
        return True


def _no_sentences() -> collections.deque[Sentence]:
    return collections.deque(maxlen=NUM_SENTENCES)

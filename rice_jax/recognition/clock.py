"""The times at which a player shows the pictures of a video, from the times that its file gives them.

- Second 0 is where a player begins: with the sound or with the first picture, whichever comes first.
- A picture stays until the next one, however long that takes.
- A clock that goes back (a stream that has been reconnected), ahead by more than `Clock.longest`, or beyond the end
  that the header announces, is taken for a restart: what follows continues where the last picture ends, so nothing is
  lost, and no time is made up.
- If the clock then returns to its former course, that one counts again.
- A single picture whose time does not lie between those of its neighbors is put half-way between them.
- Pictures without times follow one another at their own rate.

Times are exact fractions of a second: in floating point, the tenth picture of ten a second falls into the ninth tenth.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

# The encoder's start-up, no pause: sound begins up to a few frames before the first picture.
START_UP = Fraction(1, 4)
SMOOTH = Fraction(1)  # seconds; what comes later is a jump, if anything else says so


class Stamped(NamedTuple):
    """A picture with the time that its file gives it."""

    time: Fraction | None  # seconds on the file's clock; None = it gives none
    duration: Fraction  # seconds; 0 = unknown, and so is one beyond `Clock.longest`
    picture: Any


class Shown(NamedTuple):
    """A picture with the time at which a player shows it."""

    time: Fraction  # seconds from the beginning
    picture: Any


@dataclasses.dataclass
class Clock:
    """A player's clock.

    Attributes:
        start: when the file begins on its own clock; None = with the first picture.
        longest: time in seconds for which a picture may stay; what comes later follows a restart of the clock.
        latest: when the file ends on its own clock according to its header; None = unknown.
        frame: usual duration of a picture in seconds.
        end: when the last picture ends, in seconds from the beginning; grows with `play`.
        stay: longest time for which a picture has stayed, in seconds.
        restarts: the restarts of the clock, as the second at which each is and the seconds that were left out.
        strays: number of single pictures whose times did not lie between those of their neighbors.
        origin: the time of the beginning on the file's clock, as it is after the last restart.
    """

    start: Fraction | None
    longest: Fraction
    latest: Fraction | None
    frame: Fraction
    end: Fraction = Fraction(0)
    stay: Fraction = Fraction(0)
    restarts: list[tuple[Fraction, Fraction]] = dataclasses.field(default_factory=list)
    strays: int = 0
    origin: Fraction = Fraction(0)

    def play(self, pictures: Iterable[Stamped]) -> Iterator[Shown]:
        """Gives each picture its time, in order; looks one picture ahead."""
        last: Fraction | None = None  # the time of the previous picture on the file's clock
        due = Fraction(0)  # the time after the previous picture on the file's clock
        former: Fraction | None = None  # the origin before the last restart
        for stamped, following in _with_next(pictures):
            now = stamped.time
            if last is None:
                now = due if now is None else now
                self.origin = self._begin(now)
            elif now is None:
                now = due
            elif following is not None and last < following <= last + self.longest and not last <= now <= following:
                self.strays += 1
                now = (last + following) / 2
            elif former is not None and not last <= now <= due + SMOOTH and 0 <= now - former - self.end <= SMOOTH:
                self.restarts.append((self.end, now - due))
                self.origin, former = former, self.origin
            elif not last <= now <= self._bound(last, due):
                self.restarts.append((self.end, now - due))
                self.origin, former = now - self.end, self.origin
            elif now - last > self.stay:
                self.stay = now - last
            last, due = now, now + (stamped.duration if 0 < stamped.duration <= self.longest else self.frame)
            self.end = due - self.origin
            yield Shown(now - self.origin, stamped.picture)

    def extend(self, end: Fraction) -> None:
        """Lets the last picture stay until `end` on the file's clock, if that is clearly later."""
        end -= self.origin
        if START_UP < end - self.end <= self.longest:
            self.end = end

    def _bound(self, last: Fraction, due: Fraction) -> Fraction:
        """Until when the next picture may come."""
        bound = last + self.longest
        return bound if self.latest is None else min(bound, max(self.latest, due) + SMOOTH)

    def _begin(self, first: Fraction) -> Fraction:
        """Second 0 on the file's clock: the file's beginning, if the first picture comes clearly later."""
        waits = Fraction(0) if self.start is None else first - self.start
        return first - waits if START_UP < waits <= self.longest else first


def look(shown: Iterable[Shown], interval: Fraction, tick: Fraction, clock: Clock) -> Iterator[tuple[Fraction, Any]]:
    """Chooses the pictures to look at: the first of each interval, and again those that stay.

    A picture that stays is looked at again at the beginning of each interval in which no other one begins, but at most
    once a second.

    Args:
        shown: pictures in order, as `clock` gives them their times.
        interval: seconds, above 0.
        tick: smallest difference between times in the file, which are rounded to it; seconds.
        clock: knows when the last picture ends.

    Yields:
        When each is looked at, and the picture.
    """
    pause = max(interval, Fraction(1)) / 2  # a picture that has just been looked at is not looked at again
    rounding = tick / 2 if tick < interval else Fraction(0)
    first_free, looked = 0, Fraction(0)
    latest: Any = None

    def again(until: int) -> Iterator[tuple[Fraction, Any]]:
        """Looks at the latest picture in the free intervals before `until`."""
        nonlocal looked
        if latest is None:
            return
        while (place := max(first_free, math.ceil((looked + pause) / interval))) < until:
            looked = place * interval
            yield looked, latest

    for time, picture in shown:
        place = (time + rounding) // interval
        yield from again(place)
        if place >= first_free or latest is None:
            first_free, looked = place + 1, time
            yield time, picture
        latest = picture
    yield from again(math.floor((clock.end - pause) / interval) + 1)


def _with_next(pictures: Iterable[Stamped]) -> Iterator[tuple[Stamped, Fraction | None]]:
    """Each picture with the time of the next one; None = there is none."""
    held: Stamped | None = None
    for stamped in pictures:
        if held is not None:
            yield held, stamped.time
        held = stamped
    if held is not None:
        yield held, None

"""The times of a player."""

from fractions import Fraction

import pytest

from rice_jax.recognition.clock import Clock, Stamped, look

TENTH = Fraction(1, 10)


def tenths(first, count):
    """Times of ten pictures a second."""
    return [first + TENTH * place for place in range(count)]


def played(times, start=None, longest=60, latest=None, duration=TENTH):
    clock = Clock(None if start is None else Fraction(start), Fraction(longest), latest, TENTH)
    stamped = [Stamped(None if time is None else Fraction(time), duration, place) for place, time in enumerate(times)]
    shown = list(clock.play(stamped))
    assert [picture.picture for picture in shown] == list(range(len(times))), "none is lost"
    return [picture.time for picture in shown], clock


def looked(times, interval, tick=Fraction(0), **settings):
    shown, clock = played(times, **settings)
    again = Clock(clock.start, clock.longest, clock.latest, clock.frame)
    stamped = [Stamped(Fraction(time), settings.get("duration", TENTH), time) for time in times]
    return [
        (float(time), float(picture)) for time, picture in look(again.play(stamped), Fraction(interval), tick, again)
    ]


def test_time_begins_with_the_first_picture_or_with_a_sound_clearly_before_it():
    assert played(tenths(5, 3))[0] == tenths(0, 3)
    assert played(tenths(10, 3), start=0)[0] == tenths(10, 3)
    assert played(tenths(10, 3), start=Fraction("9.98"))[0] == tenths(0, 3), "a codec's start-up is no pause"
    assert played(tenths(10, 3), start=12)[0] == tenths(0, 3)
    assert played(tenths(4000, 3), start=0)[0] == tenths(0, 3), "another clock"


@pytest.mark.parametrize("jump", [-20, -5, Fraction(-1, 5), 3600, 100_000])
def test_after_a_restart_the_rest_follows_at_once(jump):
    times, clock = played(tenths(0, 200) + tenths(20 + jump, 200))
    assert times == tenths(0, 400) and clock.end == 40
    assert clock.restarts == [(20, jump)] and not clock.strays


def test_a_picture_may_stay_but_not_for_longer_than_allowed():
    times, clock = played([0, TENTH, 30, 30 + TENTH])
    assert times == [0, TENTH, 30, 30 + TENTH] and not clock.restarts and clock.stay == 30 - TENTH
    times, clock = played([0, TENTH, 30, 30 + TENTH], longest=10)
    assert times == tenths(0, 4) and len(clock.restarts) == 1


def test_durations_beyond_what_is_allowed_mean_nothing():
    times, clock = played([0, 100_000, 200_000], duration=Fraction(100_000))
    assert times == tenths(0, 3) and clock.end == 3 * TENTH and len(clock.restarts) == 2


@pytest.mark.parametrize("jump", [-3, 40, 3600])
def test_a_clock_that_returns_to_its_course_moves_nothing_else(jump):
    times = tenths(0, 100)
    found, clock = played([*times[:50], *(time + jump for time in times[50:60]), *times[60:]], latest=Fraction(10))
    assert found == times and clock.end == 10 and len(clock.restarts) == 2


def test_a_header_that_announces_too_little_changes_nothing():
    assert played(tenths(0, 100), latest=Fraction(2))[0] == tenths(0, 100)
    assert played([0, 5, 9], latest=Fraction(10))[0] == [0, 5, 9]


@pytest.mark.parametrize("stray", [-50, 0, 3, 90, 3600])
def test_one_stray_time_moves_nothing_else(stray):
    times = tenths(0, 100)
    found, clock = played([*times[:50], stray, *times[51:]])
    assert found == times and clock.end == 10 and clock.strays == 1 and not clock.restarts


@pytest.mark.parametrize("place", [0, 99])
def test_a_stray_time_at_an_end_invents_nothing(place):
    times: list = tenths(0, 100)
    times[place] += 3600
    found, clock = played(times)
    assert found == tenths(0, 100) and clock.end == 10


def test_pictures_without_times_have_their_own_rate():
    assert played([None] * 5, duration=Fraction(1, 50))[0] == [Fraction(place, 50) for place in range(5)]
    assert played([None] * 5, duration=Fraction(0))[0] == tenths(0, 5), "the usual one"
    assert played([3, None, None, Fraction("3.3")])[0] == tenths(0, 4)


def test_two_pictures_at_one_time():
    assert played([0, 0, TENTH, TENTH])[0] == [0, 0, TENTH, TENTH]


@pytest.mark.parametrize("start", [0, Fraction("1.6"), Fraction(1, 3)])
def test_each_interval_has_its_picture(start):
    assert looked(tenths(start, 100), TENTH) == [(float(time), float(start + time)) for time in tenths(0, 100)]
    assert [time for time, _ in looked(tenths(start, 100), 1)] == list(range(10))


def test_rounded_times_count_as_exact_ones():
    thirtieths = [Fraction(round(1000 * place / 30), 1000) for place in range(90)]
    assert len(looked(thirtieths, Fraction(1, 30), tick=Fraction(1, 1000))) == 90
    slides = [(Fraction(place), Fraction(place // 2 * 2)) for place in range(6)]
    assert looked([0, 2, 4], 1, tick=Fraction(2), duration=Fraction(2)) == slides, "a tick beyond the interval is exact"


def test_a_picture_that_stays_is_looked_at_again():
    found = looked([*tenths(0, 13), 5, *tenths(Fraction("5.1"), 5)], 1)
    assert found == [(0, 0), (1, 1), (2, 1.2), (3, 1.2), (4, 1.2), (5, 5)]
    found = looked([*tenths(0, 13), 5, *tenths(Fraction("5.1"), 5)], TENTH)
    stays = [time for time, picture in found if picture == 1.2]
    assert stays[0] == 1.2 and all(0.5 <= later - time <= 1 for time, later in zip(stays[:-1], stays[1:], strict=True))
    assert len(found) == 13 + 6 + len(stays) - 1


def test_a_picture_that_has_just_been_looked_at_is_not_looked_at_again():
    assert [time for time, _ in looked([Fraction("1.2") * place for place in range(6)], 1)] == [
        0,
        1.2,
        2.4,
        3.6,
        4.8,
        6,
    ]


def test_the_last_picture_stays_until_the_end():
    clock = Clock(None, Fraction(60), None, TENTH)
    found = list(look(clock.play([Stamped(Fraction(0), Fraction("2.3"), "a")]), Fraction(1), Fraction(0), clock))
    assert found == [(0, "a"), (1, "a")] and clock.end == Fraction("2.3")
    found = list(look(clock.play([Stamped(Fraction(0), Fraction("2.3"), "a")]), Fraction(1000), Fraction(0), clock))
    assert found == [(0, "a")]

"""The windows of a stream."""

import threading

import numpy as np
import pytest

from rice_jax.recognition.engine import Frames
from rice_jax.recognition.stream import Stream, Window
from rice_jax.types import DataError


def numbered(number):
    return Frames(np.full((1, 2), number, np.float32), None)


def numbers(window):
    return window.frames()[1].features[:, 0].tolist()


def test_a_window_holds_the_last_frames_in_the_order_of_their_times():
    window = Window(3)
    assert window.frames() is None
    for time in (5.0, 3.2, 4.0):
        assert window.wants(time) and window.put(time, numbered(time))
    np.testing.assert_allclose(numbers(window), [3.2, 4, 5])
    assert not window.wants(4.9), "its interval has one"
    assert not window.wants(2.0) and not window.put(2.0, numbered(2)), "it comes too late"
    assert window.put(6.5, numbered(6.5))
    np.testing.assert_allclose(numbers(window), [4, 5, 6.5])
    assert window.frames()[0] == 6.5


def test_of_two_frames_of_an_interval_the_first_to_come_stays():
    window = Window(3, interval_seconds=2.0)
    assert window.put(1.9, numbered(1))
    assert not window.put(0.1, numbered(2))
    assert numbers(window) == [1]


@pytest.mark.parametrize("begin", [0.0, 1_700_000_000.0])
@pytest.mark.parametrize("interval", [0.1, 0.2, 0.3, 1 / 30])
def test_each_picture_of_a_regular_stream_has_an_interval(interval, begin):
    window = Window(100, interval)
    begin = round(begin / interval) * interval
    assert all(window.put(begin + place * interval, numbered(place)) for place in range(100))


@pytest.mark.parametrize("interval", [0.0, -1.0, float("nan"), float("inf")])
def test_no_interval(interval):
    with pytest.raises(DataError, match="interval_seconds: found"):
        Window(3, interval)


@pytest.mark.parametrize("time", [float("nan"), float("inf")])
def test_no_time(time):
    with pytest.raises(DataError, match="time: found"):
        Window(3).wants(time)


def test_a_window_of_many_threads():
    window, times = Window(10), np.random.default_rng(0).permutation(400) / 4
    threads = [
        threading.Thread(target=lambda own: [window.put(time, numbered(time)) for time in own], args=[own.tolist()])
        for own in np.array_split(times, 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(number) for number in numbers(window)] == [*range(90, 100)]


def pushed(times, num_frames=4, **settings):
    """The times in the window after each push, and at which places of `times` a window started."""
    stream, found, starts = Stream(num_frames, **settings), [], []
    for place, time in enumerate(map(float, times)):
        window, restarted = stream.window(time)
        if window.wants(time):
            window.put(time, numbered(time))
        found.append(numbers(window))
        starts += [place] if restarted else []
    return found, starts


@pytest.mark.parametrize("count", [2, 7, 30])
@pytest.mark.parametrize("jump", [-1000, -20, 30, 3600])
def test_a_jump_starts_a_new_window(count, jump):
    times = [100 + second for second in range(count)]
    later = [times[-1] + jump + second for second in range(6)]
    found, starts = pushed(times + later)
    assert starts == [count]
    assert found[-1] == later[-4:] and found[count] == later[:1]


@pytest.mark.parametrize("back", [2, 3, 4])
def test_after_a_small_jump_back_a_new_window_starts_soon(back):
    found, starts = pushed([0, 1, 2, 3, 4, 5, 6, 7, *range(7 - back, 13)])
    assert len(starts) <= 1 and found[-1] == [9, 10, 11, 12]


def test_a_stream_that_starts_over_soon():
    found, starts = pushed([0, 1, 2, 3, 0, 1, 2, 3])
    assert starts == [6] and found[-1] == [2, 3]


@pytest.mark.parametrize("stray", [-1000, 0, 500, 3600])
def test_a_single_stray_time_loses_nothing(stray):
    found, starts = pushed([*range(50, 60), stray, *range(60, 64)])
    assert starts == [10] and found[10] == [stray] and found[11] == [57, 58, 59, 60] and found[-1] == [60, 61, 62, 63]


def test_two_streams_of_one_name_do_not_mix():
    found, _ = pushed([time for second in range(6) for time in (second, second + 1000)])
    assert found[-2] == [2, 3, 4, 5] and found[-1] == [1002, 1003, 1004, 1005]


def test_an_old_window_is_forgotten():
    found, starts = pushed([100, 101, 102, 0, 1, 2, 3, 4, 103])
    assert starts == [3, 8] and found[-1] == [103]


def test_late_frames_find_their_places():
    found, starts = pushed([10, 12.5, 11, 11.5, 13, 14, 12, 11.2])
    assert not starts and found[-1] == [11, 12.5, 13, 14]


def test_slow_and_fast_streams_keep_their_windows():
    assert pushed(range(0, 120, 10))[0][-1] == [80, 90, 100, 110], "one in ten seconds"
    assert not pushed(np.arange(300) / 30)[1]
    found, starts = pushed([2, 4, 6, 8, 10, 2, 12], interval_seconds=2.0)
    assert not starts and found[-1] == [6, 8, 10, 12]


@pytest.mark.parametrize("time", [float("nan"), float("inf")])
def test_a_stream_has_times(time):
    with pytest.raises(DataError, match="time: found"):
        Stream(3).window(time)

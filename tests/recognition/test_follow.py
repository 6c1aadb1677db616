"""The frames of a live stream through cuts, and when there are too many."""

import threading

import numpy as np
import pytest

from rice_jax.recognition import follow as follow_module
from rice_jax.recognition.follow import BACK_OFF, MAX_QUEUED, MAX_TAKEN, follow
from rice_jax.recognition.source import LiveSource, SourceEnded, SourceLost
from rice_jax.types import DataError

ADDRESS = "rtmp://example.com/live"
PICTURE = np.zeros((2, 2, 3), np.uint8)
CUT = SourceLost("rtmp://example.com/live: Connection refused")
SECONDS = 60.0  # generous; nothing waits for it to pass


class Stop(threading.Event):
    """An event for which waiting takes no time, but is noted."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return self.is_set()


def received(connections, *, listen=False, prepare=lambda picture: picture, stop=None):
    """The batches of some connections, one after the other, after which it is stopped.

    Each connection is a list of frames, as (when it arrives, its time in the connection), and of exceptions.
    """
    stop, taken, now = stop or Stop(), threading.Event(), [0.0]
    remaining = iter(connections)

    def connect(source, interval, given, _):
        assert given is stop and interval == 1
        for step in next(remaining, [None]):
            if step is None:  # the end: whatever has arrived is taken first
                assert taken.wait(SECONDS)
                stop.set()
            elif isinstance(step, Exception):
                raise step
            else:
                now[0] = float(step[0])
                yield float(step[1]), PICTURE

    batches = []
    source = LiveSource(ADDRESS, listen=listen, max_delay=1000.0)
    for batch in follow(source, prepare, stop, connect=connect, now=lambda: now[0]):
        batches.append(batch)
        if not batch:
            taken.set()
    return batches


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch):
    monkeypatch.setattr(follow_module, "TICK", 0.05)


def joined(batches):
    return [frame for batch in batches for frame in batch]


def test_the_clock_goes_on_through_cuts_and_restarts(caplog):
    frames = joined(received([[(10, 0), (11, 1), (12, 2), CUT], [CUT], [(20, 0), (21, 1)], [(30, 0)]]))
    assert [frame.second for frame in frames] == [0, 1, 2, 10, 11, 20]
    assert [frame.shown for frame in frames] == [frame.arrived for frame in frames] == [10, 11, 12, 20, 21, 30]
    assert caplog.messages == [
        f"{ADDRESS}: Connection refused; next try in 1 s",
        f"{ADDRESS}: Connection refused; next try in 2 s",
        f"{ADDRESS}: has ended; next try in 1 s",
        f"{ADDRESS}: has ended; next try in 1 s",
    ]


def test_frames_that_come_in_bursts_are_dated_by_the_quickest():
    frames = joined(received([[(10, 0), (10, 1), (10, 2), (13, 3), (13, 4), (13, 5)]]))
    assert [frame.second for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert [frame.shown for frame in frames] == pytest.approx([10, 10, 10, 11, 12, 13], abs=0.01)


def test_tries_become_rarer_and_never_end():
    stop = Stop()
    received([[CUT]] * 20, stop=stop)
    assert stop.waits[: len(BACK_OFF)] == list(BACK_OFF) and set(stop.waits[len(BACK_OFF) : 20]) == {BACK_OFF[-1]}


def test_who_listens_does_not_wait():
    stop = Stop()
    received([[CUT]] * 5, listen=True, stop=stop)
    assert set(stop.waits[:5]) == {BACK_OFF[0]}


def test_what_can_never_be_followed_ends_it():
    with pytest.raises(DataError, match="no such protocol"):
        received([[DataError("no such protocol")]])
    with pytest.raises(ZeroDivisionError):
        received([[ZeroDivisionError()]])


def test_what_is_complete_ends_it(caplog):
    with pytest.raises(SourceEnded, match="is complete"):
        received([[SourceEnded("is complete")]])
    frames = joined(received([[(0, 0), (1, 1), CUT], [(2, 0), SourceEnded("is complete")]]))
    assert [frame.second for frame in frames] == [0, 1, 2] and caplog.messages[-1] == "is complete"


def test_a_frame_that_cannot_be_prepared_is_left_out(caplog):
    pictures = iter([None, DataError("is broken"), None])

    def prepare(picture):
        found = next(pictures)
        if found:
            raise found
        return picture

    frames = joined(received([[(0, 0), (1, 1), (2, 2)]], prepare=prepare))
    assert [frame.second for frame in frames] == [0, 2] and "a frame is left out: is broken" in caplog.text


@pytest.mark.parametrize(("waited", "kept"), [(2.0, MAX_QUEUED), (5.0, 0)])
def test_frames_are_dropped_rather_than_late(monkeypatch, caplog, waited, kept):
    monkeypatch.setattr(follow_module, "REPORT_SECONDS", 1.0)
    num, now, stop = MAX_QUEUED + 10, [0.0], threading.Event()
    begin, filled = threading.Event(), threading.Event()

    def connect(*_):
        assert begin.wait(SECONDS)
        yield from ((float(second), PICTURE) for second in range(num))
        filled.set()
        stop.wait(SECONDS)

    batches = follow(
        LiveSource(ADDRESS, max_delay=3.0), lambda picture: picture, stop, connect=connect, now=lambda: now[0]
    )
    assert next(batches) == []
    begin.set()
    assert filled.wait(SECONDS)
    now[0] = waited
    found = [next(batches) for _ in range(MAX_QUEUED // MAX_TAKEN)]
    stop.set()
    assert [frame.second for frame in joined(found)] == list(range(num))[num - kept :] if kept else not any(found)
    assert {len(batch) for batch in found} == {MAX_TAKEN if kept else 0}
    assert f"{10 if kept else 10 + MAX_TAKEN} frames came too fast, and were dropped" in caplog.text
    assert list(batches) == []


def test_nothing_is_received_after_the_stop():
    stop = threading.Event()

    def connect(*_):
        yield 0.0, PICTURE
        stop.set()
        yield 1.0, PICTURE
        raise AssertionError("it goes on")

    assert len(joined(follow(LiveSource(ADDRESS), lambda picture: picture, stop, connect=connect))) <= 1
    assert not any(thread.name == "follow" and not thread.daemon for thread in threading.enumerate())

"""The events of streams, with an engine that only compares."""

import asyncio
import gc
import weakref

import numpy as np
import pytest

from rice_jax.recognition import changes as changes_module
from rice_jax.recognition import follow as follow_module
from rice_jax.recognition.changes import Search
from rice_jax.recognition.lines import event_line
from rice_jax.recognition.source import LiveSource
from rice_jax.recognition.stream import Stream
from rice_jax.serving import live as live_module
from rice_jax.serving.live import Followed, Pushed, PushedPicture
from rice_jax.types import DataError
from tests.recognition.test_changes import FakeEngine, FakeModel, parts_of
from tests.serving.serving import until


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    monkeypatch.setattr(changes_module, "products_over_time", parts_of)


def told(event):
    return event["event"], event["product"]["id"], event["second"]


@pytest.mark.parametrize("stray", [None, 90_000.0, 5.0])
def test_a_single_wrong_time_changes_no_event(stray):
    """A picture comes each second; the clock of the ninth one is wrong."""
    engine, lines, now = FakeEngine(), [], [1000.0]

    def write(event, frame):
        lines.append(event_line(event))
        return lines[-1]

    async def push():
        pushed, stream = Pushed(write, now=lambda: now[0]), Stream(10)
        for second in range(60):
            now[0] = 1000.0 + second
            time = stray if stray and second == 8 else 5000.0 + second
            window, _ = stream.window(time)
            encoded = engine.encode([second // 20])
            pushed.push(engine, PushedPicture(time, encoded, b""), window, Search())
            pushed.wait()

    asyncio.run(push())
    assert list(map(told, lines)) == [
        ("shown", "p0", 0), ("gone", "p0", 19.5), ("shown", "p1", 19.5), ("gone", "p1", 39.5), ("shown", "p2", 39.5)
    ]  # fmt: skip


class LiveEngine(FakeEngine):
    def prepare(self, picture):
        return picture[0, 0, 0]


@pytest.fixture
def follow(monkeypatch):
    """Follows a source whose pictures are the numbers of products; returns events, states before each, and the end."""

    def follow(numbers, encode):
        engine, lines, states, followed = LiveEngine(), [], [], []

        def pictures(source, interval, stop, seen):
            while not followed:
                stop.wait(0.001)
            for second, number in enumerate(numbers):
                yield float(second), np.full((8, 8, 3), number, np.uint8)
                while len(states) <= second and not stop.is_set():
                    stop.wait(0.001)  # until it has been recognized, or has not
            stop.set()

        def watched(engine, pictures):
            states.append(followed[0].state)
            return encode(engine, pictures)

        def write(event, frame):
            lines.append(event_line(event))
            return lines[-1]

        async def run():
            followed.append(
                Followed("s", LiveSource("rtmp://localhost"), lambda: engine, watched, write, 1.0, Search())
            )
            await asyncio.to_thread(followed[0].join)

        monkeypatch.setattr(live_module, "live_pictures", pictures)
        asyncio.run(run())
        return lines, states, followed[0].state

    return follow


@pytest.mark.parametrize("error", [RuntimeError("memory"), DataError("found no gallery 'b'")])
@pytest.mark.parametrize("ranks", [False, True])
def test_a_source_outlives_pictures_that_cannot_be_recognized(follow, monkeypatch, caplog, error, ranks):
    def fail(engine, *arguments, **options):
        raise error

    def encode(engine, pictures):
        return fail(engine) if 3 in pictures and not ranks else engine.encode(pictures)

    def find(engine, times, frames, **options):
        return (fail if frames.features[-1, 3] else parts_of)(engine, times, frames, **options)

    monkeypatch.setattr(changes_module, "products_over_time", find)
    lines, states, end = follow([0] * 8 + [3] * 8 + [1] * 8, encode)
    assert [(line["event"], line["product"]["id"], line.get("reason")) for line in lines] == [
        ("shown", "p0", None), ("gone", "p0", "lost"), ("shown", "p1", None), ("gone", "p1", "stopped")
    ]  # fmt: skip
    assert [line["second"] for line in lines] == [0, 8 if ranks else 7, 16, 23]
    reason = f"pictures are not recognized: {error if isinstance(error, DataError) else 'RuntimeError'}"
    assert [state.reason for state in states] == [None] * 9 + [reason] * 8 + [None] * 7
    assert caplog.messages == [f"rtmp://localhost: {reason}"] and end.state == "ended"


def test_a_silent_source_frees_what_is_replaced(monkeypatch):
    """Nothing but the server's list of indexes keeps an engine and its model in memory."""

    def pictures(source, interval, stop, seen):
        for second in range(4):
            yield float(second), np.zeros((8, 8, 3), np.uint8)
        stop.wait()

    def new():
        engine = LiveEngine()
        engine.model = FakeModel()
        return engine

    def is_free(*parts):
        gc.collect()
        return [part() for part in parts] == [None] * len(parts)

    async def run():
        engines, lines = [new()], []
        write = lambda event, frame: lines.append(event_line(event))  # noqa: E731
        encode = lambda engine, pictures: engine.encode(pictures)  # noqa: E731
        followed = Followed("s", LiveSource("rtmp://localhost"), lambda: engines[0], encode, write, 1.0, Search())
        await asyncio.to_thread(until, lambda: lines)
        former = weakref.ref(engines[0]), weakref.ref(engines[0].model)
        engines[0] = new()
        await asyncio.to_thread(until, lambda: is_free(*former))
        followed.end()
        await asyncio.to_thread(followed.join)
        return [(line["event"], line.get("reason")) for line in lines]

    monkeypatch.setattr(follow_module, "TICK", 0.01)
    monkeypatch.setattr(live_module, "live_pictures", pictures)
    assert asyncio.run(run()) == [("shown", None), ("gone", "stopped")]

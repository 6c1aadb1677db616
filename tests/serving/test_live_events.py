"""The events of pushed streams, with an engine that only compares."""

import asyncio

import pytest

from rice_jax.recognition import changes as changes_module
from rice_jax.recognition.changes import Search
from rice_jax.recognition.lines import event_line
from rice_jax.recognition.stream import Stream
from rice_jax.serving.live import Pushed, PushedPicture
from tests.recognition.test_changes import FakeEngine, parts_of


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

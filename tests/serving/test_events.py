"""The events that are kept, and those who listen to them."""

import asyncio
import contextlib

import pytest
from fastapi import HTTPException

from rice_jax.serving import events as events_module
from rice_jax.serving.events import EventLog, Listeners
from rice_jax.serving.limits import Limits
from rice_jax.serving.stills import Still


def run(test):
    asyncio.run(asyncio.wait_for(test(), 20))


async def texts(listener):
    """The data of the events until the end, without comments."""
    pieces = "".join([piece.decode() async for piece in listener])
    return [line[6:] for line in pieces.splitlines() if line.startswith("data: ")]


def test_the_oldest_events_make_room(monkeypatch):
    monkeypatch.setattr(events_module, "MAX_EVENTS", 3)
    monkeypatch.setattr(events_module, "MAX_BYTES", 100)

    async def test():
        log = EventLog()
        for number in range(5):
            log.add(f"{number}", shows=False)
        assert log.has_after(None) and log.has_after("0")
        log.close()
        assert await texts(log.listen("0")) == ['{"event": "missed", "events": 2}', "2", "3", "4"]
        assert await texts(log.listen(None)) == [] and log.has_after("0") and not log.has_after(None)
        log = EventLog()
        for size in (60, 30, 30, 200):
            log.add("x" * size, shows=False)
            kept = [len(entry.text) for entry in log._kept]
            assert kept == {60: [60], 30: kept, 200: [200]}[size] and (sum(kept) <= 100 or len(kept) == 1)

    run(test)


def test_frames_are_kept_as_long_as_their_events(monkeypatch):
    monkeypatch.setattr(events_module, "MAX_BYTES", 1000)

    async def test():
        log = EventLog()
        frames = [Still(float(number), bytes([number]) * 300) for number in range(50)]
        for number, frame in enumerate(frames):
            log.add("{}", shows=True, frame=frame)
            assert log.frame(frame.name) == frame.jpeg and sum(entry.size for entry in log._kept) <= 1000
            assert [log.frame(own.name) is not None for own in frames[: number + 1]][-4:] == [False, True, True, True][
                -number - 1 :
            ]
        log.add("x", shows=False)
        assert log.frame("x") is None and log.frame(frames[-1].name)

    run(test)


def test_a_listener_that_falls_behind_is_ended(monkeypatch):
    monkeypatch.setattr(events_module, "MAX_EVENTS", 3)

    async def test():
        log = EventLog()
        slow, quick = log.listen(None), log.listen(None)
        assert [await anext(each) for each in (slow, quick)] == [b": \n\n"] * 2
        for number in range(5):
            log.add(str(number), shows=False)
            assert f"data: {number}\n\n".encode() in await anext(quick)
        with pytest.raises(StopAsyncIteration):
            await anext(slow)

    run(test)


def test_who_waits_gets_events_and_signs_of_life(monkeypatch):
    monkeypatch.setattr(events_module, "KEEP_ALIVE_SECONDS", 0.02)

    async def test():
        log = EventLog()
        listener = log.listen(None)
        assert [await anext(listener) for _ in range(3)] == [b": \n\n"] * 3
        log.add("1", shows=True)
        first = await anext(listener)
        name = first.decode().splitlines()[0].removeprefix("id: ")
        log.close()
        assert await texts(listener) == [] and await texts(log.listen(None)) == ["1"]
        assert not log.has_after(name)
        for other in ("0", "", name[:-1] + "0", f"other-{name[-1]}", name[:-1] + "x", name[:-1] + "9" * 30):
            assert await texts(log.listen(other)) == ["1"], other
        assert await texts(log.listen(name[:-1] + "7")) == [], "it cannot know more than there is"

    run(test)


def test_listeners_of_an_address_and_of_all_are_limited():
    listeners = Listeners(Limits(listeners=3, client_connections=4))
    with contextlib.ExitStack() as stack:
        for address in ("a", "a", "b"):
            stack.enter_context(listeners.place(address))
        with pytest.raises(HTTPException, match="3 listeners are connected"):
            stack.enter_context(listeners.place("c"))
    with listeners.place("a"), listeners.place("a"):
        with pytest.raises(HTTPException, match="2 listeners are connected"), listeners.place("a"):
            pass
        with listeners.place("b"):
            assert len(listeners) == 3
    assert len(listeners) == 0 and not listeners._addresses

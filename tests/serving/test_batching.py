import asyncio
import threading
from typing import NamedTuple

import numpy as np
import pytest

from rice_jax.serving.batching import Batcher


class Rows(NamedTuple):
    total: np.ndarray
    tokens: np.ndarray | None


def picture(value):
    return np.full((2, 2, 3), value, np.uint8)


class Gate:
    """An encoder that sums pixels, remembers its batches, fails on the picture of 66s, and can be held."""

    def __init__(self, held=False):
        self.batches, self.entered, self.open = [], 0, threading.Event()
        self.model = self
        if not held:
            self.open.set()

    def encode(self, pictures):
        self.entered += 1
        assert self.open.wait(20)
        self.batches.append(pictures[:, 0, 0, 0].tolist())
        if (pictures == 66).any():
            raise ValueError("66 is broken")
        return Rows(pictures.sum((1, 2, 3)).astype(np.float32), None)


@pytest.fixture
def start():
    batchers = []

    def start(*args, **kwargs):
        batchers.append(Batcher(*args, **kwargs))
        return batchers[-1]

    yield start
    for batcher in batchers:
        batcher.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_callers_share_batches_and_get_their_own_rows_in_order(start):
    gate, counts = Gate(held=True), []
    batcher = start((1, 2, 4), counts.append)

    async def run():
        first = asyncio.create_task(batcher.encode(gate, [picture(9)]))
        await until(lambda: gate.entered == 1)  # it is being encoded, alone
        pictures = [[picture(value) for value in values] for values in ([1], [2, 3], [4, 5, 6, 7])]
        others = [asyncio.create_task(batcher.encode(gate, some)) for some in pictures]
        await until(lambda: batcher.num_waiting == 7)
        gate.open.set()
        return await asyncio.gather(first, *others)

    results = asyncio.run(run())
    assert [rows.total.tolist() for rows in results] == [[108], [12], [24, 36], [48, 60, 72, 84]]
    assert all(rows.tokens is None for rows in results)
    assert gate.batches == [[9], [1, 2, 3, 4], [5, 6], [7]]
    assert counts == [1, 4, 2, 1]


def test_waiting_and_encoding_are_the_time_of_a_call(start):
    gate, spent = Gate(held=True), []
    batcher = start((1, 2), spent=lambda *seconds: spent.append(seconds))

    async def run():
        first = asyncio.create_task(batcher.encode(gate, [picture(9)]))
        await until(lambda: gate.entered == 1)
        second = asyncio.create_task(batcher.encode(gate, [picture(1), picture(2), picture(3)]))
        await until(lambda: batcher.num_waiting == 3)
        await asyncio.sleep(0.2)
        gate.open.set()
        await first
        await second

    asyncio.run(run())
    (waited, encoding), (waited_2, encoding_2) = spent
    assert encoding > 0.2 > waited >= 0, "the first is held while it is encoded"
    assert waited_2 > 0.2 > encoding_2 > 0, "the others wait for it, and are then encoded"


def test_an_error_reaches_only_its_own_caller(start):
    gate = Gate(held=True)
    batcher = start((4, 1))

    async def run():
        first = asyncio.create_task(batcher.encode(gate, [picture(9)]))
        await until(lambda: gate.entered == 1)
        callers = [
            asyncio.create_task(batcher.encode(gate, [picture(v) for v in values])) for values in ([1, 2], [66], [3])
        ]
        await until(lambda: batcher.num_waiting == 4)
        gate.open.set()
        await first
        return await asyncio.gather(*callers, return_exceptions=True)

    good, bad, other = asyncio.run(run())
    assert good.total.tolist() == [12, 24]
    assert other.total.tolist() == [36]
    assert isinstance(bad, ValueError) and "66" in str(bad)
    assert gate.batches == [[9], [1, 2, 66, 3], [1], [2], [66], [3]]
    assert asyncio.run(batcher.encode(gate, [picture(5)])).total.tolist() == [60], "it still works"


def test_pictures_of_cancelled_callers_are_not_encoded(start):
    gate = Gate(held=True)
    batcher = start([1])

    async def run():
        first = asyncio.create_task(batcher.encode(gate, [picture(1)]))
        await until(lambda: gate.entered == 1)
        gone, last = (asyncio.create_task(batcher.encode(gate, [picture(value)])) for value in (2, 3))
        await until(lambda: batcher.num_waiting == 2)
        gone.cancel()
        await asyncio.wait([gone])
        gate.open.set()
        await asyncio.gather(first, last)

    asyncio.run(run())
    assert gate.batches == [[1], [3]]


def test_closing_serves_queued_callers_and_refuses_later_ones():
    gate = Gate(held=True)
    batcher = Batcher([1])

    async def run():
        waiting = [asyncio.create_task(batcher.encode(gate, [picture(value)])) for value in (1, 2)]
        await until(lambda: gate.entered == 1 and batcher.num_waiting == 1)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        gate.open.set()
        await closing
        with pytest.raises(RuntimeError, match="the server is stopping"):
            await batcher.encode(gate, [picture(3)])
        return await asyncio.gather(*waiting)

    assert [rows.total.tolist() for rows in asyncio.run(run())] == [[12], [24]]


def test_pictures_for_different_models_are_not_mixed(start):
    gate, same, other = Gate(held=True), Gate(), Gate()
    same.model = gate.model
    batcher = start((1, 2, 4))

    async def run():
        first = asyncio.create_task(batcher.encode(gate, [picture(9)]))
        await until(lambda: gate.entered == 1)
        asked = ((gate, 1), (other, 2), (same, 3), (other, 4))
        callers = [asyncio.create_task(batcher.encode(encoder, [picture(value)])) for encoder, value in asked]
        await until(lambda: batcher.num_waiting == 4)
        gate.open.set()
        return [rows.total.tolist() for rows in await asyncio.gather(first, *callers)]

    assert asyncio.run(run()) == [[108], [12], [24], [36], [48]]
    assert (gate.batches, other.batches, same.batches) == ([[9], [1, 3]], [[2, 4]], [])

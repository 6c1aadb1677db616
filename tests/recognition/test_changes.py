"""When a product is shown, and when it is gone."""

from types import SimpleNamespace

import numpy as np
import pytest

from rice_jax.eval.calibration import Calibration
from rice_jax.recognition import changes as changes_module
from rice_jax.recognition.changes import CONFIRMED, LOST_SECONDS, WINDOW, changes
from rice_jax.recognition.engine import Engine, Frames, Match, Recognition
from rice_jax.recognition.follow import LiveFrame
from rice_jax.recognition.naming import Naming
from rice_jax.recognition.products import Products

NUM_PRODUCTS, NUM_FRAMES = 5, 10
NOTHING = NUM_PRODUCTS  # a picture of no product
LAG = 0.5  # seconds between a frame's time and its arrival


class FakeEngine(Engine):
    """Ranks by cosines of frames that are unit vectors; a picture is the number of its product."""

    def __init__(self):
        self.num_frames, self.naming, self.logit_scale = NUM_FRAMES, Naming(), 50.0
        self.calibration = Calibration(50.0, 30.0, 0.5, 100, NUM_FRAMES, "fake")
        self.index = SimpleNamespace(vectors=np.eye(NUM_PRODUCTS + 1, dtype=np.float32)[:NUM_PRODUCTS])

    def encode(self, pictures):
        return Frames(np.eye(NUM_PRODUCTS + 1, dtype=np.float32)[pictures], None)

    def products(self, gallery, where=None):
        return Products(np.arange(NUM_PRODUCTS), np.arange(NUM_PRODUCTS + 1))

    def rank(self, frames, gallery=None, top=5, time=0.0, where=None):
        mean = frames.features.mean(axis=0)
        cosines = self.index.vectors @ (mean / np.linalg.norm(mean))
        shares = self.calibration.probabilities(cosines, None, 0.5)
        best = np.argsort(-cosines, kind="stable")[:top].tolist()
        matches = tuple(Match(f"p{place}", "a", "", cosines[place], float(shares[place]), "") for place in best)
        return Recognition(time, matches, float(shares[-1]))


def frame(second: float, product: int, late: float = LAG) -> LiveFrame:
    return LiveFrame(second, second, second + late, np.int64(product))


def events(*parts, batch=1):
    """The events of a stream of parts, each a product and for how many seconds it is shown; a part of None is a cut."""
    second, batches = 0.0, [[]]
    for product, seconds in parts:
        for _ in range(int(seconds)):
            if product is None:
                batches.append([])
            elif len(batches[-1]) in (0, batch):
                batches.append([frame(second, product)])
            else:
                batches[-1].append(frame(second, product))
            second += 1.0

    def played():
        now = 0.0
        for each in batches:
            now = each[-1].arrived if each else now + 1.0
            times[0] = now
            yield each

    times = [0.0]
    return list(changes(played(), FakeEngine(), now=lambda: times[0], date=lambda: 1000.0 + times[0]))


def told(found):
    return [(event.event, event.product.id, event.second) for event in found]


def test_products_that_follow_one_another():
    found = events((NOTHING, 5), (0, 20), (1, 20), (NOTHING, 10))
    assert told(found) == [("shown", "p0", 4.5), ("gone", "p0", 24.5), ("shown", "p1", 24.5), ("gone", "p1", 44.5)]
    assert [event.reason for event in found] == [None, "changed", None, "changed"]
    assert [event.seconds for event in found] == [None, 20, None, 20]
    assert all(event.confidence > 0.9 and event.products[0] == event.product for event in found[::2])
    assert [event.date for event in found] == [1000 + event.second for event in found]


def test_a_few_frames_of_something_else_change_nothing():
    assert told(events((0, 20), (NOTHING, 2), (0, 20), (1, 2), (0, 20))) == [("shown", "p0", 0), ("gone", "p0", 63)]


def test_a_product_is_told_after_few_frames():
    def frames():
        for second in range(8):
            asked.append(second)
            yield [frame(float(second), 2)]

    asked = []
    assert next(changes(frames(), FakeEngine())).product.id == "p2"
    assert asked == list(range(CONFIRMED))


@pytest.mark.parametrize("batch", [1, 8])
def test_frames_that_come_together_are_told_apart(batch):
    found = events((0, 16), (1, 16), (2, 16), batch=batch)
    assert [(name, product) for name, product, _ in told(found)] == [
        ("shown", "p0"), ("gone", "p0"), ("shown", "p1"), ("gone", "p1"), ("shown", "p2"), ("gone", "p2")
    ]  # fmt: skip
    assert [event.second for event in found] == [0, 15.5, 15.5, 31.5, 31.5, 47]


def test_a_short_cut_leaves_the_product_and_a_long_one_loses_it():
    assert told(events((0, 10), (None, 10), (0, 10))) == [("shown", "p0", 0), ("gone", "p0", 29)]
    found = events((0, 10), (None, LOST_SECONDS + 2), (0, 10))
    assert told(found) == [("shown", "p0", 0), ("gone", "p0", 9), ("shown", "p0", 42), ("gone", "p0", 51)]
    assert [event.reason for event in found] == [None, "lost", None, "stopped"]


def test_a_product_is_lost_even_if_no_empty_batch_tells():
    batches = [[frame(float(second), 0)] for second in [*range(10), *range(100, 110)]]
    found = list(changes(batches, FakeEngine()))
    assert [event.event for event in found] == ["shown", "gone", "shown", "gone"]


def test_a_stream_without_frames_has_no_events():
    assert events((None, 100)) == [] == events((NOTHING, 100))


def test_nothing_grows(monkeypatch):
    lengths = []
    find = changes_module.products_over_time

    def watched(engine, times, frames, **options):
        lengths.append(len(times))
        return find(engine, times, frames, **options)

    monkeypatch.setattr(changes_module, "products_over_time", watched)
    found = events(*[(number % 2, 50) for number in range(6)])
    assert max(lengths) == WINDOW and len(found) == 12


def test_every_product_that_is_shown_is_gone():
    rng = np.random.default_rng(0)
    found = events(*[(int(product), int(seconds)) for product, seconds in rng.integers(1, 6, (60, 2))])
    shown = None
    for event in found:
        assert (event.event == "gone") == (shown is not None)
        assert shown is None or (event.product.id == shown.product.id and event.second >= shown.second)
        shown = event if event.event == "shown" else None
    assert shown is None and len(found) > 4
    assert [event.second for event in found] == sorted(event.second for event in found)

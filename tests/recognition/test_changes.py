"""When a product is shown, and when it is gone."""

from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest

from rice_jax.recognition import changes as changes_module
from rice_jax.recognition.changes import CONFIRMED, LOST_SECONDS, WINDOW, Changes, changes
from rice_jax.recognition.engine import Engine, Frames, Match
from rice_jax.recognition.follow import LiveFrame
from rice_jax.recognition.recognizer import Segment

NUM_PRODUCTS = 5
NOTHING = NUM_PRODUCTS  # a picture of no product
LAG = 0.5  # seconds between a frame's time and its arrival


class FakeModel:
    """Has frames in a space of its own."""


class FakeEngine(Engine):
    """Encodes pictures, which are the numbers of products, as unit vectors."""

    model = FakeModel()
    vectors = np.eye(NUM_PRODUCTS, NUM_PRODUCTS + 1, dtype=np.float32)
    index = SimpleNamespace(
        gallery_ids=["a"] * NUM_PRODUCTS,
        product_ids=[f"p{number}" for number in range(NUM_PRODUCTS)],
        embeddings=vectors.__getitem__,
    )

    def __init__(self):
        pass

    def encode(self, pictures):
        return Frames(np.eye(NUM_PRODUCTS + 1, dtype=np.float32)[pictures], None)


def parts_of(engine, times, frames, end, **_):
    """Each run of frames of one product is a part."""
    runs = [list(run) for _, run in groupby(range(len(times)), lambda place: int(frames.features[place].argmax()))]
    edges = [times[0], *((times[run[0] - 1] + times[run[0]]) / 2 for run in runs[1:]), end]
    parts = []
    for place, run in enumerate(runs):
        number = int(frames.features[run[0]].argmax())
        match = Match(f"p{number}", "a", "", 0.9, 0.95, "")
        product = None if number == NOTHING else match
        parts.append(Segment(edges[place], edges[place + 1], product, 0.95, (match,), slice(run[0], run[-1] + 1)))
    return parts


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """The numbers of frames in which parts have been searched."""
    lengths = []

    def find(engine, times, frames, **options):
        lengths.append(len(times))
        return parts_of(engine, times, frames, **options)

    monkeypatch.setattr(changes_module, "products_over_time", find)
    return lengths


def frame(second: float, product: int, late: float = LAG) -> LiveFrame:
    return LiveFrame(second, second, second + late, np.int64(product))


def events(*parts, batch=1, ahead=lambda now: 0.0):
    """The events of a stream of parts, each a product and for how many seconds it is shown; a part of None is a cut.

    The wall clock may be ahead at some times.
    """
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
    return list(changes(played(), FakeEngine(), now=lambda: times[0], date=lambda: 1000.0 + times[0] + ahead(times[0])))


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


def test_a_product_is_not_lost_between_frames_that_come_slowly():
    times = [40.0 * place for place in range(10)]
    batches = [[], *([frame(time, int(time >= 200), late=0.0)] for time in times), [], []]
    clock, now = [0.0, *times, times[-1] + 79, times[-1] + 81], [0.0]

    def played():
        for now[0], batch in zip(clock, batches, strict=True):
            yield batch

    found = list(changes(played(), FakeEngine(), interval_seconds=40.0, now=lambda: now[0]))
    assert told(found) == [("shown", "p0", 0), ("gone", "p0", 180), ("shown", "p1", 180), ("gone", "p1", 360)]
    assert found[-1].reason == "lost"


def test_a_product_is_lost_even_if_no_empty_batch_tells():
    batches = [[frame(float(second), 0)] for second in [*range(10), *range(100, 110)]]
    found = list(changes(batches, FakeEngine()))
    assert [event.event for event in found] == ["shown", "gone", "shown", "gone"]


def test_a_stream_without_frames_has_no_events():
    assert events((None, 100)) == [] == events((NOTHING, 100))


def test_nothing_grows(parts):
    assert len(events(*[(number % 2, 50) for number in range(6)])) == 12
    assert parts == [*range(1, WINDOW), *[WINDOW] * (301 - WINDOW)]


def test_a_change_that_later_frames_revise_is_told_once(monkeypatch):
    """Later frames move the beginning of a part, which is then no news."""
    whole, moved = Match("p0", "a", "", 0.9, 0.9, ""), Match("p1", "a", "", 0.9, 0.9, "")

    def find(engine, times, frames, end, **_):
        begin = {14: 10, 15: 12, 16: 9}.get(len(times), 11 if len(times) > 13 else len(times))
        parts = [Segment(0.0, float(begin), whole, 0.9, (whole,), slice(0, begin))]
        if begin < len(times):
            parts.append(Segment(float(begin), end, moved, 0.9, (moved,), slice(begin, len(times))))
        return parts

    monkeypatch.setattr(changes_module, "products_over_time", find)
    assert told(events((0, 30))) == [("shown", "p0", 0), ("gone", "p0", 10), ("shown", "p1", 10), ("gone", "p1", 29)]


def test_a_product_that_later_frames_revise_has_a_date_of_its_own(monkeypatch):
    """Events of one kind would otherwise be taken for one that has arrived twice."""

    def find(engine, times, frames, end, **_):
        match = Match(f"p{len(times) % 2}", "a", "", 0.9, 0.9, "")
        return [Segment(0.0, end, match, 0.9, (match,), slice(0, len(times)))]

    monkeypatch.setattr(changes_module, "products_over_time", find)
    alike = np.ones((NUM_PRODUCTS, NUM_PRODUCTS + 1), np.float32)
    monkeypatch.setattr(FakeEngine.index, "embeddings", alike.__getitem__)
    found = events((0, 10))
    assert {event.reason for event in found[1:-1:2]} == {"corrected"}
    assert len(found) == 16 and {event.second for event in found[:-1]} == {0.0}
    assert len({(event.event, f"{event.date:.3f}") for event in found}) == len(found)
    assert [event.date for event in found] == sorted(event.date for event in found)
    assert found[-1].date == 1000 + found[-1].second


@pytest.mark.parametrize(("gap", "seconds"), [(0, 8), (NOTHING, 0), (2, 0)])
def test_a_part_that_is_given_to_another_product_is_divided(monkeypatch, gap, seconds):
    """With `name_always`, a gap is first named by what it is most like, and then joined with the product after it."""

    def find(engine, times, frames, end, **_):
        match = Match("p1" if len(times) > 10 else "p0", "a", "", 0.9, 0.9, "")
        return [Segment(times[0], end, match, 0.9, (match,), slice(0, len(times)))]

    monkeypatch.setattr(changes_module, "products_over_time", find)
    found = events((gap, 8), (1, 20))
    turn = 7.5 if seconds else 0
    assert told(found) == [("shown", "p0", 0), ("gone", "p0", turn), ("shown", "p1", turn), ("gone", "p1", 27)]
    assert found[1].reason == ("changed" if seconds else "corrected") and found[1].seconds == turn


def test_a_product_that_has_left_the_index_is_gone(monkeypatch):
    def find(engine, times, frames, end, **_):
        match = Match("p1" if len(times) > 10 else "old", "a", "", 0.9, 0.9, "")
        return [Segment(times[0], end, match, 0.9, (match,), slice(0, len(times)))]

    monkeypatch.setattr(changes_module, "products_over_time", find)
    assert told(events((0, 20)))[1:3] == [("gone", "old", 0), ("shown", "p1", 0)]


def test_a_product_that_is_gone_is_told_as_it_was_at_last(monkeypatch):
    def find(engine, times, frames, end, **_):
        match = Match("p0", "a", f"title {len(times)}", len(times) / 100, None, "")
        return [Segment(times[0], end, match, len(times) / 100, (match,), slice(0, len(times)))]

    monkeypatch.setattr(changes_module, "products_over_time", find)
    shown, gone = events((0, 20))
    assert shown.product.title == "title 3" and shown.product == shown.products[0]
    assert gone.product.title == "title 20" and gone.product == gone.products[0] and gone.confidence == 0.2


def test_another_model_begins_anew_and_the_product_stays(parts):
    engines = [FakeEngine(), FakeEngine()]
    engines[1].model = FakeModel()
    found = Changes(now=lambda: 0.0, date=lambda: 0.0)
    events = []
    for second in range(30):
        batch = [frame(float(second), 0 if second < 25 else 1)]
        engine = engines[second >= 10]
        events += found.add(engine, batch, engine.encode(np.stack([own.picture for own in batch])))
    assert told(events) == [("shown", "p0", 0), ("gone", "p0", 24.5), ("shown", "p1", 24.5)]
    assert parts == [*range(1, 11), *range(1, 21)]
    assert told(found.end()) == [("gone", "p1", 29)]


def test_every_product_that_is_shown_is_gone():
    rng = np.random.default_rng(0)
    found = events(*[(int(product), int(seconds)) for product, seconds in rng.integers(1, 6, (200, 2))])
    shown = None
    for event in found:
        assert (event.event == "gone") == (shown is not None)
        assert shown is None or (event.product.id == shown.product.id and event.second >= shown.second)
        shown = event if event.event == "shown" else None
    assert shown is None and len(found) > 4
    assert [event.second for event in found] == sorted(event.second for event in found)


def test_dates_ascend_if_a_sender_is_faster_than_time():
    """All frames arrive at once, so that each later one was on air earlier than it seemed before."""
    batches = [[LiveFrame(float(second), 20.0, 20.0, np.int64(second // 10))] for second in range(40)]
    found = list(changes(batches, FakeEngine(), now=lambda: 20.0, date=lambda: 1020.0))
    dates = [event.date for event in found]
    assert len(found) == 8 and dates == sorted(dates) and dates[0] < 1020.0


@pytest.mark.parametrize(("seconds", "follows"), [(3600.0, True), (60.0, False)])
def test_dates_follow_a_clock_that_is_put_right(caplog, seconds, follows):
    """A small step back is waited for, so that dates ascend."""
    found = events((0, 10), (1, 10), (2, 10), (3, 40), (4, 10), ahead=lambda now: seconds * (10 < now < 20))
    dates, right = [event.date for event in found], [1000 + event.second for event in found]
    assert dates[0] == right[0] and dates[1:3] == [date + seconds for date in right[1:3]]
    assert (dates[3:] == right[3:]) == follows and (dates == sorted(dates)) == (not follows)
    assert len(caplog.records) == follows and ("behind the latest event" in caplog.text) == follows

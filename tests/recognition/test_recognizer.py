"""Frames of a stream, and whole videos."""

import dataclasses
import threading

import numpy as np
import pytest

from rice_jax.recognition import engine as engine_module
from rice_jax.recognition import recognizer as recognizer_module
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.recognizer import Recognizer, encode_video, products_over_time
from rice_jax.recognition.stream import Stream
from rice_jax.recognition.timeline import Span
from rice_jax.recognition.video import Frame, read_video
from rice_jax.types import DataError
from tests.shop import NUM_FRAMES, png, write_mp4, write_products


@pytest.fixture(scope="module")
def engine(live_shop):
    return Engine(live_shop.directory, batch_sizes=(4,))


@pytest.fixture(scope="module")
def matching(live_shop):
    return Engine(live_shop.directory, rerank=3, batch_sizes=(4,))


@pytest.fixture(scope="module")
def used(live_shop):
    return Recognizer(live_shop.directory, top=3)


@pytest.fixture
def recognizer(used):
    """With an empty window."""
    used._stream = Stream(NUM_FRAMES)
    return used


def test_pushed_frames_rank_as_a_clip_of_the_last(recognizer, engine, live_shop, programs):
    pictures = [live_shop.pictures[row] for row in (0, 1, 2, 2, 9, 2)]
    for time, picture in enumerate(pictures):
        found = recognizer.push(picture if time % 2 else png(picture), float(time))
        last = pictures[max(0, time + 1 - NUM_FRAMES) : time + 1]
        clip = engine.encode(np.stack([engine.prepare(own) for own in last]))
        expected = engine.rank(clip, top=3)
        assert found.time == time and len(found.products) == 3
        assert [match.id for match in found.products] == [match.id for match in expected.products]
        scores = [[match.score for match in ranked.products] for ranked in (found, expected)]
        np.testing.assert_allclose(*scores, atol=1e-5)
    assert not programs, "nothing is compiled after the constructor"


def test_a_second_frame_of_an_interval_is_not_encoded(recognizer, live_shop, monkeypatch):
    first = recognizer.push(live_shop.pictures[2], 0.0)
    monkeypatch.setattr(recognizer.engine, "encode", None)
    assert recognizer.push(live_shop.pictures[3], 0.4) == first


def test_a_later_frame_does_not_wait_and_a_late_one_finds_its_place(recognizer, live_shop, monkeypatch):
    encode, started, go_on = recognizer.engine.encode, threading.Event(), threading.Event()

    def encode_slowly(pictures):
        if threading.current_thread() is slow:
            started.set()
            assert go_on.wait(20)
        return encode(pictures)

    monkeypatch.setattr(recognizer.engine, "encode", encode_slowly)
    late = []
    slow = threading.Thread(target=lambda: late.append(recognizer.push(live_shop.pictures[0], 1.0)))
    slow.start()
    assert started.wait(20)
    soon = recognizer.push(live_shop.pictures[3], 2.0)
    assert soon.products[0].id == "p3" and not late
    go_on.set()
    slow.join()
    assert late[0].time == 2.0, "it is ranked together with the later one"
    recognizer._stream = Stream(NUM_FRAMES)
    recognizer.push(live_shop.pictures[0], 1.0)
    assert late[0] == recognizer.push(live_shop.pictures[3], 2.0), "as if it had come in time"


def test_a_broken_frame_leaves_the_window_as_it_was(recognizer, live_shop):
    with pytest.raises(DataError, match="cannot be decoded"):
        recognizer.push(b"no picture", 0.0)
    assert recognizer.push(live_shop.pictures[1], 0.5).products[0].id == "p1"


def test_a_stream_of_no_gallery(live_shop):
    with pytest.raises(DataError, match="no gallery 'nowhere'"):
        Recognizer(live_shop.directory, gallery="nowhere")


@pytest.fixture(scope="module")
def video(live_shop, tmp_path_factory):
    pictures = [live_shop.pictures[row] for row in (1, 10, 5)]
    return write_mp4(tmp_path_factory.mktemp("video") / "video.mp4", pictures, 9)


def test_the_products_of_a_video(engine, video, programs):
    times, frames = encode_video(engine, read_video(video), 4)
    first, gap, last = products_over_time(engine, times, frames)
    assert not programs
    assert [first.product.id, gap.product, last.product.id] == ["p1", None, "p5"], "the second is not in the index"
    assert (first.start, first.end, gap.end, last.end) == (0, 8.5, 17.5, 27)
    assert first.product.confidence == first.confidence > 0.9 and gap.confidence > 0.9
    assert [len(part.products) for part in (first, gap, last)] == [5, 5, 5]


def test_images_of_one_product_make_one_part(live_shop, tmp_path, monkeypatch):
    products = [*["mug"] * 3, *["sofa"] * 3, "p6", "p7"]
    # A fresh model's embeddings are all alike, and these images of a product no more so than those of two.
    monkeypatch.setattr(engine_module, "SHARPNESS", 100.0)
    calibration = dataclasses.replace(live_shop.index.about.calibration, threshold=0.942)
    about = dataclasses.replace(live_shop.index.about, calibration=calibration)
    several = Engine(write_products(live_shop, tmp_path, products, about=about), batch_sizes=(4,))
    film = write_mp4(tmp_path / "video.mp4", [live_shop.pictures[row] for row in (1, 2, 10, 5)], 9)
    times, frames = encode_video(several, read_video(film), 4)
    first, gap, last = products_over_time(several, times, frames)
    assert [first.product.id, gap.product, last.product.id] == ["mug", None, "sofa"]
    assert (first.start, first.end, gap.end, last.end) == (0, 17.5, 26.5, 36)
    assert last.product.image_id == "p5" and first.product.image_id in ("p0", "p1", "p2")


def test_the_products_of_another_gallery(engine, video):
    times, frames = encode_video(engine, read_video(video), 4)
    [part] = products_over_time(engine, times, frames, gallery="b", top=1)
    assert part.product is None and part.products[0].gallery == "b"


@pytest.mark.parametrize("which", ["engine", "matching"])
def test_a_part_is_a_clip(which, video, request):
    engine = request.getfixturevalue(which)
    times, frames = encode_video(engine, read_video(video), 4)
    for part in products_over_time(engine, times, frames, top=2):
        ranked = engine.rank(frames.take(part.frames), top=2)
        assert part.products == ranked.products
        assert part.product in (None, ranked.product), "it is named only where a clip of its frames is"
        if part.product:
            assert (part.product, part.confidence) == (ranked.products[0], ranked.products[0].confidence)
        else:
            assert part.confidence == ranked.none


def test_neighbors_with_one_product_are_merged(engine, video, monkeypatch):
    """Whatever rows the path gave them."""
    cut = [(0.0, 4.0, 7), (4.0, 8.5, 3), (8.5, 12.0, None), (12.0, 17.5, None), (17.5, 27.0, 2)]
    edges = [0, 4, 9, 12, 18, 27]
    spans = [Span(*part, slice(*edges[place : place + 2])) for place, part in enumerate(cut)]
    monkeypatch.setattr(recognizer_module, "timeline", lambda *_, **__: spans)
    times, frames = encode_video(engine, read_video(video), 4)
    parts = products_over_time(engine, times, frames)
    assert [(part.start, part.end, part.product and part.product.id) for part in parts] == [
        (0, 8.5, "p1"), (8.5, 17.5, None), (17.5, 27, "p5")
    ]  # fmt: skip
    assert [part.frames for part in parts] == [slice(0, 9), slice(9, 18), slice(18, 27)]


def test_a_broken_frame_of_a_video_is_named(engine, live_shop):
    video = [Frame(0.0, live_shop.pictures[0]), Frame(2.5, b"no picture")]
    with pytest.raises(DataError, match="frame at second 2.5: a picture of 10 bytes cannot be decoded"):
        encode_video(engine, iter(video), 4)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_broken_frames_are_left_out_counted_and_named(engine, live_shop, tmp_path, caplog, batch_size):
    (tmp_path / "0003.png").write_bytes(png(live_shop.pictures[0])[:60])
    whole = [Frame(float(time), live_shop.pictures[time]) for time in range(4)]
    broken = [Frame(1.25, tmp_path / "0003.png"), Frame(1.5, tmp_path / "nowhere.png"), Frame(1.75, b"")]
    times, frames = encode_video(engine, [*whole[:2], *broken, *whole[2:]], batch_size)
    expected_times, expected = encode_video(engine, whole, batch_size)
    assert times == expected_times == [0, 1, 2, 3]
    np.testing.assert_allclose(frames.features, expected.features, atol=1e-5)
    for text in (
        f"frame at second 1.25: {tmp_path / '0003.png'} cannot be decoded: ",
        f"second 1.5: [Errno 2] No such file or directory: '{tmp_path / 'nowhere.png'}'; it is left out",
        "second 1.75: a picture of 0 bytes cannot be decoded: it is empty",
        "3 of 7 frames cannot be decoded",
    ):
        assert text in caplog.text
    with pytest.raises(DataError, match="3 of 5 frames cannot be decoded; the last of them: frame at second 1.75"):
        encode_video(engine, [*whole[:2], *broken], batch_size)


def test_a_stream_that_restarts_shows_what_is_shown_now(recognizer, live_shop):
    for time in range(100, 120):
        recognizer.push(live_shop.pictures[1], float(time))
    found = [recognizer.push(live_shop.pictures[5], float(time)) for time in range(3)]
    assert [ranked.products[0].id for ranked in found] == ["p5"] * 3 and [ranked.time for ranked in found] == [0, 1, 2]
    assert [ranked.restarted for ranked in found] == [True, False, False]


def test_what_is_an_hour_old_is_not_shown_now(recognizer, live_shop):
    for time in range(10):
        recognizer.push(live_shop.pictures[1], float(time))
    found = recognizer.push(live_shop.pictures[5], 3600.0)
    assert found.products[0].id == "p5" and found.restarted
    back = recognizer.push(live_shop.pictures[1], 10.0)
    assert back.products[0].id == "p1" and back.time == 10 and not back.restarted, "the time was a stray one"

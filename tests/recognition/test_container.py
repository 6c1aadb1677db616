"""Video files of all kinds, as a player shows them."""

import inspect
import re
import struct
import types
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rice_jax.recognition import container
from rice_jax.recognition.container import Reading, VideoLimits, VideoTooLarge
from rice_jax.recognition.video import read_video
from rice_jax.types import DataError
from tests.shop import SIDE, draw

RED, BLUE = (np.full((SIDE, SIDE, 3), color, np.uint8) for color in ([200, 0, 0], [0, 0, 200]))
MILLISECOND = Fraction(1, 1000)


def write(path: Path, pictures, times=None, codec="mpeg4", rate=10, sound: float | None = None, **options) -> Path:
    """Writes a video of which each picture has its time in seconds; sound, if any, is a second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuvj420p" if codec == "mjpeg" else "yuv420p", 500_000
        if times is not None:
            stream.codec_context.time_base = MILLISECOND
        if sound is not None:
            silence = container.add_stream("aac", rate=8000, layout="mono")
        for place, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[place] * 1000), MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            for place in range(8):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.rate, frame.pts, frame.time_base = 8000, round(sound * 8000) + 1024 * place, Fraction(1, 8000)
                container.mux(silence.encode(frame))
            container.mux(silence.encode())
    return path


def remux(source: Path, path: Path, change) -> Path:
    """Copies a video; `change(place, packet)` may change a packet, or return other packets instead of it."""
    with av.open(str(source)) as container, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        for place, packet in enumerate(packet for packet in container.demux(video=0) if packet.size):
            changed = change(place, packet)
            changed = packet if changed is None else changed
            changed.stream = stream
            copy.mux(changed)
    return path


def broken(packet):
    """The packet with bytes that mean nothing."""
    copy = av.Packet(b"\xff" * packet.size)
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    return copy


def colors(path, interval=1.0, **settings):
    """The times of the pictures by color, and what was found out."""
    reading, found = Reading(), {"red": [], "blue": [], "other": []}
    for time, picture in read_video(path, interval, reading, **settings):
        near = [
            name for name, color in (("red", RED), ("blue", BLUE)) if np.abs(picture - color.astype(float)).mean() < 20
        ]
        found[near[0] if near else "other"].append(round(time, 6))
    return found, reading


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "flv", "mov"])
def test_a_tenth_of_a_second_is_exact(tmp_path, suffix):
    path = write(tmp_path / f"video.{suffix}", [RED] * 20 + [BLUE] * 20, codec="flv" if suffix == "flv" else "mpeg4")
    found, reading = colors(path, 0.1)
    np.testing.assert_allclose(found["red"], np.arange(20) / 10, atol=1e-6)
    np.testing.assert_allclose(found["blue"], 2 + np.arange(20) / 10, atol=1e-6)
    assert reading.end == pytest.approx(4) and not reading.warnings


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_picture_stays_until_the_next(tmp_path, suffix):
    times = [0, 0.1, 0.2, 6, 6.1, 6.2]
    found, reading = colors(write(tmp_path / f"video.{suffix}", [RED] * 3 + [BLUE] * 3, times))
    assert found == {"red": [0, 1, 2, 3, 4, 5], "blue": [6], "other": []}
    assert reading.end == pytest.approx(6.3, abs=0.1) and not reading.warnings


def test_an_interval_beyond_the_end(tmp_path):
    found, reading = colors(write(tmp_path / "video.mp4", [RED] * 23), 1000.0)
    assert found["red"] == [0] and reading.end == pytest.approx(2.3)


def test_a_picture_that_begins_after_the_sound(tmp_path):
    path = write(tmp_path / "video.mp4", [RED] * 20, [3 + place / 10 for place in range(20)], sound=0.0)
    found, reading = colors(path)
    assert found["red"] == [3, 4] and reading.end == pytest.approx(5, abs=0.11)


@pytest.mark.parametrize("jump", [-2, -1, 3600])
def test_a_restarted_stream_loses_and_invents_nothing(tmp_path, jump):
    first, second = (tmp_path / name for name in ("1.ts", "2.ts"))
    for path, picture, start in ((first, RED, 3.0), (second, BLUE, 5.0 + jump)):
        write(path, [picture] * 20, [start + place / 10 for place in range(20)])
    path = tmp_path / "jump.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    found, reading = colors(path)
    assert found["red"] == [0, 1] and found["blue"] == pytest.approx([2, 3], abs=0.1) and not found["other"]
    assert reading.end == pytest.approx(4, abs=0.2)
    [warning] = reading.warnings
    assert re.fullmatch(
        rf"its clock jumps {'back' if jump < 0 else 'ahead'} by [0-9.]+ seconds at second (1.9|2.0); "
        "the jump is left out",
        warning,
    )


def test_a_bare_stream_has_its_own_rate(tmp_path):
    found, reading = colors(write(tmp_path / "video.h264", [RED] * 100 + [BLUE] * 50, codec="libx264", rate=50))
    assert found == {"red": [0, 1], "blue": [2], "other": []} and reading.end == pytest.approx(3)


def test_a_rate_that_no_video_has_means_nothing(tmp_path):
    path = write(tmp_path / "video.avi", [RED] * 25 + [BLUE] * 25, codec="mjpeg")
    movie = path.read_bytes()
    rate = movie.index(b"strh") + 28
    path.write_bytes(movie[:rate] + struct.pack("<II", 100_000, 1) + movie[rate + 8 :])
    found, reading = colors(path)
    assert found == {"red": [0], "blue": [1], "other": []} and reading.end == pytest.approx(2)


def test_the_end_does_not_depend_on_how_far_the_pictures_are_reordered(tmp_path):
    pictures = [RED, RED, BLUE, BLUE]
    _, reading = colors(write(tmp_path / "slides.mkv", pictures, codec="libx264", rate=Fraction(1, 10), bf="3"))
    assert reading.end == pytest.approx(40)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("rate", [10, 1])
def test_an_avi_holds_no_times_of_reordered_pictures(tmp_path, codec, rate):
    pictures = [RED] * 20 + [BLUE] * 20
    found, reading = colors(write(tmp_path / "video.avi", pictures, codec=codec, rate=rate, bf="3"), 1 / rate)
    np.testing.assert_allclose(found["red"] + found["blue"], np.arange(40) / rate, atol=1e-6)
    assert len(found["red"]) == 20 and reading.end == pytest.approx(40 / rate) and not reading.warnings


def test_a_cover_is_no_video(tmp_path):
    film, cover = write(tmp_path / "film.mkv", [BLUE] * 20), write(tmp_path / "cover.mkv", [RED], codec="mjpeg")
    with av.open(str(film)) as video, av.open(str(cover)) as picture, av.open(str(tmp_path / "both.mkv"), "w") as both:
        sources = picture.streams.video[0], video.streams.video[0]
        streams = [both.add_stream_from_template(source) for source in sources]
        streams[0].disposition = av.stream.Disposition.attached_pic
        streams[1].disposition = av.stream.Disposition.default
        for source, stream in zip((picture, video), streams, strict=True):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    both.mux(packet)
    found, _ = colors(tmp_path / "both.mkv")
    assert found == {"red": [], "blue": [0, 1], "other": []}


@pytest.mark.parametrize("name", ["2024-11-28T20:15:03.mp4", "live:7.mp4", "file:x.mp4", "100% %d.mp4"])
def test_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "video.mp4", [RED]).rename(tmp_path / name)
    assert colors(name)[0]["red"] == [0]


@pytest.mark.parametrize("suffix, codec", [("mkv", "libx264"), ("webm", "libvpx-vp9"), ("mp4", "libx264")])
def test_a_damaged_packet_is_skipped_and_counted(tmp_path, suffix, codec):
    options = {"g": "10", "bf": "0"} if codec == "libx264" else {"g": "10", "lag-in-frames": "0", "cpu-used": "8"}
    whole = write(tmp_path / f"whole.{suffix}", [RED] * 20 + [BLUE] * 20, codec=codec, **options)
    path = remux(whole, tmp_path / f"damaged.{suffix}", lambda place, packet: broken(packet) if place == 12 else None)
    found, reading = colors(path)
    assert (found["red"], found["blue"]) == ([0, 1], [2, 3]) and reading.end == pytest.approx(4)
    assert re.match(r"[1-9] of 40 packets (is|are) damaged, the first at second 1\.", reading.warnings[0])


def test_a_video_whose_first_pictures_are_damaged_begins_with_them(tmp_path):
    whole = write(tmp_path / "whole.mkv", [RED] * 20 + [BLUE] * 20, codec="libx264", g="10", bf="0")
    path = remux(whole, tmp_path / "damaged.mkv", lambda place, packet: broken(packet) if place == 0 else None)
    found, reading = colors(path)
    assert (found["red"], found["blue"]) == ([1], [2, 3]) and reading.end == pytest.approx(4)


def test_of_a_video_most_of_which_is_damaged_nothing_is_known(tmp_path):
    whole = write(tmp_path / "whole.mkv", [RED] * 20, codec="libx264", g="1", bf="0")
    path = remux(whole, tmp_path / "damaged.mkv", lambda place, packet: broken(packet) if place > 5 else None)
    with pytest.raises(
        DataError, match=r"damaged.mkv: cannot be decoded: 1[0-9] of 20 packets are damaged, the first at second"
    ):
        list(read_video(path))


def test_a_codec_that_is_unknown(tmp_path):
    path = write(tmp_path / "x.mp4", [RED], codec="libx264")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"none"))
    with pytest.raises(DataError, match="x.mp4: its codec is unknown"):
        list(read_video(path, 1.0))


def test_a_stream_that_begins_later_ends_no_video():
    def demux():  # what PyAV does then, depending on what the memory beyond an array holds
        yield "packet"
        raise IndexError("list index out of range")

    read = inspect.unwrap(container._demux)  # without the check of its arguments' types
    assert list(read(types.SimpleNamespace(demux=demux), container._Packets(), None)) == ["packet"]


@pytest.mark.parametrize("suffix", ["mkv", "avi", "flv"])
def test_a_cut_video_says_that_it_ends_early(tmp_path, suffix):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8) for _ in range(100)]
    path = write(tmp_path / f"video.{suffix}", noise, codec="flv" if suffix == "flv" else "mpeg4")
    path.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
    _, reading = colors(path)
    assert 5 < reading.end < 9
    assert "its header announces 10.0 seconds, but the file holds" in reading.warnings[-1]


def test_warnings_are_logged_where_nobody_collects_them(tmp_path, caplog):
    path = write(tmp_path / "video.avi", [draw(place) for place in range(100)])
    path.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
    list(read_video(path))
    assert "video.avi: its header announces 10.0 seconds" in caplog.text


def test_sizes_are_looked_at_before_pictures_are_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "video.mp4", [np.zeros((64, 128, 3), np.uint8)] * 3)
    assert len(list(read_video(path, limits=VideoLimits(pixels=64 * 128, side=128)))) == 1
    monkeypatch.setattr(av.Packet, "decode", None, raising=False)
    for limits in (VideoLimits(pixels=64 * 128 - 1), VideoLimits(side=127)):
        with pytest.raises(VideoTooLarge, match="128 × 64 pixels"):
            list(read_video(path, limits=limits))


def test_pictures_between_two_that_are_looked_at_are_limited(tmp_path):
    path = write(tmp_path / "video.mkv", [RED] * 50, [place / 1000 for place in range(50)], rate=1000)
    pixels = SIDE * SIDE
    assert len(list(read_video(path, limits=VideoLimits(work=50 * pixels)))) == 1
    with pytest.raises(VideoTooLarge, match="pixels for a second"):
        list(read_video(path, limits=VideoLimits(work=40 * pixels)))
    assert len(list(read_video(path, 0.01, limits=VideoLimits(work=40 * pixels)))) == 5


def test_the_time_of_decoding_is_limited(tmp_path):
    path = write(tmp_path / "video.mkv", [RED] * 50)
    with pytest.raises(VideoTooLarge, match="0 seconds of decoding for a picture"):
        list(read_video(path, limits=VideoLimits(seconds=0.0)))


def test_only_the_given_formats_are_read(tmp_path):
    path = write(tmp_path / "video.mkv", [RED])
    assert colors(path, limits=VideoLimits(formats="matroska,webm"))[0]["red"] == [0]
    with pytest.raises(DataError, match="cannot be decoded"):
        colors(path, limits=VideoLimits(formats="mov,mp4"))

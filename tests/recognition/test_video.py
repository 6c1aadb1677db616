"""Frames of videos, directories and lists."""

import struct

import numpy as np
import pytest

from rice_jax.recognition.video import read_video
from rice_jax.types import DataError
from tests.shop import draw, png, write_mp4

# Of a track's header in an mp4, 16.16 fixed point; as a camera that is held upright turns its picture.
STRAIGHT = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
TURNED = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # a quarter, clockwise


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return write_mp4(tmp_path_factory.mktemp("video") / "video.mp4", [draw(1), draw(2)], 3)


def likeness(picture, other):
    return np.abs(picture.astype(float) - other).mean()


@pytest.mark.parametrize("interval, times", [(1.0, [0, 1, 2, 3, 4, 5]), (2.5, [0, 2.5, 5]), (60.0, [0])])
def test_an_interval_gives_one_frame(mp4, interval, times):
    frames = list(read_video(mp4, interval))
    np.testing.assert_allclose([frame.time for frame in frames], times)
    for frame in frames:
        assert likeness(frame.picture, draw(1 if frame.time < 3 else 2)) < 15 < likeness(frame.picture, draw(3))


def test_intervals_below_a_frame_give_every_frame(mp4):
    np.testing.assert_allclose([frame.time for frame in read_video(mp4, 0.01)], np.arange(60) / 10)


def test_a_picture_stands_upright(mp4, tmp_path):
    movie = mp4.read_bytes()
    track = movie.index(STRAIGHT, movie.index(b"tkhd"))
    (tmp_path / "turned.mp4").write_bytes(movie[:track] + TURNED + movie[track + len(TURNED) :])
    [turned] = read_video(tmp_path / "turned.mp4", 60.0)
    assert likeness(turned.picture, np.rot90(draw(1), -1)) < 15 < likeness(turned.picture, np.rot90(draw(1)))


def test_a_directory_is_read_by_name(tmp_path):
    for name in ("b.png", "a.PNG", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "notes.md").write_text("no frame")
    assert list(read_video(tmp_path, 2.0)) == [
        (0, tmp_path / "a.PNG"), (2, tmp_path / "b.png"), (4, tmp_path / "c.jpg")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ["frame_1", "frame_2", "frame_9", "frame_10", "frame_11"],
        ["0001", "0002", "0010", "0100"],
        ["0.0", "0.25", "0.5", "0.75", "1.0", "1.25", "10.0"],
        ["v1.9.1", "v1.10.1", "v1.10.2", "v1.10.10"],
        ["clip_0", "clip_500", "clip_1000", "clip_12500"],
        ["a 2 of 10", "a 10 of 10", "b 1 of 2"],
        ["1667916122888123456", "1667916122888123457", "1667916122888123458"],
        ["x", "x1", "x 1"],
    ],
)
def test_frames_of_a_directory_are_in_the_order_of_their_numbers(tmp_path, names):
    for name in reversed(names):
        (tmp_path / f"{name}.jpg").touch()
    assert [frame.picture.stem for frame in read_video(tmp_path)] == names


def test_what_systems_put_beside_frames_is_left_out(tmp_path):
    for name in ("1.jpg", "._1.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    (tmp_path / "@eaDir" / "1.jpg").mkdir(parents=True)
    assert list(read_video(tmp_path)) == [(0, tmp_path / "1.jpg")]


def test_a_list_is_read_in_its_order(tmp_path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(png(draw(int(name[0]))))
    for encoding, newline in (("utf-8", "\n"), ("utf-8-sig", "\r\n")):
        text = f"2.png{newline}{newline}{tmp_path}/1.png{newline}"
        (tmp_path / "list.txt").write_bytes(text.encode(encoding))
        assert list(read_video(tmp_path / "list.txt")) == [(0, tmp_path / "2.png"), (1, tmp_path / "1.png")]


def test_a_damaged_video_says_how_far_it_came(mp4, tmp_path):
    (tmp_path / "half.mp4").write_bytes(mp4.read_bytes()[: mp4.stat().st_size // 2])
    with pytest.raises(DataError, match=r"half.mp4: cannot be decoded: .*; expected a video"):
        list(read_video(tmp_path / "half.mp4"))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.mp4", None, "does not exist"),
        ("https://shop/video.mp4", None, "video.mp4: is a URL; expected the path of a video"),
        ("text.mp4", b"no video", "cannot be decoded"),
        ("empty.mp4", b"", "cannot be decoded"),
        ("empty.txt", b"\n", "is empty"),
        ("list.txt", b"\nno.jpg\n", r"list.txt:2: found 'no.jpg', which is not a file"),
        ("binary.txt", b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_video(name if "://" in name else tmp_path / name))


def test_no_frames_and_no_interval(tmp_path, mp4):
    with pytest.raises(DataError, match="found no frame, expected files that end in"):
        list(read_video(tmp_path))
    with pytest.raises(DataError, match="interval_seconds: found 0.0, expected more than 0"):
        list(read_video(mp4, 0.0))


def test_a_sound_is_no_video(tmp_path):
    import av

    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="found no video stream"):
        list(read_video(tmp_path / "sound.mp4"))

"""Pictures as a player shows them."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import ExifTags, Image, ImageOps

from rice_jax.recognition.display import BT2020, HLG, PQ, display
from rice_jax.recognition.video import read_video
from tests.recognition.test_video import STRAIGHT, likeness
from tests.shop import SIDE, draw, write_mp4

BT709 = 1
# Each matrix as a player is to apply it: (x, y) is shown at (a x + c y, b x + d y); and the same with NumPy.
MATRICES = {
    (1, 0, 0, 1): lambda picture: picture,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (-1, 0, 0, -1): lambda picture: np.rot90(picture, 2),
    (0, 1, -1, 0): lambda picture: np.rot90(picture, -1),
    (0, -1, 1, 0): lambda picture: np.rot90(picture, 1),
    (0, 1, 1, 0): lambda picture: picture.swapaxes(0, 1),
    (0, -1, -1, 0): lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
}


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return write_mp4(tmp_path_factory.mktemp("video") / "video.mp4", [draw(1)[:, :32]], 1)


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_picture_is_turned_and_mirrored(mp4, tmp_path, matrix):
    movie = mp4.read_bytes()
    track = movie.index(STRAIGHT, movie.index(b"tkhd"))
    a, b, c, d = (number << 16 for number in matrix)
    turned = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    (tmp_path / "turned.mp4").write_bytes(movie[:track] + turned + movie[track + len(turned) :])
    [(_, straight)], [(_, picture)] = read_video(mp4, 60.0), read_video(tmp_path / "turned.mp4", 60.0)
    np.testing.assert_array_equal(picture, MATRICES[matrix](straight))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_data_of_motion_jpeg_turn_the_picture(tmp_path, orientation):
    """Cameras write them into each picture."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(draw(1)[:, :32]).save(file, "JPEG", quality=95, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    with av.open(str(tmp_path / "camera.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, SIDE, "yuvj420p"
        packet = av.Packet(file.getvalue())
        packet.pts, packet.dts, packet.time_base, packet.stream = 0, 0, Fraction(1), stream
        container.mux(packet)
    [(_, picture)] = read_video(tmp_path / "camera.avi", 60.0)
    assert picture.shape == upright.shape and likeness(picture, upright) < 8


def light(srgb):
    """Linear light of sRGB values."""
    value = np.asarray(srgb) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def to_bt2020(linear):
    """Linear light with the primaries of BT.709 as that of BT.2020 (BT.2087)."""
    return np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]) @ linear


def pq(nits):
    power = (np.asarray(nits) / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(nits):
    """The signal for a display of 1000 cd/m²."""
    displayed = np.asarray(nits) / 1000
    scene = displayed * ([0.2627, 0.6780, 0.0593] @ displayed) ** (1 / 1.2 - 1)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )


def shown(signal, transfer, primaries=BT2020):
    values = np.full((16, 16, 3), np.round(np.asarray(signal) * 65535), np.uint16)
    return display(av.VideoFrame.from_ndarray(values, format="rgb48le"), transfer, primaries, VideoReformatter())[8, 8]


@pytest.mark.parametrize("color", [(200, 50, 50), (120, 120, 120), (30, 90, 180), (0, 0, 0), (210, 200, 40)])
def test_a_picture_of_high_dynamic_range_has_its_colors(color):
    wide = to_bt2020(light(color))
    np.testing.assert_allclose(shown(pq(203 * wide), PQ), color, atol=2)
    np.testing.assert_allclose(shown(hlg(np.maximum(203 * wide, 1e-9)), HLG), color, atol=2)
    np.testing.assert_allclose(
        shown(wide ** (1 / 2.4), 14), color, atol=12
    )  # sRGB's curve is only near that of BT.1886


def test_highlights_are_compressed_and_keep_their_hue():
    grays = [shown(pq(nits), PQ) for nits in (150, 203, 400, 1000, 4000, 10_000)]
    assert all(len(set(gray.tolist())) == 1 for gray in grays)
    values = [int(gray[0]) for gray in grays]
    assert values == sorted(values) and values[1] >= 240 and values[2] > values[1] and values[-1] == 255
    red, green, blue = shown(pq(to_bt2020(4 * 203 * light((200, 100, 100)))), PQ).astype(int)
    assert red > 240 and green == blue and abs(green - 131) < 8


def test_large_pictures_of_high_dynamic_range_become_smaller():
    values = np.full((1080, 1920, 3), round(pq(203 * light(120)) * 65535), np.uint16)
    picture = display(av.VideoFrame.from_ndarray(values, format="rgb48le"), PQ, BT2020, VideoReformatter())
    assert picture.shape == (540, 960, 3) and np.abs(picture.astype(int) - 120).max() <= 2


def test_other_pictures_stay_as_they_are():
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    np.testing.assert_array_equal(display(frame, 2, 2, VideoReformatter()), picture)


def test_pictures_of_a_video_that_changes_its_size_are_those_of_new_videos():
    reformatter, rng = VideoReformatter(), np.random.default_rng(0)
    frames = [
        av.VideoFrame.from_ndarray(rng.integers(0, 256, (height * 3 // 2, width), np.uint8), format="yuv420p")
        for height, width in ((16, 32), (16, 32), (64, 48), (16, 32))
    ]
    found = [display(frame, BT709, BT709, reformatter) for frame in frames]
    for frame, picture in zip(frames, found, strict=True):
        np.testing.assert_array_equal(picture, frame.to_ndarray(format="rgb24"))


def test_an_interlaced_picture_shows_no_combs(tmp_path):
    """Of two fields that show different pictures, one is shown."""
    one, other = draw(1), draw(2)
    woven = one.copy()
    woven[1::2] = other[1::2]
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"x264-params": "tff=1", "qp": "10"})
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv444p"
        for place in range(3):
            frame = av.VideoFrame.from_ndarray(woven, format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    [(_, picture)] = read_video(path)
    assert min(likeness(picture, one), likeness(picture, other)) < 10 < likeness(picture, woven)

"""A decoded picture as a player shows it: RGB that is upright, without combing, and not of high dynamic range."""

from functools import lru_cache
from typing import cast

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, Float32, UInt8, UInt16

# Values of H.273: transfer characteristics and primaries.
PQ, HLG, BT2020 = 16, 18, 9
WHITE = 203.0  # brightness in cd/m² of what is white in a picture of high dynamic range (BT.2408)
HLG_PEAK = 1000.0  # cd/m², for which BT.2100 defines its system gamma of 1.2
LARGEST = 540  # shorter side of a picture whose colors are converted, which takes time; models see less than that
EXIF = 31  # FFmpeg's AV_FRAME_DATA_EXIF
KNEE = 0.8  # of white; what is brighter is compressed
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of the primaries of BT.2020
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # linear, from BT.2020 (BT.2087)


def display(
    frame: av.VideoFrame, transfer: int, primaries: int, reformatter: VideoReformatter
) -> UInt8[np.ndarray, "H W 3"]:
    """Converts a picture to what a player shows.

    Args:
        frame: a decoded picture.
        transfer: its transfer characteristics as H.273 numbers them.
        primaries: its primaries as H.273 numbers them.
        reformatter: of the video; a new one takes longer to set up than to convert a small picture.

    Returns:
        sRGB; smaller than the picture if its dynamic range is high and it is large.
    """
    if frame.interlaced_frame:
        frame = _deinterlace(frame)
    if transfer in (PQ, HLG) or primaries == BT2020:
        scale = min(1, LARGEST / min(frame.width, frame.height))
        width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        area = "AREA" if scale < 1 else None
        small = reformatter.reformat(frame, width, height, "rgb48le", interpolation=area, threads=1)
        picture = _to_srgb(small.to_ndarray(), transfer)
    else:
        picture = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return _oriented(picture, _matrix(frame))


def _deinterlace(frame: av.VideoFrame) -> av.VideoFrame:
    """Replaces the lines of one field by what lies between those of the other."""
    return _filter(frame, "estdif", "mode=frame:deint=interlaced")


def _filter(frame: av.VideoFrame, name: str, options: str) -> av.VideoFrame:
    """The picture after one of FFmpeg's filters."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, graph.add(name, options), graph.add("buffersink")).configure()
    graph.push(frame)
    graph.push(None)
    filtered = graph.pull()
    assert isinstance(filtered, av.VideoFrame), "the graph holds no sound"
    return filtered


def _to_srgb(picture: UInt16[np.ndarray, "H W 3"], transfer: int) -> UInt8[np.ndarray, "H W 3"]:
    """Converts BT.2020 colors, relative to white, to sRGB; highlights are compressed, keeping their hue."""
    linear = _linear(transfer)[picture]
    if transfer == HLG:
        scene = np.maximum(linear @ LUMINANCE, 1e-6)[..., None]
        linear = linear * scene**0.2 * (HLG_PEAK / WHITE)
    linear = np.maximum(linear @ TO_BT709.T, 0)
    brightest = np.maximum(linear.max(axis=-1, keepdims=True), 1e-6)
    over = np.maximum(brightest - KNEE, 0) / (1 - KNEE)
    linear *= np.where(over > 0, (1 - (1 - KNEE) * np.exp(-over)) / brightest, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * srgb).astype(np.uint8)


@lru_cache
def _linear(transfer: int) -> Float32[np.ndarray, " 65536"]:
    """The light of each 16-bit value: relative to white for PQ and others, of the scene for HLG (BT.2100)."""
    signal: Float[np.ndarray, " 65536"] = np.arange(65536) / 65535
    if transfer == PQ:
        root = signal ** (32 / 2523)
        light = (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)
        light *= 10_000 / WHITE
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal**2.4
    return light.astype(np.float32)


def _matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """What the display matrix does: (a, b, c, d) shows (x, y) at (a x + c y, b x + d y); None = there is none."""
    try:
        side_data = frame.side_data
    except ValueError:  # PyAV does not know EXIF data, whose orientation FFmpeg has put into the matrix
        side_data = _filter(frame, "sidedata", f"mode=delete:type={EXIF}").side_data
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(cast(bytes, data), np.int32)[:5].tolist()
    return a, b, c, d


def _oriented(
    picture: UInt8[np.ndarray, "H W 3"], matrix: tuple[int, int, int, int] | None
) -> UInt8[np.ndarray, "h w 3"]:
    """Turns and mirrors a picture; other angles than quarters are taken for the nearest."""
    if matrix is None:
        return picture
    a, b, c, d = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):  # rows become columns
        picture, a, d = picture.swapaxes(0, 1), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

"""What happens to pictures and lists of frames between the disk and a batch; whatever is random takes its generator."""

import io
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image


class Crop(NamedTuple):
    """A window of a picture, its edges in shares of the picture's width and height, and whether it is mirrored."""

    left: float
    top: float
    right: float
    bottom: float
    flip: bool


def render(
    encoded: bytes, crop: Crop, size: int, colour: Float[np.ndarray, "3 4"] | None = None
) -> UInt8[np.ndarray, "S S 3"]:
    """Decodes a picture and resizes a window of it, in one go.

    Args:
        encoded: the picture's file, usually JPEG; its EXIF orientation is ignored, as boxes ignore it.
        crop: the window; its aspect is squashed to a square.
        size: side of the result, pixels.
        colour: matrix that maps RGB, and a 1 below it, to RGB (`random_colour`); None = unchanged.

    Returns:
        RGB, 0..255.

    Raises:
        OSError: the picture cannot be decoded.
    """
    picture = Image.open(io.BytesIO(encoded))
    # A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size. That low-pass comes out of the cosine transform for free and
    # is several times faster; as long as a source pixel is left for each result pixel it differs from a full decode by
    # less than the JPEG does from its original (mean 0.3-0.5 grey levels).
    wanted = math.ceil(size / (crop.right - crop.left)), math.ceil(size / (crop.bottom - crop.top))
    draft = picture.draft("RGB", wanted)
    width, height = draft[1][2:] if draft else picture.size
    box = crop.left * width, crop.top * height, crop.right * width, crop.bottom * height
    picture = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)
    if colour is not None:
        picture = picture.convert("RGB", tuple(colour.ravel().tolist()))
    pixels = np.asarray(picture)
    return pixels[:, ::-1] if crop.flip else pixels


def centre_crop(resize: int, size: int) -> Crop:
    """The middle `size` pixels of a picture squashed to `resize`×`resize`.

    Source: the evaluation transform of RICE.md §5.
    """
    start = (resize - size) // 2
    return _crop_of_squashed(start, start, resize, size, flip=False)


def random_crop(
    rng: np.random.Generator,
    resize: int,
    size: int,
    area: tuple[float, float],
    box: tuple[float, float, float, float] | None = None,
) -> Crop:
    """Draws a window and whether to mirror it.

    Args:
        rng: random numbers.
        resize: side of the square to which the picture is squashed before a plain crop, pixels.
        size: side of the plain crop, pixels.
        area: from 1 to 1 = a plain crop of `size` out of `resize`, at whole pixels of the squashed picture, each
            equally likely. Else the window's share of the picture's area is uniform between the two, its aspect in the
            squashed picture log-uniform in 3/4..4/3, and `resize` plays no part.
        box: left, top, right, bottom in shares of the picture, that a window drawn by area has to hold; it grows to
            the box where it is smaller.

    Returns:
        The window; it never leaves the picture.

    Source: RICE.md §5 (plain crop); Szegedy et al. 2015, section 6 (random area and aspect).
    """
    flip = rng.random() < 0.5
    if area == (1, 1):
        left, top = rng.integers(resize - size + 1, size=2)
        return _crop_of_squashed(int(left), int(top), resize, size, flip)
    share = rng.uniform(*area)
    # The aspect is drawn only as far as the window fits, so that the area stays what was drawn.
    widest = min(4 / 3, 1 / share)
    aspect = math.exp(rng.uniform(-math.log(widest), math.log(widest)))
    held = box or (1.0, 1.0, 0.0, 0.0)  # inside out: any window holds it
    width = max(math.sqrt(share * aspect), held[2] - held[0])
    height = max(math.sqrt(share / aspect), held[3] - held[1])
    left = _start(rng, width, held[0], held[2])
    top = _start(rng, height, held[1], held[3])
    return Crop(left, top, min(left + width, 1.0), min(top + height, 1.0), flip)


def _start(rng: np.random.Generator, length: float, first: float, last: float) -> float:
    """Where in 0..1 an interval that holds first..last begins; one as long as that has no choice."""
    lowest, highest = max(0.0, last - length), min(1 - length, first)
    return rng.uniform(lowest, highest) if lowest < highest else max(0.0, highest)


def random_colour(rng: np.random.Generator, strength: float) -> Float[np.ndarray, "3 4"]:
    """Draws a change of brightness, contrast, saturation and white balance.

    Args:
        rng: random numbers.
        strength: each of brightness, contrast and saturation is scaled by a factor uniform in 1 ± strength, and each
            channel by its own factor uniform in 1 ± strength / 4.

    Returns:
        Matrix that maps RGB in 0..255, and a 1 below it, to RGB.
    """
    brightness, contrast, saturation = rng.uniform(max(0, 1 - strength), 1 + strength, size=3)
    channels = rng.uniform(1 - strength / 4, 1 + strength / 4, size=3)
    grey = np.tile([0.299, 0.587, 0.114], (3, 1))  # ITU-R BT.601 luma
    matrix = saturation * np.eye(3) + (1 - saturation) * grey
    matrix = contrast * brightness * channels[:, None] * matrix
    # Contrast pivots on mid-grey, not on each picture's mean: one matrix then serves all frames of a video.
    offset = np.full((3, 1), (1 - contrast) * 127.5)
    return np.hstack([matrix, offset])


def random_hue(rng: np.random.Generator, share: float) -> Float[np.ndarray, "3 3"]:
    """Draws a turn of all hues by up to `share` of half a circle; greys, and so a shop image's white, stay.

    Returns:
        Matrix that maps RGB to RGB: a rotation about the grey axis.
    """
    angle = rng.uniform(-share, share) * math.pi
    along = np.full((3, 3), 1 / 3)  # projects on the grey axis
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # the axis times
    return along + math.cos(angle) * (np.eye(3) - along) + math.sin(angle) * across


def sample_frames(count: int, num_frames: int) -> Int[np.ndarray, " T"]:
    """Chooses evenly spaced frames: all of them, or `linspace(0, count - 1, num_frames)` truncated.

    Args:
        count: frames that there are.
        num_frames: most frames to choose.

    Returns:
        Ascending frame numbers.

    Source: RICE.md §5.
    """
    if count <= num_frames:
        return np.arange(count)
    return np.linspace(0, count - 1, num_frames).astype(int)


def random_frames(rng: np.random.Generator, count: int, num_frames: int) -> Int[np.ndarray, " T"]:
    """Chooses `num_frames` of `count` frames, or all if there are fewer, each set equally likely, in order."""
    if count <= num_frames:
        return np.arange(count)
    return np.sort(rng.choice(count, num_frames, replace=False))


def cut_tail(rng: np.random.Generator, frames: Int[np.ndarray, " T"], num_frames: int) -> Int[np.ndarray, " K"]:
    """With probability 1/2 keeps only the first 1..num_frames frames, each number equally likely.

    Args:
        rng: random numbers.
        frames: chosen frame numbers. Fewer than `num_frames` are never cut, as in the reference.
        num_frames: most frames of a video.

    Returns:
        The frames that are kept, at least one.

    Source: RICE.md §5.
    """
    if len(frames) < num_frames or rng.random() < 0.5:
        return frames
    return frames[: rng.integers(1, num_frames, endpoint=True)]


def _crop_of_squashed(left: int, top: int, resize: int, size: int, flip: bool) -> Crop:
    return Crop(left / resize, top / resize, (left + size) / resize, (top + size) / resize, flip)

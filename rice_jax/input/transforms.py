"""Transforms of pictures, boxes and lists of frames between the disk and a batch.

Functions with random draws take the generator as their first argument.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from rice_jax.input.pictures import TURNS, decoding, open_picture, orientation, to_rgb

# A patch shows the product if its IoU with the product's box is at least this. docs/reference.md, section 6, gives the
# number for the 49 patches of CLIP ViT-B/32.
MIN_PATCH_IOU = 0.02


class Crop(NamedTuple):
    """A window of a picture, with edges in shares of the picture's width and height; `flip` mirrors it."""

    left: float
    top: float
    right: float
    bottom: float
    flip: bool


class Box(NamedTuple):
    """A box around a product, with edges in shares of the picture's width and height."""

    left: float
    top: float
    right: float
    bottom: float


def render(
    encoded: bytes, crop: Crop, size: int, color: Float[np.ndarray, "3 4"] | None = None
) -> UInt8[np.ndarray, "S S 3"]:
    """Decodes a picture, and resizes a window of it to a square.

    Args:
        encoded: the picture's file, usually JPEG. It is seen as a viewer shows it: turned as its EXIF data say, in
            sRGB, and on white.
        crop: window of the picture so seen; its aspect ratio is not kept.
        size: side of the result, pixels.
        color: matrix that maps [R, G, B, 1] to RGB (`random_color`); None = unchanged.

    Returns:
        RGB, 0..255.

    Raises:
        OSError: the picture cannot be decoded.
    """
    return cut(open_picture(encoded), crop, size, color)


@decoding()
def cut(
    picture: Image.Image, crop: Crop, size: int, color: Float[np.ndarray, "3 4"] | None = None
) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes a window of an open picture to a square.

    Args:
        picture: open picture. If its file has not been decoded yet, the call may shrink it in place: do not use it
            again.
        crop: window of the picture; its aspect ratio is not kept.
        size: side of the result, pixels.
        color: matrix that maps [R, G, B, 1] to RGB; None = unchanged.

    Returns:
        RGB, 0..255.

    Raises:
        OSError: the picture cannot be decoded.
    """
    if picture.format not in ("JPEG", "MPO"):
        picture.load()
    turn = orientation(picture)
    window = as_stored(crop, turn)
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, which is several times faster: the cosine transform gives
    # the low-pass for free. With a source pixel left for each result pixel, the result differs from a full decode by
    # less than the JPEG differs from its original (mean 0.3-0.5 gray levels).
    wanted = math.ceil(size / (window.right - window.left)), math.ceil(size / (window.bottom - window.top))
    draft = picture.draft("RGB", wanted)
    width, height = draft[1][2:] if draft else picture.size
    edges = window.left * width, window.top * height, window.right * width, window.bottom * height
    picture = _resize(to_rgb(picture), edges, size)
    if turn in TURNS:  # a small square is cheaper to turn than the whole picture
        picture = picture.transpose(TURNS[turn])
    if color is not None:
        picture = picture.convert("RGB", tuple(color.ravel().tolist()))
    if crop.flip:  # by Pillow: numpy is ten times slower at copying pixels in reverse
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture)


def as_stored(crop: Crop, turn: int) -> Crop:
    """The window of the stored pixels that a viewer shows as `crop`, not mirrored.

    Args:
        crop: window of the picture as a viewer shows it.
        turn: EXIF's number for how the viewer turns the stored pixels, 1..8.
    """
    (left, right), (top, bottom) = (crop.left, crop.right), (crop.top, crop.bottom)
    if turn in (5, 6, 7, 8):
        (left, right), (top, bottom) = (top, bottom), (left, right)
    if turn in (2, 3, 7, 8):
        left, right = 1 - right, 1 - left
    if turn in (3, 4, 6, 7):
        top, bottom = 1 - bottom, 1 - top
    return Crop(left, top, right, bottom, flip=False)


def _resize(picture: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    """Resizes a window, with edges in pixels, to a square.

    Along an axis in which the window is as long as the square and starts at a whole pixel, the window is cut out first:
    Pillow would compute every pixel anew, with the same value. In a plain crop out of 256, this holds for the short
    side of LPR4M's pictures.
    """
    left, top, right, bottom = box
    columns = (int(left), int(right)) if right - left == size and left.is_integer() else (0, picture.width)
    rows = (int(top), int(bottom)) if bottom - top == size and top.is_integer() else (0, picture.height)
    if (columns[1] - columns[0], rows[1] - rows[0]) != picture.size:
        picture = picture.crop((columns[0], rows[0], columns[1], rows[1]))
        box = left - columns[0], top - rows[0], right - columns[0], bottom - rows[0]
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)


def center_crop(resize: int, size: int) -> Crop:
    """The window of the middle `size` × `size` pixels of a picture resized to `resize` × `resize`.

    Source: docs/reference.md, section 5 (augmentation in evaluation).
    """
    start = (resize - size) // 2
    return _crop_of_squashed(start, start, resize, size, flip=False)


def random_crop(
    rng: np.random.Generator,
    resize: int,
    size: int,
    area: tuple[float, float],
    box: Box | None = None,
) -> Crop:
    """Draws a window and whether to mirror it.

    Args:
        rng: generator of the draws.
        resize: side of the square to which the picture is resized before a plain crop, pixels.
        size: side of the plain crop, pixels.
        area: (1, 1) = a plain crop of `size` out of `resize`, at whole pixels, all equally likely. Otherwise the
            window's share of the picture's area is uniform between the two numbers, its aspect ratio in the resized
            picture is log-uniform in 3/4..4/3, and `resize` has no effect.
        box: box that a window drawn by area contains; the window grows to the box if it is smaller.

    Returns:
        The window, which lies inside the picture.

    Source: docs/reference.md, section 5 (plain crop); Szegedy et al. 2015, section 6 (random area and aspect ratio).
    """
    flip = rng.random() < 0.5
    if area == (1, 1):
        column, row = int(rng.integers(resize - size + 1)), int(rng.integers(resize - size + 1))
        return _crop_of_squashed(column, row, resize, size, flip)
    share = rng.uniform(*area)
    # The aspect ratio is drawn from the range in which the window fits, so that the area stays as drawn.
    widest = min(4 / 3, 1 / share)
    aspect = math.exp(rng.uniform(-math.log(widest), math.log(widest)))
    held = box or Box(1.0, 1.0, 0.0, 0.0)  # inside out: every window contains it
    width = max(math.sqrt(share * aspect), held.right - held.left)
    height = max(math.sqrt(share / aspect), held.bottom - held.top)
    left = _start(rng, width, held.left, held.right)
    top = _start(rng, height, held.top, held.bottom)
    return Crop(left, top, min(left + width, 1.0), min(top + height, 1.0), flip)


def _start(rng: np.random.Generator, length: float, first: float, last: float) -> float:
    """Draws where an interval inside 0..1 that contains first..last begins."""
    lowest, highest = max(0.0, last - length), min(1 - length, first)
    return rng.uniform(lowest, highest) if lowest < highest else max(0.0, highest)


def around_box(box: Box, margin: float) -> Crop:
    """The window around a product, with the aspect ratio of the picture, so that the product keeps its own.

    Args:
        box: the product's box.
        margin: margin on each side, as a share of the box's longer side; the sides are shares of the picture's.

    Returns:
        The window, moved and shrunk to lie inside the picture.
    """
    side = min(1.0, max(box.right - box.left, box.bottom - box.top) * (1 + 2 * margin))
    left, top = (
        min(max((first + last - side) / 2, 0.0), 1 - side)
        for first, last in ((box.left, box.right), (box.top, box.bottom))
    )
    return Crop(left, top, left + side, top + side, flip=False)


def inside(outer: Crop, crop: Crop) -> Crop:
    """The window `crop` of the window `outer`, as a window of the picture; `outer` must not be mirrored."""
    width, height = outer.right - outer.left, outer.bottom - outer.top
    return Crop(
        outer.left + crop.left * width,
        outer.top + crop.top * height,
        outer.left + crop.right * width,
        outer.top + crop.bottom * height,
        crop.flip,
    )


def box_inside(box: Box, crop: Crop) -> Box | None:
    """The part of a box inside a window, in shares of the window, mirrored with it; None if they do not overlap."""
    width, height = crop.right - crop.left, crop.bottom - crop.top
    left, right = ((x - crop.left) / width for x in (box.left, box.right))
    top, bottom = ((y - crop.top) / height for y in (box.top, box.bottom))
    if crop.flip:
        left, right = 1 - right, 1 - left
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in (left, top, right, bottom))
    return Box(left, top, right, bottom) if left < right and top < bottom else None


def patch_mask(box: Box | None, grid: int) -> Bool[np.ndarray, " N"]:
    """Finds the patches of a picture that show the product.

    Args:
        box: the product's box in the picture; None = unknown.
        grid: patches along a side.

    Returns:
        In reading order, True where the IoU of patch and box is at least 0.02; all True if there is no such patch or no
        box.

    Source: docs/reference.md, section 6.
    Differs: with more than 49 patches, no patch inside a large box has that IoU. The smallest IoU is then 0.98 / N,
    which every patch inside a box has.
    """
    if box is None:
        return np.ones(grid * grid, bool)
    edges = np.arange(grid + 1) / grid
    wide, high = (
        np.clip(np.minimum(edges[1:], last) - np.maximum(edges[:-1], first), 0, None)
        for first, last in ((box.left, box.right), (box.top, box.bottom))
    )
    shared = high[:, None] * wide
    union = (box.right - box.left) * (box.bottom - box.top) + 1 / grid**2 - shared
    kept = shared / union >= min(MIN_PATCH_IOU, 0.98 / grid**2)
    return kept.ravel() if kept.any() else np.ones(grid * grid, bool)


def random_color(rng: np.random.Generator, strength: float) -> Float[np.ndarray, "3 4"]:
    """Draws a change of brightness, contrast, saturation and white balance.

    Args:
        rng: generator of the draws.
        strength: each of brightness, contrast and saturation is scaled by a factor uniform in 1 ± strength, and each
            channel by its own factor uniform in 1 ± strength / 4.

    Returns:
        Matrix that maps [R, G, B, 1], with R, G, B in 0..255, to RGB.
    """
    brightness, contrast, saturation = rng.uniform(max(0, 1 - strength), 1 + strength, size=3)
    channels = rng.uniform(1 - strength / 4, 1 + strength / 4, size=3)
    gray = np.tile([0.299, 0.587, 0.114], (3, 1))  # ITU-R BT.601 luma
    matrix = saturation * np.eye(3) + (1 - saturation) * gray
    matrix = contrast * brightness * channels[:, None] * matrix
    # Contrast pivots on mid-gray, not on each picture's mean: one matrix then serves all frames of a video.
    offset = np.full((3, 1), (1 - contrast) * 127.5)
    return np.hstack([matrix, offset])


def random_hue(rng: np.random.Generator, share: float) -> Float[np.ndarray, "3 3"]:
    """Draws a turn of all hues by up to `share` of half a circle; grays, and so a shop image's white, do not change.

    Returns:
        Matrix that maps RGB to RGB: a rotation about the gray axis.
    """
    angle = rng.uniform(-share, share) * math.pi
    along = np.full((3, 3), 1 / 3)  # projects on the gray axis
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # cross product with the axis
    return along + math.cos(angle) * (np.eye(3) - along) + math.sin(angle) * across


def sample_frames(count: int, num_frames: int) -> Int[np.ndarray, " T"]:
    """Chooses evenly spaced frames: all of them, or `linspace(0, count - 1, num_frames)` truncated.

    Args:
        count: number of frames.
        num_frames: largest number of frames to choose.

    Returns:
        Ascending frame numbers.

    Source: docs/reference.md, section 5.
    """
    if count <= num_frames:
        return np.arange(count)
    return np.linspace(0, count - 1, num_frames).astype(int)


def middle_frames(count: int, num_frames: int) -> Int[np.ndarray, " T"]:
    """Chooses the frame in the middle of each of `num_frames` equal parts; if there are fewer frames, some repeat.

    Source: COPE's published code, for 8 frames.
    """
    return (2 * np.arange(num_frames) + 1) * count // (2 * num_frames)


def random_frames(rng: np.random.Generator, count: int, num_frames: int) -> Int[np.ndarray, " T"]:
    """Draws `num_frames` of `count` frames, or takes all if there are fewer; in order, all sets equally likely."""
    if count <= num_frames:
        return np.arange(count)
    return np.sort(rng.choice(count, num_frames, replace=False))


def cut_tail(rng: np.random.Generator, frames: Int[np.ndarray, " T"], num_frames: int) -> Int[np.ndarray, " K"]:
    """With probability 1/2 keeps only the first 1..num_frames frames, each number equally likely.

    Args:
        rng: generator of the draws.
        frames: chosen frame numbers. Fewer than `num_frames` are never cut, as in the reference.
        num_frames: largest number of frames of a video.

    Returns:
        The remaining frames, at least one.

    Source: docs/reference.md, section 5.
    """
    if len(frames) < num_frames or rng.random() < 0.5:
        return frames
    return frames[: rng.integers(1, num_frames, endpoint=True)]


def _crop_of_squashed(left: int, top: int, resize: int, size: int, flip: bool) -> Crop:
    return Crop(left / resize, top / resize, (left + size) / resize, (top + size) / resize, flip)

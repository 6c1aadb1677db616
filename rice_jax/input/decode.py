"""Decodes the pictures of a batch, each directly into its place in the batch's arrays.

Either the host does all the work (`transforms.render`), or it only decodes, and the device crops and resizes
(`models.resample`), which saves the host three quarters of the work.
"""

import collections
import functools
import math
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8

from rice_jax.config import InputConfig
from rice_jax.input import transforms
from rice_jax.input.pictures import is_plain
from rice_jax.input.transforms import Crop
from rice_jax.types import DataError, Decoded

WHOLE = Crop(0.0, 0.0, 1.0, 1.0, flip=False)


class Encoded(NamedTuple):
    """Pictures of an example as stored on disk, and what becomes of them.

    Attributes:
        shape: () for one picture; (T,) for T pictures, padded with zeros.
        files: the stored pictures.
        names: name of each picture in errors.
        crops: window of each picture.
        color: change of color of all pictures; None = no change.
        undecodable: makes the error of a picture from its name and the decoder's error.
    """

    shape: tuple[int, ...]
    files: Sequence[bytes]
    names: Sequence[str]
    crops: Sequence[Crop]
    color: Float[np.ndarray, "3 4"] | None
    undecodable: Callable[[str, OSError], DataError]


NO_PICTURE = Encoded((), [], [], [], None, undecodable=DataError)


class Collate:
    """Makes a batch, a dict of arrays, from examples, which are dicts of numbers, arrays and `Encoded` pictures."""

    def __init__(self, config: InputConfig):
        self._decode = _decode if config.device_resize_height else _render
        self._config = config

    def __call__(self, examples: Sequence[dict]) -> dict[str, Any]:
        """Stacks numbers and arrays, and decodes pictures; a dict of them becomes a dict of arrays.

        Raises:
            DataError: a picture cannot be decoded.
        """
        return {name: self._column([example[name] for example in examples]) for name in examples[0]}

    def _column(self, column: Sequence[Any]) -> Any:
        if isinstance(column[0], dict):
            return self(column)
        return self._decode(column, self._config) if isinstance(column[0], Encoded) else np.stack(column)


def _render(column: Sequence[Encoded], config: InputConfig) -> UInt8[np.ndarray, "... S S 3"]:
    """Decodes, crops and resizes pictures."""
    side = config.image_size
    pixels = np.zeros((len(column), *column[0].shape, side, side, 3), np.uint8)
    places = pixels.reshape(-1, side, side, 3)

    def render(place: int, file: bytes, crop: Crop, color: Float[np.ndarray, "3 4"] | None) -> None:
        places[place] = transforms.render(file, crop, side, color)

    _for_each(column, render, config.num_threads)
    return pixels


def _decode(column: Sequence[Encoded], config: InputConfig) -> Decoded:
    """Decodes pictures for the device to crop and resize.

    The host renders pictures that are not JPEG or too large; the device only copies these.
    """
    side, room = config.image_size, (config.device_resize_height, config.device_resize_width, 3)
    shape = len(column), *column[0].shape
    pixels = recycled(math.prod(shape), *room)
    sizes, windows = np.zeros((len(pixels), 2), np.int32), np.zeros((len(pixels), 2, 2), np.float32)
    colors = np.tile(np.eye(3, 4, dtype=np.float32), (len(pixels), 1, 1)) if config.changes_color else None

    def decode(place: int, file: bytes, crop: Crop, color: Float[np.ndarray, "3 4"] | None) -> None:
        size = decode_jpeg(file, crop, side, pixels[place])
        if size is None:
            pixels[place, :side, :side] = transforms.render(file, crop, side)
            size, crop = (side, side), WHOLE
        sizes[place] = size
        windows[place] = (crop.top, crop.bottom), (crop.right, crop.left) if crop.flip else (crop.left, crop.right)
        if colors is not None and color is not None:
            colors[place] = color

    _for_each(column, decode, config.num_threads)
    first, last = np.moveaxis(windows * sizes[..., None].astype(np.float32), -1, 0)[..., None]
    centers = first + (np.arange(side, dtype=np.float32) + 0.5) / side * (last - first)
    flat = pixels, sizes, centers[:, 0], centers[:, 1], colors
    return Decoded._make(None if array is None else array.reshape(*shape, *array.shape[1:]) for array in flat)


def _for_each(column: Sequence[Encoded], write: Callable, num_threads: int) -> None:
    """Calls `write` with each picture's place among the pictures of all examples, its file, crop and color."""

    def write_example(row: int, encoded: Encoded) -> None:
        first = row * math.prod(encoded.shape)
        for place, (file, name, crop) in enumerate(zip(encoded.files, encoded.names, encoded.crops, strict=True)):
            try:
                write(first + place, file, crop, encoded.color)
            except OSError as error:
                raise encoded.undecodable(name, error) from error

    each = _pool(num_threads).map if num_threads else map
    list(each(write_example, range(len(column)), column))


_free: dict[int, list[bytearray]] = collections.defaultdict(list)  # by size


def recycled(*shape: int) -> UInt8[np.ndarray, "..."]:
    """An array with arbitrary content, whose memory is reused once neither the array nor a view of it exists.

    Fresh memory would take a third as long as decoding into it.
    """
    free = _free[math.prod(shape)]
    try:
        buffer = free.pop()
    except IndexError:  # no free memory, or another thread took it
        buffer = bytearray(math.prod(shape))
    array = np.frombuffer(buffer, np.uint8)  # the base of all views, as its own memory belongs to no array
    weakref.finalize(array, free.append, buffer)
    return array.reshape(shape)


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """The decoding threads of this process; they share each batch, so that few batches take memory at a time."""
    return ThreadPoolExecutor(num_threads, "decode")


def decode_jpeg(encoded: bytes, crop: Crop, side: int, pixels: UInt8[np.ndarray, "H W 3"]) -> tuple[int, int] | None:
    """Decodes a JPEG, at half its size or less if the window still has at least `side` × `side` pixels.

    Args:
        encoded: file.
        crop: window of the picture that will be shown.
        side: pixels of the result, across and down, that will be made of the window.
        pixels: array that receives the picture, in its upper left.

    Returns:
        Height and width of the decoded picture, or None if it is too large, damaged, not a JPEG, or not shown by a
        viewer as it is stored; the content of `pixels` is then undefined.
    """
    if not is_plain(encoded):
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
        # The factors are Pillow's: at the decoder's other factors the cosine transform is slower than at full size.
        for factor in (8, 4, 2, 1):
            smaller = -(-height // factor), -(-width // factor)
            if smaller[0] * (crop.bottom - crop.top) >= side <= smaller[1] * (crop.right - crop.left):
                break
        if smaller[0] > len(pixels) or smaller[1] > pixels.shape[1]:
            return None
        size = {} if factor == 1 else {"min_height": smaller[0], "min_width": smaller[1]}
        if smaller[1] == pixels.shape[1]:  # the rows are contiguous, so no copy is needed
            simplejpeg.decode_jpeg(encoded, buffer=pixels, **size)
        else:
            pixels[: smaller[0], : smaller[1]] = simplejpeg.decode_jpeg(encoded, **size)
    except ValueError:  # Pillow reads more formats, and its errors are clearer
        return None
    return smaller

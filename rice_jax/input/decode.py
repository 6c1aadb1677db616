"""From encoded pictures to the arrays of a batch, each decoded where it will lie.

Either the host does all of it (`transforms.render`), or it only decodes and the device cuts and resizes
(`models.resample`), which spares the host three quarters of the work.
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
from rice_jax.input.transforms import Crop
from rice_jax.types import DataError, Decoded

WHOLE = Crop(0.0, 0.0, 1.0, 1.0, flip=False)


class Encoded(NamedTuple):
    """Pictures of an example as they are on disk, and what to do with them."""

    shape: tuple[int, ...]  # () = one picture; (T,) = so many, filled up with zeros
    files: Sequence[bytes]
    names: Sequence[str]  # what they are called in an error
    crops: Sequence[Crop]
    colour: Float[np.ndarray, "3 4"] | None
    undecodable: Callable[[str, OSError], DataError]  # of a picture's name and what is wrong with it


NO_PICTURE = Encoded((), [], [], [], None, undecodable=DataError)


class Batcher:
    """Makes a batch, a dict of arrays, of examples, dicts of numbers, arrays and `Encoded` pictures."""

    def __init__(self, config: InputConfig):
        self._decode = _decode if config.device_resize_height else _render
        self._config = config

    def __call__(self, examples: Sequence[dict]) -> dict[str, Any]:
        """Stacks and decodes.

        Raises:
            DataError: a picture cannot be decoded.
        """
        columns = {name: [example[name] for example in examples] for name in examples[0]}
        return {
            name: self._decode(column, self._config) if isinstance(column[0], Encoded) else np.stack(column)
            for name, column in columns.items()
        }


def _render(column: Sequence[Encoded], config: InputConfig) -> UInt8[np.ndarray, "... S S 3"]:
    """Pictures that the host has cut and resized."""
    side = config.image_size
    pixels = np.zeros((len(column), *column[0].shape, side, side, 3), np.uint8)
    places = pixels.reshape(-1, side, side, 3)

    def render(place: int, file: bytes, crop: Crop, colour: Float[np.ndarray, "3 4"] | None) -> None:
        places[place] = transforms.render(file, crop, side, colour)

    _for_each(column, render, config.num_threads)
    return pixels


def _decode(column: Sequence[Encoded], config: InputConfig) -> Decoded:
    """Pictures that the device is to cut and resize; of what is no JPEG or too large it only has to take a copy."""
    side, room = config.image_size, (config.device_resize_height, config.device_resize_width, 3)
    shape = len(column), *column[0].shape
    pixels = recycled(math.prod(shape), *room)
    sizes, windows = np.zeros((len(pixels), 2), np.int32), np.zeros((len(pixels), 2, 2), np.float32)
    colours = np.tile(np.eye(3, 4, dtype=np.float32), (len(pixels), 1, 1)) if config.changes_color else None

    def decode(place: int, file: bytes, crop: Crop, colour: Float[np.ndarray, "3 4"] | None) -> None:
        size = decode_jpeg(file, crop, side, pixels[place])
        if size is None:
            pixels[place, :side, :side] = transforms.render(file, crop, side)
            size, crop = (side, side), WHOLE
        sizes[place] = size
        windows[place] = (crop.top, crop.bottom), (crop.right, crop.left) if crop.flip else (crop.left, crop.right)
        if colours is not None and colour is not None:
            colours[place] = colour

    _for_each(column, decode, config.num_threads)
    first, last = np.moveaxis(windows * sizes[..., None].astype(np.float32), -1, 0)[..., None]
    centres = first + (np.arange(side, dtype=np.float32) + 0.5) / side * (last - first)
    flat = Decoded(pixels, sizes, centres[:, 0], centres[:, 1], colours)
    return Decoded(*(None if array is None else array.reshape(*shape, *array.shape[1:]) for array in flat))


def _for_each(column: Sequence[Encoded], write: Callable, num_threads: int) -> None:
    """Calls `write` with the place of each picture among those of all examples, its file, crop and colour."""

    def write_example(row: int, encoded: Encoded) -> None:
        first = row * math.prod(encoded.shape)
        for place, (file, name, crop) in enumerate(zip(encoded.files, encoded.names, encoded.crops, strict=True)):
            try:
                write(first + place, file, crop, encoded.colour)
            except OSError as error:
                raise encoded.undecodable(name, error) from error

    each = _pool(num_threads).map if num_threads else map
    list(each(write_example, range(len(column)), column))


_free: dict[int, list[bytearray]] = collections.defaultdict(list)  # by size


def recycled(*shape: int) -> UInt8[np.ndarray, "..."]:
    """An array with anything in it, whose memory is used again when neither it nor a view of it is left.

    Fresh memory would cost a third of what decoding into it does.
    """
    free = _free[math.prod(shape)]
    try:
        buffer = free.pop()
    except IndexError:  # none, or another thread took it
        buffer = bytearray(math.prod(shape))
    array = np.frombuffer(buffer, np.uint8)  # views refer to it, as its memory is no array's
    weakref.finalize(array, free.append, buffer)
    return array.reshape(shape)


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """The threads of this process that decode; they share a batch, so that few batches need memory at a time."""
    return ThreadPoolExecutor(num_threads, "decode")


def decode_jpeg(encoded: bytes, crop: Crop, side: int, pixels: UInt8[np.ndarray, "H W 3"]) -> tuple[int, int] | None:
    """Decodes a JPEG, at half its size or less where a window of it has a pixel for each of `side` × `side` even so.

    Args:
        encoded: the file.
        crop: the window.
        side: pixels that will be made of it.
        pixels: where to put the picture, in the upper left.

    Returns:
        Its height and width, or None if it is too large, damaged or no JPEG; pixels are then of no account.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
        # Halves as Pillow's; the decoder knows others, but its cosine transform is slower then than at full size.
        for factor in (8, 4, 2, 1):
            smaller = -(-height // factor), -(-width // factor)
            if smaller[0] * (crop.bottom - crop.top) >= side <= smaller[1] * (crop.right - crop.left):
                break
        if smaller[0] > len(pixels) or smaller[1] > pixels.shape[1]:
            return None
        size = {} if factor == 1 else {"min_height": smaller[0], "min_width": smaller[1]}
        if smaller[1] == pixels.shape[1]:  # its rows lie one behind the other, so no copy is needed
            simplejpeg.decode_jpeg(encoded, buffer=pixels, **size)
        else:
            pixels[: smaller[0], : smaller[1]] = simplejpeg.decode_jpeg(encoded, **size)
    except ValueError:  # Pillow reads more kinds, and tells better what is wrong
        return None
    return smaller

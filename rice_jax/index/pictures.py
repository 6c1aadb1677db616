"""Pictures of any kind, cropped and resized as in evaluation."""

import os
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rice_jax.index.store import About
from rice_jax.input.pictures import MAX_BYTES, open_picture, read_file, require_size
from rice_jax.input.transforms import center_crop, cut
from rice_jax.types import DataError


@runtime_checkable
class BinaryFile(Protocol):
    """A file open for reading, such as one of `open(path, "rb")` or `io.BytesIO`."""

    def read(self, size: int, /) -> bytes:
        """Reads at most `size` bytes."""
        ...


# A file's path; a file's content; a file open for reading; a PIL image; or RGB as a uint8 array [H, W, 3].
AnyPicture = str | os.PathLike | bytes | bytearray | memoryview | BinaryFile | Image.Image | np.ndarray

TAKEN = (
    "a path, the content of a file (bytes), an open binary file, a PIL image, or RGB as an array of type uint8 and "
    "shape [height, width, 3]"
)


def show(picture: AnyPicture, about: About) -> UInt8[np.ndarray, "S S 3"]:
    """Crops and resizes a picture as evaluation does.

    Args:
        picture: any picture; it is seen as a viewer shows it, see `input.transforms.render`.
        about: the model that the picture is for.

    Raises:
        DataError: it is not a picture, or it is damaged.
        OSError: its file cannot be read.
    """
    side = about.model.encoder.image_size
    name, opened = _opened(picture)
    try:
        if isinstance(opened, bytes):
            opened = open_picture(opened)
        return cut(opened, center_crop(about.resize, side), side)
    except OSError as error:
        raise DataError(f"{name} cannot be decoded: {error}") from error


def _opened(picture: AnyPicture) -> tuple[str, bytes | Image.Image]:
    """The name of a picture in errors, and the content of its file or its pixels."""
    if isinstance(picture, str | os.PathLike):
        return str(picture), read_file(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return f"a picture of {len(picture)} bytes", bytes(picture)
    if isinstance(picture, Image.Image):
        return _decoded(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise DataError(f"found an array of type {picture.dtype} and shape {list(picture.shape)}, expected {TAKEN}")
        return _decoded(Image.fromarray(picture))
    content = _content(picture)
    return f"a picture of {len(content)} bytes", content


def _decoded(picture: Image.Image) -> tuple[str, Image.Image]:
    name = f"a picture of {picture.width} × {picture.height} pixels"
    if not picture.width or not picture.height:
        raise DataError(f"found {name}, expected at least one")
    try:
        require_size(picture)
        return name, picture.copy()  # as `cut` may change what it gets
    except Exception as error:  # Pillow decodes here, and may raise anything on a damaged file
        raise DataError(f"{name} cannot be decoded: {error}") from error


def _content(file: Any) -> bytes:
    """The content of an open file from its beginning."""
    if not callable(getattr(file, "read", None)):
        raise DataError(f"found {type(file).__name__}, expected {TAKEN}")
    if callable(getattr(file, "seekable", None)) and file.seekable():
        file.seek(0)
    content = file.read(MAX_BYTES + 1)
    if not isinstance(content, bytes):
        raise DataError(f"found a file open for text, expected {TAKEN}")
    if len(content) > MAX_BYTES:
        raise DataError(f"found a file that exceeds the limit of {MAX_BYTES:,} bytes")
    return content

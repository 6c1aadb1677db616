"""Pictures of any kind, cropped and resized as in evaluation."""

import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from rice_jax.index.store import About
from rice_jax.input.transforms import center_crop, cut
from rice_jax.types import DataError

# A file's path, the content of a file, a PIL image, or RGB as a uint8 array [H, W, 3].
AnyPicture = str | os.PathLike | bytes | Image.Image | np.ndarray


def show(picture: AnyPicture, about: About) -> UInt8[np.ndarray, "S S 3"]:
    """Crops and resizes a picture as evaluation does.

    Args:
        picture: any picture; the EXIF orientation of a file is ignored, as in evaluation.
        about: the model that the picture is for.

    Raises:
        DataError: it is not a picture, or it is damaged.
        OSError: its file cannot be read.
    """
    side = about.model.encoder.image_size
    crop = center_crop(about.resize, side)
    if isinstance(picture, str | os.PathLike):
        name, encoded = str(picture), Path(picture).read_bytes()
    elif isinstance(picture, bytes):
        name, encoded = f"a picture of {len(picture)} bytes", picture
    else:
        return cut(_decoded(picture), crop, side)
    try:
        return cut(Image.open(io.BytesIO(encoded)), crop, side)
    except UnidentifiedImageError as error:  # its message names an object in memory
        raise DataError(f"{name} cannot be decoded: it is not an image") from error
    except Exception as error:  # Pillow may raise anything on a damaged file
        raise DataError(f"{name} cannot be decoded: {error}") from error


def _decoded(picture: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")  # a copy, as `cut` may change what it gets
    if not isinstance(picture, np.ndarray):
        raise DataError(f"found {type(picture).__name__}, expected a path, bytes, a PIL image, or an array")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DataError(
            f"found an array of type {picture.dtype} and shape {list(picture.shape)}, expected RGB of type uint8 and "
            "shape [height, width, 3]"
        )
    return Image.fromarray(picture)

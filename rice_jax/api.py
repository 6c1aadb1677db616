"""Embeddings from Python: `rice_jax.load`."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32, UInt8
from PIL import Image

from rice_jax.index.model import Model, load_model
from rice_jax.input.transforms import center_crop, cut, sample_frames
from rice_jax.types import DataError

MAX_BATCH_SIZE = 32  # images embedded together

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray


def load(source: str | os.PathLike) -> "TrainedModel":
    """Loads a trained model on this process's first device.

    Example:
        >>> import rice_jax
        >>> model = rice_jax.load("runs/lpr4m")
        >>> images = model.embed_images(["pictures/mug.jpg", "pictures/sofa.jpg"])
        >>> clip = model.embed_video(["frames/0.jpg", "frames/1.jpg"])
        >>> (images @ clip).shape
        (2,)

    Args:
        source: a run's workdir, one of its checkpoints, or a converted model.

    Raises:
        CheckpointError: there is no checkpoint, it cannot be read, or it holds a detector.
    """
    return TrainedModel(load_model(source))


class TrainedModel:
    """Embeds images and videos so that the cosine of an image and a video tells whether they show the same product.

    A picture is a file's path, the content of a file (bytes), a PIL image, or RGB as a uint8 array `[H, W, 3]`. Paths
    and bytes are shown to the model as in evaluation, which ignores EXIF orientation.

    Attributes:
        embed_dim: size of an embedding.
        num_frames: largest number of frames that a video's embedding is made of.
    """

    def __init__(self, model: Model):
        """Wraps a loaded model; `load` is the usual way to get one."""
        graphdef, about = model.graphdef, model.about
        self.embed_dim, self.num_frames = about.model.encoder.embed_dim, about.num_frames
        self._params, self._side = model.params, about.model.encoder.image_size
        self._crop = center_crop(about.resize, self._side)
        self._image = jax.jit(lambda params, image: nnx.merge(graphdef, params).embed_image(image))
        self._video = jax.jit(lambda params, video, mask: nnx.merge(graphdef, params).embed_video(video, mask))

    def embed_images(self, pictures: Sequence[Picture]) -> Float32[np.ndarray, "N E"]:
        """Embeds product images.

        Args:
            pictures: at least one.

        Returns:
            One row for each picture, unit length.

        Raises:
            DataError: there is no picture, or one cannot be used.
            OSError: a file cannot be read.
        """
        prepared = self._prepare(pictures, "pictures")
        parts = []
        for start in range(0, len(prepared), MAX_BATCH_SIZE):
            part = prepared[start : start + MAX_BATCH_SIZE]
            # Each batch size is compiled once, so batches are padded to a power of two.
            padded = np.zeros((1 << (len(part) - 1).bit_length(), *part.shape[1:]), np.uint8)
            padded[: len(part)] = part
            parts.append(np.asarray(self._image(self._params, padded))[: len(part)])
        return np.concatenate(parts)

    def embed_video(self, frames: Sequence[Picture]) -> Float32[np.ndarray, " E"]:
        """Embeds a video.

        Args:
            frames: pictures in order, at least one; more than `num_frames` are sampled evenly, as in evaluation.

        Returns:
            The embedding, unit length.

        Raises:
            DataError: there is no frame, or one cannot be used.
            OSError: a file cannot be read.
        """
        _require_pictures(frames, "frames")
        prepared = self._prepare([frames[place] for place in sample_frames(len(frames), self.num_frames)], "frames")
        video = np.zeros((1, self.num_frames, *prepared.shape[1:]), np.uint8)
        video[0, : len(prepared)] = prepared
        mask = np.arange(self.num_frames)[None] < len(prepared)
        return np.asarray(self._video(self._params, video, mask))[0]

    def _prepare(self, pictures: Sequence[Picture], name: str) -> UInt8[np.ndarray, "N S S 3"]:
        _require_pictures(pictures, name)
        return np.stack([self._show(picture, f"{name}[{place}]") for place, picture in enumerate(pictures)])

    def _show(self, picture: Picture, name: str) -> UInt8[np.ndarray, "S S 3"]:
        """A picture as evaluation shows it to the model."""
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
                raise DataError(
                    f"{name}: found an array of type {picture.dtype} and shape {list(picture.shape)}, expected RGB of "
                    "type uint8 and shape [height, width, 3]"
                )
            return cut(Image.fromarray(picture), self._crop, self._side)
        if isinstance(picture, Image.Image):
            return cut(picture.convert("RGB"), self._crop, self._side)
        if isinstance(picture, str | os.PathLike):
            name, picture = str(picture), Path(picture).read_bytes()
        if not isinstance(picture, bytes):
            raise DataError(f"{name}: found {type(picture).__name__}, expected a path, bytes, a PIL image, or an array")
        try:
            return cut(Image.open(io.BytesIO(picture)), self._crop, self._side)
        except Exception as error:  # Pillow may raise anything on a damaged file
            raise DataError(f"{name}: found {len(picture)} bytes that are not a picture: {error}") from error


def _require_pictures(pictures: Sequence[Picture], name: str) -> None:
    if isinstance(pictures, str | bytes | os.PathLike | Image.Image):
        raise DataError(f"{name}: found one {type(pictures).__name__}, expected a list of pictures")
    if not len(pictures):
        raise DataError(f"{name}: found none, expected at least one")

"""Embeddings from Python: `rice_jax.load`."""

import io
import os
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32, UInt8
from PIL import Image

from rice_jax.index.model import Model, load_model
from rice_jax.index.pictures import AnyPicture, show
from rice_jax.input.transforms import sample_frames
from rice_jax.types import DataError

MAX_BATCH_SIZE = 32  # images embedded together


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
    """Embeds images and videos: the higher their cosine, the likelier the video shows the product in the image.

    A picture is a file's path, the content of a file (bytes), an open binary file, a PIL image, or RGB as a uint8 array
    `[H, W, 3]`. It is cropped and resized as in evaluation: turned as its EXIF data say, in sRGB, and on white.

    Attributes:
        embed_dim: size of an embedding.
        num_frames: largest number of frames in a video's embedding.
    """

    def __init__(self, model: Model):
        """Wraps a loaded model; `load` is the usual way to get one."""
        graphdef, about = model.graphdef, model.about
        self.embed_dim, self.num_frames = about.model.embed_dim, about.num_frames
        self._about, self._params = about, model.params
        self._image = jax.jit(lambda params, batch: nnx.merge(graphdef, params).embed_image(batch))
        self._video = jax.jit(lambda params, batch: nnx.merge(graphdef, params).embed_video(batch))

    def embed_images(self, pictures: Iterable[AnyPicture]) -> Float32[np.ndarray, "N E"]:
        """Embeds product images.

        Args:
            pictures: at least one.

        Returns:
            One row for each picture, unit length.

        Raises:
            DataError: there is no picture, or one cannot be used.
            OSError: a file cannot be read.
        """
        pictures = _listed(pictures, "pictures")
        parts = []
        for start in range(0, len(pictures), MAX_BATCH_SIZE):
            part = self._show(pictures, range(start, min(start + MAX_BATCH_SIZE, len(pictures))), "pictures")
            # Every batch size is compiled anew, so batches are padded to a power of two.
            padded = np.zeros((1 << (len(part) - 1).bit_length(), *part.shape[1:]), np.uint8)
            padded[: len(part)] = part
            parts.append(np.asarray(self._image(self._params, {"image": padded}))[: len(part)])
        return np.concatenate(parts)

    def embed_video(self, frames: Iterable[AnyPicture]) -> Float32[np.ndarray, " E"]:
        """Embeds a video.

        Args:
            frames: pictures in order, at least one; more than `num_frames` are sampled evenly, as in evaluation.

        Returns:
            The embedding, unit length.

        Raises:
            DataError: there is no frame, or one cannot be used.
            OSError: a file cannot be read.
        """
        frames = _listed(frames, "frames")
        shown = self._show(frames, sample_frames(len(frames), self.num_frames).tolist(), "frames")
        video = np.zeros((1, self.num_frames, *shown.shape[1:]), np.uint8)
        video[0, : len(shown)] = shown
        frame_mask = np.arange(self.num_frames)[None] < len(shown)
        return np.asarray(self._video(self._params, {"video": video, "frame_mask": frame_mask}))[0]

    def _show(self, pictures: Sequence[AnyPicture], places: Iterable[int], name: str) -> UInt8[np.ndarray, "N S S 3"]:
        """Crops and resizes some of the pictures as in evaluation."""
        shown = []
        for place in places:
            try:
                shown.append(show(pictures[place], self._about))
            except DataError as error:
                raise DataError(f"{name}[{place}]: {error}") from error
        return np.stack(shown)


def _listed(pictures: Iterable[AnyPicture], name: str) -> list[AnyPicture]:
    one = str | bytes | bytearray | memoryview | os.PathLike | Image.Image | io.IOBase
    if isinstance(pictures, one):
        raise DataError(f"{name}: found one {type(pictures).__name__}, expected a list of pictures")
    listed = list(pictures)
    if not listed:
        raise DataError(f"{name}: found none, expected at least one")
    return listed

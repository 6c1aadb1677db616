"""A teacher's embeddings of the training data, by which `losses.distillation` teaches.

A folder holds `images.parquet` with the embeddings of images by their ids, and optionally `videos.parquet` with those
of clips, in the form of `text_embeddings`. A clip without an embedding of its own is taught by that of its image.
"""

import functools
from pathlib import Path

import numpy as np

from rice_jax.config import InputConfig
from rice_jax.input.text_embeddings import TextEmbeddings, read_kind
from rice_jax.input.views import Part, TrainExample, View
from rice_jax.types import DataError

KINDS = "images", "videos"


def teacher_views(config: InputConfig) -> list[View]:
    """The view of the teacher's embeddings, if the settings name one."""
    return [TeacherView(config)] if config.teacher_dim else []


class TeacherView(View):
    """The teacher's embeddings of image and video, `teacher` [2, W], and whether there are any, `teacher_mask` [2]."""

    columns = ("image_id", "clip_id")

    def __init__(self, config: InputConfig):
        """Checks the embeddings.

        Raises:
            FileNotFoundError: there are none.
            DataError: they are damaged, or of another size than the settings say.
        """
        self._directory, self._dim = config.teacher, config.teacher_dim
        for kind, embeddings in read_teacher(config.teacher).items():
            if (size := embeddings.vectors.shape[1]) != config.teacher_dim:
                raise DataError(
                    f"{config.teacher}: found {kind} with embeddings of {size} numbers, expected "
                    f"config.loss.distill_dim ({config.teacher_dim})"
                )

    def train(self, example: TrainExample) -> Part:
        found = read_teacher(self._directory)  # a worker process reads its own
        image = found["images"].get(example.row["image_id"].decode())
        video = found["videos"].get(example.row["clip_id"].decode()) if "videos" in found else None
        vectors = image, image if video is None else video
        zeros = np.zeros(self._dim, np.float32)
        return {
            "teacher": np.stack([zeros if vector is None else vector for vector in vectors]),
            "teacher_mask": np.array([vector is not None for vector in vectors]),
        }


@functools.cache  # once in each process
def read_teacher(directory: str) -> dict[str, TextEmbeddings]:
    """Reads a teacher's embeddings by their kind: "images" and, if there are any, "videos".

    Raises:
        FileNotFoundError: there are none of images.
        DataError: a file is damaged, has another form, or is of another model than the others.
    """
    found = {kind: embeddings for kind in KINDS if (embeddings := read_kind(Path(directory), kind))}
    if "images" not in found:
        raise FileNotFoundError(
            f"{directory}: found no images.parquet or images/*.parquet, expected a teacher's embeddings of images with "
            "the columns id and embedding (docs/training.md, Distillation)"
        )
    if len({embeddings.fingerprint for embeddings in found.values()}) > 1:
        raise DataError(f"{directory}: images and videos are of two models; embed both with one")
    return found

"""A trained model as an encoder of MTEB, the Massive Text (and Image, Audio, Video) Embedding Benchmark.

MTEB has MovingFashion's test set as the task `MovingFashionV2IRetrieval`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from rice_jax.api import TrainedModel


class MtebEncoder:
    """Embeds MTEB's images and videos; an implementation of its `EncoderProtocol`.

    Example:
        >>> import mteb, rice_jax
        >>> from rice_jax.mteb_encoder import MtebEncoder
        >>> model = MtebEncoder(rice_jax.load("runs/movingfashion"), "me/rice")
        >>> mteb.evaluate(model, mteb.get_tasks(tasks=["MovingFashionV2IRetrieval"]))

    Attributes:
        mteb_model_meta: what MTEB files the results under.
    """

    def __init__(self, model: TrainedModel, name: str):
        """Wraps a model.

        Args:
            model: from `rice_jax.load`.
            name: of the model in MTEB's results, as "OWNER/NAME".
        """
        from mteb.models import ModelMeta

        self._model = model
        facts = {"name": name, "modalities": ["image", "video"], "embed_dim": model.embed_dim}
        self.mteb_model_meta = ModelMeta.create_empty(facts)

    def encode(self, inputs: Iterable[Mapping[str, Any]], **_: Any) -> Float32[np.ndarray, "N E"]:
        """Embeds the pictures or the videos of a DataLoader's batches.

        Args:
            inputs: batches with `image`, a list of PIL images, or `video`, a list of torchcodec's decoders. At most
                `num_frames` frames of a video are used, evenly spread.
        """
        parts = []
        for batch in inputs:
            if "video" in batch:
                parts += [
                    self._model.embed_video(_sample(video, self._model.num_frames))[None] for video in batch["video"]
                ]
            else:
                parts.append(self._model.embed_images(batch["image"]))
        return np.concatenate(parts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float32[np.ndarray, "N M"]:
        """Cosines of all pairs."""
        return np.atleast_2d(np.asarray(embeddings1)) @ np.atleast_2d(np.asarray(embeddings2)).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float32[np.ndarray, " N"]:
        """Cosines of the rows with the same number."""
        return (np.asarray(embeddings1) * np.asarray(embeddings2)).sum(axis=-1)


def _sample(video: Any, num_frames: int) -> list[np.ndarray]:
    """RGB frames `[H, W, 3]` of a video; MTEB's function passes over a damaged end."""
    from mteb.models.modality_collators import FramesCollator

    frames = FramesCollator.resample_video(video, num_frames=min(num_frames, video.metadata.num_frames))
    return list(np.moveaxis(frames.numpy(), 1, -1))

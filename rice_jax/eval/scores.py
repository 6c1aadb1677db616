"""How similar a video is to each image of a gallery, by one of two scores.

    mean      the cosine of the image's embedding and the video's, into which the model aggregates the frames
    frames    the largest over the video's frames of: cosine of image and frame, minus the frame's mean over the gallery

By frames, one frame that shows the product well is enough, and a frame that resembles every image counts for none of
them. The model's aggregation has no part in it. Since a frame's mean is subtracted from all its cosines, the score is
also the largest cosine to the images' embeddings minus their mean, `center`, which is how it is computed.

A score by frames tells which image of a gallery a video shows, and not whether it shows any: in a gallery of one image
it is always 0.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int64

BLOCK = 4096  # rows of a gallery that are summed at a time; fixed, as the last bits of a sum depend on it


class VideoEmbeddings(NamedTuple):
    """What is compared of videos; unit length, float32."""

    embedding: Float[Array, "B E"]
    frames: Float[Array, "B T E"] | None = None  # 0 for padding; None = not kept
    frame_mask: Bool[Array, "B T"] | None = None  # True = a real frame
    speech: Float[Array, "B D"] | None = None  # 0 = there is none; None = not kept


def center(vectors: Float32[np.ndarray, "N E"], rows: Int64[np.ndarray, " G"]) -> Float64[np.ndarray, " E"]:
    """The mean of a gallery's embeddings, which is not of unit length.

    Args:
        vectors: of all images.
        rows: those of the gallery, at least one.
    """
    blocks = (vectors[rows[start : start + BLOCK]] for start in range(0, len(rows), BLOCK))
    return np.sum([block.sum(axis=0, dtype=np.float64) for block in blocks], axis=0) / len(rows)


def scores_by_frames(cosines: Float[np.ndarray, "T G"]) -> Float[np.ndarray, " G"]:
    """The scores of a gallery's images for one video.

    Args:
        cosines: of the video's frames, at least one and no padding, and all images of the gallery.
    """
    return (cosines - cosines.mean(axis=-1, keepdims=True)).max(axis=0)

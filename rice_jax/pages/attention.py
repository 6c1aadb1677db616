"""The decoder's attention as a page shows it: weights, and the parts of the pictures that they are about."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from rice_jax.config import InputConfig
from rice_jax.input import transforms
from rice_jax.input.decode import WHOLE
from rice_jax.pages.album import Album


class Attention:
    """The attention of some queries, as a page shows it."""

    def __init__(self, data: InputConfig, image_ids: Mapping[int, str], weights: UInt8[np.ndarray, "q P T N"]):
        """Stores the weights.

        Args:
            data: how pictures are cropped.
            image_ids: {place of a query: its true image}, ascending.
            weights: of these queries, from `eval.attention.attention_maps`.
        """
        self._data, self._image_ids = data, dict(image_ids)
        self._weights = dict(zip(image_ids, weights, strict=True))

    def of(self, place: int, gallery_id: str, frames: Sequence[Mapping[str, Any]], album: Album) -> dict | None:
        """What a page shows of a query's attention.

        Args:
            place: of the query.
            gallery_id: its gallery.
            frames: its frames, from `Album.query`.
            album: pictures of the gallery.

        Returns:
            `image`; `grid`, patches along a side; `weights`, base64 of one byte for each patch of the image, frame, and
            patch of the frame; `window` of the image and `windows` of the frames that the model sees, in shares of
            the picture. None if this query's attention has not been computed.
        """
        if place not in self._weights:
            return None
        weights = self._weights[place][:, : len(frames)]
        boxes = [frame["found" if self._data.query_boxes else "truths"] for frame in frames]
        center = transforms.center_crop(self._data.resize, self._data.image_size)
        return {
            "image": album.image(gallery_id, self._image_ids[place]),
            "grid": math.isqrt(len(weights)),
            "weights": base64.b64encode(weights.tobytes()).decode(),
            "window": center,
            "windows": [transforms.inside(self._outer(found), center) for found in boxes],
        }

    def _outer(self, boxes: Sequence[transforms.Box]) -> transforms.Crop:
        if self._data.ipd == "off" or self._data.ipd_use != "crop" or not boxes:
            return WHOLE
        return transforms.around_box(boxes[0], self._data.ipd_margin)

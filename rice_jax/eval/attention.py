"""Where the decoder looks in a query's frames from each patch of its true image."""

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree, UInt8

from rice_jax.config import InputConfig
from rice_jax.eval.ranking import Ranking
from rice_jax.input import transforms
from rice_jax.input.decode import WHOLE
from rice_jax.input.pipeline import eval_batches
from rice_jax.models.layers import video_token_mask
from rice_jax.models.rice import normalize
from rice_jax.pages.album import Album

NUM_QUERIES = 40  # whose attention is drawn
GRID = 8  # patches along a side that are drawn at most; of more, several become one


class Attention:
    """The attention of some queries, ready for a page."""

    def __init__(self, data: InputConfig, image_ids: Mapping[int, str], weights: UInt8[np.ndarray, "q P T N"]):
        """Keeps what was computed.

        Args:
            data: how pictures are cut.
            image_ids: {place of a query: its true image}, ascending.
            weights: of these queries, from `attention_maps`.
        """
        self._data, self._image_ids = data, dict(image_ids)
        self._weights = dict(zip(image_ids, weights, strict=True))

    def of(self, place: int, gallery_id: str, frames: Sequence[Mapping[str, Any]], album: Album) -> dict | None:
        """What a page shows of a query's attention.

        Args:
            place: of the query.
            gallery_id: its gallery.
            frames: what the album says of it.
            album: has the image.

        Returns:
            `image`; `grid`, patches along a side; `weights`, base64 of a byte for every patch of the image, frame, and
            patch of the frame; `window` of the image and `windows` of the frames that the model sees, in shares of
            the picture. None = this query's has not been computed.
        """
        if place not in self._weights:
            return None
        weights = self._weights[place][:, : len(frames)]
        boxes = [frame["found" if self._data.query_boxes else "truths"] for frame in frames]
        centre = transforms.center_crop(self._data.resize, self._data.image_size)
        return {
            "image": album.image(gallery_id, self._image_ids[place]),
            "grid": math.isqrt(len(weights)),
            "weights": base64.b64encode(weights.tobytes()).decode(),
            "window": centre,
            "windows": [transforms.inside(self._outer(found), centre) for found in boxes],
        }

    def _outer(self, boxes: Sequence[transforms.Box]) -> transforms.Crop:
        if self._data.ipd == "off" or self._data.ipd_use != "crop" or not boxes:
            return WHOLE
        return transforms.around_box(boxes[0], self._data.ipd_margin)


def true_images(places: Sequence[int], ranked: Ranking, image_rows: Mapping[tuple[str, str], int]) -> dict[int, str]:
    """{place of a query: a true image that is in its gallery}, ascending, of the queries that have one."""
    found = {}
    for place in sorted(places):
        gallery = ranked.gallery_ids[place]
        known = [truth for truth in ranked.truths[place] if (gallery, truth) in image_rows]
        if known:
            found[place] = known[0]
    return found


def attention_batches(
    data: InputConfig, batch_size: int, queries: Sequence[int], images: Sequence[int]
) -> Iterator[dict]:
    """This process's share of pairs of a query and an image.

    Args:
        data: what to read and how.
        batch_size: global number of pairs.
        queries: rows of the queries, ascending.
        images: rows of the gallery, one for each.

    Returns:
        Iterator over the batches of `eval_batches`, `image` and `video` in one; `index` counts the pairs.

    Raises:
        FileNotFoundError, DataError: as `eval_batches`.
    """
    processes = (jax.process_index(), jax.process_count())
    videos = eval_batches(data, "query", batch_size, *processes, rows=queries)
    pictures = eval_batches(data, "gallery", batch_size, *processes, rows=images)
    for video, picture in zip(videos, pictures, strict=True):
        index = np.searchsorted(queries, video["index"]).astype(np.int32)
        yield video | {"image": picture["image"], "index": index}


def attention_maps(graphdef: nnx.GraphDef) -> Callable[[PyTree, dict], UInt8[jax.Array, "b P T N"]]:
    """The function of (params, batch) to the mean attention over all heads from every patch of an image.

    The weights of a patch of the image are scaled so that its largest is 255; CLS tokens are left out.
    """

    def attend(params: PyTree, batch: dict) -> jax.Array:
        model = nnx.merge(graphdef, params)
        frame_mask, patch_mask = batch["frame_mask"], batch.get("patch_mask")
        tokens, _ = model.encode(batch["video"], patch_mask)  # [b, T, L, D]
        b, num_frames, num_tokens, width = tokens.shape
        token_mask = video_token_mask(frame_mask, patch_mask, num_tokens)
        image_tokens, _ = model.encoder(normalize(batch["image"]))
        queries = model.pmd.image_queries(image_tokens, with_attention=True)
        video = model.pmd.keys_values(tokens.reshape(b, -1, width))
        _, maps = model.pmd.look(queries, video, token_mask, with_attention=True)  # [b, C, L, M]
        weights = maps.mean(axis=1).reshape(b, num_tokens, num_frames, num_tokens)[:, 1:, :, 1:]
        side = math.isqrt(num_tokens - 1)
        drawn = min(side, GRID)
        square = weights.reshape(b, side, side, num_frames, side, side)
        square = jax.image.resize(square, (b, drawn, drawn, num_frames, drawn, drawn), "linear")
        weights = square.reshape(b, drawn**2, num_frames, drawn**2)
        largest = weights.max(axis=(2, 3), keepdims=True)
        return jnp.round(255 * weights / jnp.maximum(largest, 1e-12)).astype(jnp.uint8)  # CLS may have it all

    return attend

"""The decoder's attention from each patch of a query's true image to the query's frames."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree, UInt8

from rice_jax.config import InputConfig
from rice_jax.eval.ranking import Ranking
from rice_jax.input.pipeline import eval_batches
from rice_jax.models.contract import SupportsAttention, require

NUM_QUERIES = 40  # whose attention is drawn
GRID = 8  # largest number of patches along a side that is drawn; more are averaged


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
        yield picture | video | {"index": index}


@functools.cache
def attention_maps(graphdef: nnx.GraphDef) -> Callable[[PyTree, dict], UInt8[jax.Array, "b P T N"]]:
    """The function of (params, batch) to the mean attention over all heads from every patch of an image.

    The weights of a patch of the image are scaled so that its largest is 255; CLS tokens are left out.
    """

    def attend(params: PyTree, batch: dict) -> jax.Array:
        model = nnx.merge(graphdef, params)
        require(model, SupportsAttention, "a report's map of attention")
        weights = model.attention_maps(batch)  # [b, N, T, N]
        b, num_patches, num_frames, _ = weights.shape
        side = math.isqrt(num_patches)
        drawn = min(side, GRID)
        square = weights.reshape(b, side, side, num_frames, side, side)
        square = jax.image.resize(square, (b, drawn, drawn, num_frames, drawn, drawn), "linear")
        weights = square.reshape(b, drawn**2, num_frames, drawn**2)
        largest = weights.max(axis=(2, 3), keepdims=True)
        return jnp.round(255 * weights / jnp.maximum(largest, 1e-12)).astype(jnp.uint8)  # CLS may have it all

    return attend

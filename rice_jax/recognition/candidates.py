"""The products of an index in Milvus that a video may show, as an index that an engine searches."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, PyTree

from rice_jax.index.milvus import MilvusIndex
from rice_jax.index.store import Index
from rice_jax.models.contract import SupportsStreaming, require
from rice_jax.recognition.engine import Engine, Frames
from rice_jax.recognition.products import Where
from rice_jax.types import DataError

LIMIT = 100  # pictures that are fetched for a frame or clip


def find_candidates(
    engine: Engine,
    frames: Frames,
    index: MilvusIndex,
    *,
    limit: int = LIMIT,
    gallery: str | None = None,
    where: Where | None = None,
    said: Sequence[str] = (),
) -> Index:
    """Fetches the products whose pictures are most similar to the frames of a video, with all their pictures.

    Milvus is asked for each frame, and for each clip of as many frames as the model takes together; clips overlap by
    half.

    Args:
        engine: has encoded the frames, with the model that made the index.
        frames: at least one.
        index: where the products are.
        limit: number of pictures that are fetched for each frame and each clip.
        gallery: id of the gallery that is searched; None = all.
        where: searches only products of which the further columns of the shop's CSV say this.
        said: what is said around each frame (`speech.said_around`); () = nothing.

    Raises:
        DataError: there is no such gallery, column, or product.
        OSError: Milvus refuses.
    """
    require(nnx.merge(engine.model.graphdef, engine.model.params), SupportsStreaming, "a search in Milvus")
    unit = frames.features / np.linalg.norm(frames.features, axis=1, keepdims=True)
    clips = dict(_clips(engine, frames))
    queries = np.concatenate([unit, *clips.values()])
    if index.projection is not None:
        queries = queries @ index.projection
    if text := engine.index.text:
        of_frames = engine.embed_texts(said or [""] * len(unit)) * np.float32(np.sqrt(text.weight))
        queries = np.concatenate([queries, of_frames[[*range(len(unit)), *clips]]], axis=1)
    hits = index.search(queries, min(limit, index.num_pictures), gallery=gallery, where=where)
    products = [hit.product for own in hits for hit in own]
    if not products:
        raise DataError(f"found no product in gallery {gallery!r} that meets the conditions {dict(where or {})}")
    return index.take(products)


def _clips(engine: Engine, frames: Frames) -> Iterator[tuple[int, Float32[np.ndarray, "1 E"]]]:
    """The frames in the middle of clips that together have all frames, and the clips' embeddings."""
    graphdef, size = engine.model.graphdef, engine.num_frames

    @jax.jit
    def aggregate(params: PyTree, features: Float[Array, "1 T E"], mask: Bool[Array, "1 T"]) -> Float[Array, "1 E"]:
        return nnx.merge(graphdef, params).aggregate(features, mask)

    step = max(size // 2, 1)
    for start in range(0, max(len(frames.features) - size + step, 1), step):
        features = np.zeros((1, size, frames.features.shape[1]), np.float32)
        part = frames.features[start : start + size]
        features[0, : len(part)] = part
        embedding = aggregate(engine.model.params, features, np.arange(size)[None] < len(part))
        yield start + len(part) // 2, np.asarray(embedding, np.float32)

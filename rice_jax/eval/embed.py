"""Applies a function, such as an embedder, to a whole data set, over all devices and in fixed shapes.

Functions of a model are made, and compiled, once for each structure of a model.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import PyTreeDef
from jaxtyping import Array, BFloat16, Bool, Float, PyTree, UInt8

from rice_jax.eval.scores import VideoEmbeddings
from rice_jax.models.aggregation.mean import embed, masked_mean
from rice_jax.models.contract import SupportsMatching, SupportsStreaming, SupportsTexts, require
from rice_jax.models.resample import show
from rice_jax.parallel.mesh import BATCH, global_batch, parameter_shardings, replicated
from rice_jax.types import EmbeddedTexts

PIXEL_SIDE = 16  # of the thumbnails that the raw-pixel baseline compares


class Images(NamedTuple):
    """What is computed once for every image."""

    embedding: Float[Array, "B E"]  # unit length, float32
    queries: BFloat16[Array, "B R D"] | None = None  # `EncodedImages.queries`, only for re-ranking
    title: Float[Array, "B D"] | None = None  # unit length, float32; 0 = there is none; None = not kept


class Embedder(NamedTuple):
    """Two functions of (params, batch); a video gives its unit-length float32 embedding `[b, E]`, or more with it."""

    image: Callable[[PyTree, dict], Images]
    video: Callable[[PyTree, dict], jax.Array | VideoEmbeddings]


@functools.cache
def model_embedder(
    graphdef: nnx.GraphDef, *, with_queries: bool = False, with_frames: bool = False, with_texts: bool = False
) -> Embedder:
    """The model's embeddings, and with `with_queries` the images' side of a match.

    Args:
        graphdef: of the model.
        with_queries: whether re-ranking needs the images.
        with_frames: whether a video also gives its frames' embeddings, which needs a batch without `patch_mask`.
        with_texts: whether images also give their titles, and videos their speech.
    """

    def image(params: PyTree, batch: dict) -> Images:
        model = nnx.merge(graphdef, params)
        if with_texts:
            require(model, SupportsTexts, "ranking by picture and text")
        title = _present(model.title(batch)) if with_texts else None
        if not with_queries:
            return Images(model.embed_image(batch), title=title)
        require(model, SupportsMatching, "re-ranking")
        encoded = model.encode_images(batch)
        return Images(encoded.embedding, encoded.queries.astype(jnp.bfloat16), title)

    def video(params: PyTree, batch: dict) -> jax.Array:
        return nnx.merge(graphdef, params).embed_video(batch)

    def frames(params: PyTree, batch: dict) -> VideoEmbeddings:
        assert "patch_mask" not in batch, "frames are encoded whole; the settings exclude it"
        model, video, frame_mask = nnx.merge(graphdef, params), batch["video"], batch["frame_mask"]
        require(model, SupportsStreaming, "ranking by frames")
        features = model.encode_frames(video.reshape(-1, *video.shape[2:])).features.reshape(*video.shape[:2], -1)
        return VideoEmbeddings(model.aggregate(features, frame_mask), *_embed_each(features, frame_mask))

    embed_video = frames if with_frames else video

    def speech(params: PyTree, batch: dict) -> VideoEmbeddings:
        model, found = nnx.merge(graphdef, params), embed_video(params, batch)
        require(model, SupportsTexts, "ranking by picture and text")
        own = found if isinstance(found, VideoEmbeddings) else VideoEmbeddings(found)
        return own._replace(speech=_present(model.speech(batch)))

    return Embedder(image, speech if with_texts else embed_video)


def _present(texts: EmbeddedTexts | None) -> Float[Array, "B D"]:
    """The embeddings of texts; 0 for those that are missing."""
    assert texts is not None, "the settings exclude a data set without texts"
    return jnp.where(texts.mask[:, None], texts.embedding, 0)


@functools.cache
def domain_embedder(graphdef: nnx.GraphDef, domain: str) -> Callable[[PyTree, dict], jax.Array]:
    """The embeddings of items of a domain, for models that have several (`SupportsDomains`)."""
    return lambda params, batch: nnx.merge(graphdef, params).embed_domain(batch, domain)


@functools.cache
def pixel_embedder(*, with_frames: bool = False) -> Embedder:
    """The baseline that compares raw pixels; it has no parameters."""

    def video(_: PyTree, batch: dict) -> jax.Array | VideoEmbeddings:
        features, frame_mask = thumbnail(batch["video"]), batch["frame_mask"]
        mean = _direction(masked_mean(features, frame_mask))
        each = jnp.where(frame_mask[..., None], _direction(features), 0)
        return VideoEmbeddings(mean, each, frame_mask) if with_frames else mean

    return Embedder(image=lambda _, batch: Images(_direction(thumbnail(batch["image"]))), video=video)


def _direction(thumbnails: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
    """Thumbnails at unit length; those of pictures of one color are about 0, and similar to nothing."""
    return thumbnails / jnp.maximum(jnp.linalg.norm(thumbnails, axis=-1, keepdims=True), 1.0)


def _embed_each(
    features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]
) -> tuple[Float[Array, "B T E"], Bool[Array, "B T"]]:
    return jnp.where(frame_mask[..., None], embed(features), 0), frame_mask


def thumbnail(pictures: UInt8[Array, "*B S S 3"]) -> Float[Array, "*B P"]:
    """Pictures at 16×16, each minus its own mean, so that equal exposure alone does not make two of them similar."""
    shape = (*pictures.shape[:-3], PIXEL_SIDE, PIXEL_SIDE, 3)
    small = jax.image.resize(pictures.astype(jnp.float32), shape, "linear", antialias=True)
    flat = small.reshape(*shape[:-3], -1)
    return flat - flat.mean(axis=-1, keepdims=True)


def compile_embedder(embedder: Embedder, params: PyTree, mesh: Mesh) -> Embedder:
    """Compiles both functions."""
    return Embedder(*(compile_rows(function, params, mesh) for function in embedder))


def padded_batch_size(batch_size: int, mesh: Mesh) -> int:
    """The next multiple of the number of devices; rows that pad a batch are not counted."""
    return -(-batch_size // mesh.size) * mesh.size


def compile_rows(function: Callable[[PyTree, dict], PyTree], params: PyTree, mesh: Mesh) -> Callable:
    """Compiles a function of (params, batch): every device computes its rows, and every process gets all of them."""
    leaves, structure = jax.tree.flatten(parameter_shardings(mesh, params))
    return _compile_rows(function, tuple(leaves), structure, mesh)


@functools.cache
def _compile_rows(function: Callable, leaves: tuple[NamedSharding, ...], structure: PyTreeDef, mesh: Mesh) -> Callable:
    shardings = (jax.tree.unflatten(structure, leaves), NamedSharding(mesh, BATCH))
    shown = lambda params, batch: function(params, show(batch))  # noqa: E731
    return jax.jit(shown, in_shardings=shardings, out_shardings=replicated(mesh))


@functools.cache
def _gather(mesh: Mesh) -> Callable:
    return jax.jit(lambda rows: rows, out_shardings=replicated(mesh))


def compute_rows(
    function: Callable[[PyTree, dict], PyTree], params: PyTree, batches: Iterable[dict], num_rows: int, mesh: Mesh
) -> PyTree:
    """Applies a function to every row of a data set.

    Args:
        function: output of `compile_rows`, e.g. one function of a compiled `Embedder`.
        params: its parameters.
        batches: this process's share, all of one shape; `index` is the row, and `mask` is False for padding.
        num_rows: of the data set.
        mesh: all devices.

    Returns:
        The function's arrays in the order of the data set, `[num_rows, ...]`, on the host, the same in every process.
    """
    gather = _gather(mesh)
    results = None
    for local in batches:
        batch = global_batch(mesh, local)
        found = function(params, batch)
        found, index, mask = jax.device_get((found, *gather((batch["index"], batch["mask"]))))
        if results is None:
            results = jax.tree.map(lambda rows: np.empty((num_rows, *rows.shape[1:]), rows.dtype), found)
        for result, rows in zip(jax.tree.leaves(results), jax.tree.leaves(found), strict=True):
            result[index[mask]] = rows[mask]
    return results

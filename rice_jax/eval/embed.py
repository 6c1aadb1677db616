"""Embeddings of a whole data set, computed over all devices in fixed shapes."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, PyTree, UInt8

from rice_jax.mesh import BATCH, global_batch, parameter_shardings, replicated
from rice_jax.models.rice import embed, embed_frames

PIXEL_SIDE = 16  # of the thumbnails that the raw-pixel baseline compares


class Embedder(NamedTuple):
    """Two functions of (params, batch) to unit-length float32 embeddings `[b, E]`."""

    image: Callable[[PyTree, dict], jax.Array]
    video: Callable[[PyTree, dict], jax.Array]


def model_embedder(graphdef: nnx.GraphDef) -> Embedder:
    """RICE's own embeddings."""
    return Embedder(
        image=lambda params, batch: nnx.merge(graphdef, params).embed_image(batch["image"]),
        video=lambda params, batch: nnx.merge(graphdef, params).embed_video(batch["video"], batch["frame_mask"]),
    )


def pixel_embedder() -> Embedder:
    """The baseline that looks at nothing but colours and where they are; it has no parameters."""
    return Embedder(
        image=lambda _, batch: embed(thumbnail(batch["image"])),
        video=lambda _, batch: embed_frames(thumbnail(batch["video"]), batch["frame_mask"]),
    )


def thumbnail(pictures: UInt8[Array, "*B S S 3"]) -> Float[Array, "*B P"]:
    """Pictures at 16×16, each minus its own mean, so that exposure alone makes no neighbour."""
    shape = (*pictures.shape[:-3], PIXEL_SIDE, PIXEL_SIDE, 3)
    small = jax.image.resize(pictures.astype(jnp.float32), shape, "linear", antialias=True)
    flat = small.reshape(*shape[:-3], -1)
    return flat - flat.mean(axis=-1, keepdims=True)


def compile_embedder(embedder: Embedder, params: PyTree, mesh: Mesh) -> Embedder:
    """jit over the mesh: every device embeds its rows, every process gets all of them."""
    shardings = (parameter_shardings(mesh, params), NamedSharding(mesh, BATCH))
    compile_one = lambda function: jax.jit(function, in_shardings=shardings, out_shardings=replicated(mesh))  # noqa: E731
    return Embedder(compile_one(embedder.image), compile_one(embedder.video))


def embed_all(
    function: Callable[[PyTree, dict], jax.Array], params: PyTree, batches: Iterable[dict], mesh: Mesh
) -> np.ndarray:
    """Embeds every row of a data set.

    Args:
        function: one of a compiled Embedder.
        params: its parameters.
        batches: this process's share of `eval_batches`, all of one shape; `index` and `mask` say which rows are there.
        mesh: all devices.

    Returns:
        Embeddings in the order of the data set, `[rows, E]` float32 on the host, the same in every process.
    """
    gather = jax.jit(lambda rows: rows, out_shardings=replicated(mesh))
    rows, embeddings = [], []
    for local in batches:
        batch = global_batch(mesh, local)
        embeddings.append(np.asarray(function(params, batch)))
        index, mask = jax.device_get(gather((batch["index"], batch["mask"])))
        rows.append(np.where(mask, index, -1))
    rows, embeddings = np.concatenate(rows), np.concatenate(embeddings)
    result = np.empty((int((rows >= 0).sum()), embeddings.shape[1]), np.float32)
    result[rows[rows >= 0]] = embeddings[rows >= 0]
    return result

"""What an engine computes on the device, in fixed shapes: compiled, and run once, before the first clip comes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, BFloat16, Bool, Float, Int, PyTree, Shaped, UInt8

from rice_jax.index.model import Model
from rice_jax.index.store import Index
from rice_jax.models.aggregation.mean import embed

HIGHEST = jax.lax.Precision.HIGHEST


def compiled(function: Callable, *arguments: Any) -> jax.stages.Compiled:
    """Compiles a function for the shapes of some arguments, and runs it with them."""
    program = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(program(*arguments))
    return program


def compile_encoders(
    model: Model, sizes: Sequence[int], side: int, *, with_tokens: bool
) -> dict[int, jax.stages.Compiled]:
    """Encodes pictures: a program for each number of them."""
    graphdef = model.graphdef

    def encode(params: PyTree, pictures: UInt8[Array, "b S S 3"]) -> tuple[Array, Array | None]:
        if not model.is_streaming:  # each frame is a clip of one
            clips = {"video": pictures[:, None], "frame_mask": jnp.ones((len(pictures), 1), bool)}
            return nnx.merge(graphdef, params).embed_video(clips), None
        encoded = nnx.merge(graphdef, params).encode_frames(pictures)
        return encoded.features.astype(jnp.float32), encoded.tokens if with_tokens else None

    return {size: compiled(encode, model.params, np.zeros((size, side, side, 3), np.uint8)) for size in sizes}


def comparing(model: Model, index: Index) -> tuple[Callable, Callable]:
    """The functions that compare a clip with an index's pictures: by the mean of its frames, and by frames."""
    graphdef, projection = model.graphdef, index.projection

    def project(embeddings: Float[Array, "*B E"]) -> Float[Array, "*B N"]:
        return embeddings if projection is None else jnp.matmul(embeddings, projection, precision=HIGHEST)

    def similar(
        params: PyTree, vectors: Float[Array, "G N"], kept: Shaped[Array, "T ..."], frame_mask: Bool[Array, " T"]
    ) -> Float[Array, " G"]:
        module = nnx.merge(graphdef, params)
        if model.is_streaming:
            clip = module.aggregate(kept[None], frame_mask[None])[0]
        else:
            clip = module.embed_video({"video": kept[None], "frame_mask": frame_mask[None]})[0]
        return jnp.matmul(vectors, project(clip), precision=HIGHEST)

    def by_frames(
        vectors: Float[Array, "G N"],
        center: Float[Array, " N"],
        features: Float[Array, "T E"],
        frame_mask: Bool[Array, " T"],
    ) -> Float[Array, " G"]:
        frames = project(embed(features))
        means = jnp.matmul(frames, center, precision=HIGHEST)
        scores = jnp.matmul(frames, vectors.T, precision=HIGHEST) - means[:, None]
        return jnp.where(frame_mask[:, None], scores, -jnp.inf).max(axis=0)

    return similar, by_frames


def matching(model: Model) -> Callable:
    """The function that matches a clip, and its speech as a batch of one has it, with some of an index's pictures."""
    graphdef = model.graphdef

    def match(
        params: PyTree,
        queries: BFloat16[Array, "G R D"],
        rows: Int[Array, " K"],
        tokens: Float[Array, "T L D"],
        frame_mask: Bool[Array, " T"],
        said: dict[str, Array],
    ) -> Float[Array, " K"]:
        module = nnx.merge(graphdef, params)
        return module.match(queries[rows][None], tokens[None], frame_mask[None], speech=module.speech(said))[0]

    return match


def compare_texts(
    titles: Float[Array, "G D"], speech: Float[Array, " D"], weight: Float[Array, ""]
) -> Float[Array, " G"]:
    """What the cosines of titles and speech add to the scores."""
    return weight * jnp.matmul(titles, speech, precision=HIGHEST)

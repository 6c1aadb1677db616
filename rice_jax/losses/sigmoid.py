"""SigLIP's loss, which judges every pair of a batch by itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rice_jax.losses.contrastive import similarity

# Folds a function of (shared, result, own rows, other rows) over blocks of pairs of rows; see
# `parallel.blocks.fold_pairs`.
Fold = Callable[[Callable, Any, Any, Any, Any], Any]


class Rows(NamedTuple):
    """One side of the pairs of a batch."""

    embedding: Float[Array, "B E"]  # unit length, float32
    image_key: Int[Array, " B"]  # equal for equal shop images
    pair: Int[Array, " B"]  # number of the pair
    real: Bool[Array, " B"]  # False = padding


def one_block(function: Callable, shared: Any, start: Any, own: Any, others: Any) -> Any:
    """Takes all pairs of rows at once."""
    return function(shared, start, own, others)


def sigmoid_loss(
    image: Float[Array, "B E"],
    video: Float[Array, "B E"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    image_key: Int[Array, " B"],
    same_image: str = "mask",
    real: Bool[Array, " B"] | None = None,
    fold: Fold = one_block,
) -> Float[Array, ""]:
    """Sum over all images and videos of the logistic loss of their pair, divided by the number of pairs of the batch.

    Args:
        image: unit-length embeddings, float32; row i belongs to row i of `video`.
        video: unit-length embeddings, float32.
        log_scale, bias: logits are exp(log_scale) · cos + bias.
        image_key: equal for equal shop images.
        same_image: what other pairs with the same shop image are: "negative", "positive", or neither ("mask").
        real: False = padding, which is left out; None = all are real.
        fold: how the blocks of the B × B pairs are gone through, for batches of which no device should hold all.

    Returns:
        Scalar loss, float32; 0 if no pair is real.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", section 3.
    Differs: `same_image`, `real`.
    """
    sides = _sides(image, video, image_key, real)

    def add(scales: tuple[Array, Array], losses: Float[Array, " b"], images: Rows, videos: Rows) -> Float[Array, " b"]:
        return losses + pair_losses(images, videos, *scales, same_image).sum(axis=1)

    losses = fold(add, (log_scale, bias), jnp.zeros(len(image)), *sides)
    return losses.sum() / jnp.maximum(sides[0].real.sum(), 1)


def pair_losses(
    images: Rows, videos: Rows, log_scale: Float[Array, ""], bias: Float[Array, ""], same_image: str
) -> Float[Array, "a b"]:
    """The loss of each image with each video; 0 where they are left out."""
    own = images.pair[:, None] == videos.pair
    same = images.image_key[:, None] == videos.image_key
    keep = images.real[:, None] & videos.real
    if same_image == "mask":
        keep &= own | ~same
    positive = own | same if same_image == "positive" else own
    logits = jnp.exp(log_scale) * similarity(images.embedding, videos.embedding) + bias
    return jnp.where(keep, -jax.nn.log_sigmoid(jnp.where(positive, logits, -logits)), 0)


def nearest_key(
    image: Float[Array, "B E"], video: Float[Array, "B E"], image_key: Int[Array, " B"], fold: Fold = one_block
) -> Int[Array, " B"]:
    """The key of each video's nearest image in the batch; see `sigmoid_loss`."""
    images, videos = _sides(jax.lax.stop_gradient(image), jax.lax.stop_gradient(video), image_key, None)

    def nearer(_: Any, best: tuple[Array, Array], videos: Rows, images: Rows) -> tuple[Array, Array]:
        cosines = similarity(videos.embedding, images.embedding)
        found = cosines.max(axis=1)
        key = images.image_key[cosines.argmax(axis=1)]
        return jnp.maximum(found, best[0]), jnp.where(found > best[0], key, best[1])

    start = jnp.full(len(video), -jnp.inf), jnp.zeros_like(image_key)
    return fold(nearer, (), start, videos, images)[1]


def _sides(image: Array, video: Array, image_key: Array, real: Array | None) -> tuple[Rows, Rows]:
    real = jnp.ones(len(image), bool) if real is None else real
    images = Rows(image, image_key, jnp.arange(len(image)), real)
    return images, images._replace(embedding=video)

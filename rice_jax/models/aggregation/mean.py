"""Means of a video's frames; they have no parameters."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rice_jax.config import AggregationConfig


class MeanOfFeatures(nnx.Module):
    """The mean of the frames' features.

    Source: docs/reference.md, section 2.
    """

    def __init__(self, config: AggregationConfig, embed_dim: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        return masked_mean(features, frame_mask)


class MeanOfEmbeddings(nnx.Module):
    """The mean of the frames' features, each of unit length first.

    Source: Luo et al. 2022, "CLIP4Clip", mean pooling.
    """

    def __init__(self, config: AggregationConfig, embed_dim: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        return mean_of_embeddings(features, frame_mask)


def embed(feature: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """L2-normalizes in float32."""
    feature = feature.astype(jnp.float32)
    return feature / jnp.linalg.norm(feature, axis=-1, keepdims=True)


def masked_mean(features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
    """The mean of the real frames' features, float32."""
    weights = frame_mask.astype(jnp.float32)[..., None]
    return (features.astype(jnp.float32) * weights).sum(axis=1) / weights.sum(axis=1)


def mean_of_embeddings(features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
    """The mean of the real frames' features at unit length, float32."""
    # Features of padding may be zeros, which have no direction.
    return masked_mean(embed(jnp.where(frame_mask[..., None], features, 1)), frame_mask)

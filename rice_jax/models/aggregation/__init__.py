"""Aggregations, which make one feature of a video's frames: `AGGREGATIONS[config.kind]`."""

from typing import Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Bool, Float

from rice_jax.config import AggregationConfig
from rice_jax.models.aggregation.attention import AttentionPooling
from rice_jax.models.aggregation.mean import MeanOfEmbeddings, MeanOfFeatures
from rice_jax.models.aggregation.transformer import FrameTransformer


@runtime_checkable
class Aggregation(Protocol):
    """An `nnx.Module` that makes one feature of a video's frames."""

    def __init__(self, config: AggregationConfig, embed_dim: int, *, rngs: nnx.Rngs):
        """Builds the aggregation with fresh weights.

        Args:
            config: with the settings of every kind; each reads its own.
            embed_dim: size of a feature.
            rngs: key stream `params`.
        """

    def __call__(self, features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
        """Aggregates the frames of videos.

        Args:
            features: of the frames, not normalized, of any float type.
            frame_mask: True = a real frame; every video has at least one, and others change nothing.

        Returns:
            The videos' features, not normalized, float32.
        """


AGGREGATIONS: dict[str, type[Aggregation]] = {
    "features": MeanOfFeatures,
    "embeddings": MeanOfEmbeddings,
    "attention": AttentionPooling,
    "transformer": FrameTransformer,
}

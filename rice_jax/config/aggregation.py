"""Settings of the aggregation, which makes one feature of a video's frames."""

import dataclasses
from collections.abc import Iterator

from rice_jax.config.fields import group, setting


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Settings of kind "attention"."""

    non_local: str = setting(
        "none",
        'Block before the pooling, in which a frame takes from the others. "relu": SEAM\'s, weights are a ReLU '
        'divided by the number of frames. "softmax": NVAN\'s, weights are a softmax over the frames.',
        choices=("none", "relu", "softmax"),
    )
    pooling: str = setting(
        "score",
        '"score": the frames are weighted by the softmax of a learned score, as SEAM does. "direction": the same, but '
        'the score is of the feature\'s direction alone, as NAN does. "mean": their mean, as NVAN does.',
        choices=("score", "direction", "mean"),
    )


@dataclasses.dataclass(frozen=True)
class FrameTransformerConfig:
    """Settings of kind "transformer"."""

    layers: int = setting(4, "Blocks.", minimum=1)
    heads: int = setting(8, "Attention heads of a block.", minimum=1)
    num_frames: int = setting(
        10, "Frames that have a learned position; `data.num_frames` or more.", unit="frames", minimum=1
    )
    differences: bool = setting(
        False,
        "Also attend to the differences of neighboring frames, which go through a block of their own, as in SGMN.",
    )


@dataclasses.dataclass(frozen=True)
class AggregationConfig:
    """The kind of aggregation, and the settings of each kind."""

    kind: str = setting(
        "features",
        'How frames become a video\'s embedding. "features": the mean of their features, as in RICE. "embeddings": the '
        'mean of their unit-length features. "attention": their sum with learned weights, after an optional non-local '
        'block. "transformer": blocks over the frames, then the mean of unit-length outputs. An image is its feature '
        "with each of them.",
        choices=("features", "embeddings", "attention", "transformer"),
    )
    attention: AttentionConfig = group(AttentionConfig, 'Kind "attention".')
    transformer: FrameTransformerConfig = group(FrameTransformerConfig, 'Kind "transformer".')

    def problems(self, embed_dim: int) -> Iterator[str]:
        """Settings that exclude each other.

        Args:
            embed_dim: size of a feature.
        """
        if self.kind == "attention" and (self.attention.non_local, self.attention.pooling) == ("none", "mean"):
            yield (
                "config.model.aggregation.attention.pooling: found 'mean' with non_local='none', which is "
                "config.model.aggregation.kind='features'; set one of the two"
            )
        if self.kind == "transformer" and embed_dim % self.transformer.heads:
            yield (
                f"config.model.aggregation.transformer.heads: found {self.transformer.heads}, expected a divisor of "
                f"config.model.embed_dim ({embed_dim})"
            )

    @property
    def unread(self) -> Iterator[str]:
        """Settings that someone has set, of a kind that is not chosen."""
        for kind, defaults in (("attention", AttentionConfig()), ("transformer", FrameTransformerConfig())):
            for name, default in vars(defaults).items() if kind != self.kind else ():
                if (found := getattr(getattr(self, kind), name)) != default:
                    yield f"config.model.aggregation.{kind}.{name}={found!r}"

"""The losses that contrast texts in task "retrieval"."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rice_jax.config import LossConfig
from rice_jax.losses.contrastive import masked_contrastive_loss
from rice_jax.models.similarity import LearnedScale
from rice_jax.tasks.contrast import negative_mask
from rice_jax.train.steps import Metrics
from rice_jax.types import EmbeddedTexts, Embeddings


class PairedTexts(NamedTuple):
    """The texts of a batch; None = it has none."""

    title: EmbeddedTexts | None
    speech: EmbeddedTexts | None


def contrast_texts(
    model: LearnedScale, embeddings: Embeddings, texts: PairedTexts, image_key: Int[Array, " B"], config: LossConfig
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted contrasts of images and titles, videos and speech, and titles and speech, over the global batch.

    A pair of which one is missing counts neither as a positive nor as a negative.

    Args:
        model: whose scale of similarities they have.
        embeddings: of the batch.
        texts: of the batch.
        image_key: equal for equal shop images.
        config: the weights, and what pairs with the same image are.

    Returns:
        The loss, and metrics of those with a weight: the unweighted `image_title`, `video_speech` and `title_speech`,
        and the share of the batch that each had, such as `image_title_share`.
    """
    title, speech = texts
    assert title is not None and speech is not None, "the settings exclude a batch without texts"
    losses: dict[str, tuple[float, Array, Array, Array]] = {
        "image_title": (config.image_title_weight, embeddings.image, title.embedding, title.mask),
        "video_speech": (config.video_speech_weight, embeddings.video, speech.embedding, speech.mask),
        "title_speech": (config.title_speech_weight, title.embedding, speech.embedding, title.mask & speech.mask),
    }
    loss, metrics, negatives = jnp.zeros(()), {}, negative_mask(image_key, config)
    scale = jnp.sqrt(model.similarity_scale())
    for name, (weight, one, other, mask) in losses.items():
        if weight:
            metrics[name] = masked_contrastive_loss(one, other, scale, mask, negatives)
            metrics[f"{name}_share"] = mask.mean()
            loss += weight * metrics[name]
    return loss, metrics

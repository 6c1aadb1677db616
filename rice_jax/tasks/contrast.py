"""The losses that contrast the embeddings of a batch: `CONTRASTS[config.loss.kind]`."""

from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rice_jax.config import LossConfig
from rice_jax.losses.contrastive import contrastive_loss, different_images, similarity
from rice_jax.losses.sigmoid import Fold, nearest_key, sigmoid_loss
from rice_jax.losses.triplet import triplet_loss
from rice_jax.models.similarity import LearnedScale
from rice_jax.train.steps import Metrics
from rice_jax.types import Embeddings


class Contrast(Protocol):
    """Contrasts the images and videos of a batch."""

    def __call__(
        self, model: LearnedScale, embeddings: Embeddings, image_key: Int[Array, " B"], config: LossConfig, fold: Fold
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss over the global batch.

        Args:
            model: whose `RiceConfig.loss` is this kind.
            embeddings: of the batch.
            image_key: equal for equal shop images.
            config: says what pairs with the same image are.
            fold: goes through pairs of rows in blocks.

        Returns:
            The loss, and the metrics: the loss by the name of its kind, but ICL by `icl`; `accuracy`, the share of
            videos whose nearest image in the batch is their shop image; the learned scale.
        """


def softmax(
    model: LearnedScale, embeddings: Embeddings, image_key: Int[Array, " B"], config: LossConfig, fold: Fold
) -> tuple[Float[Array, ""], Metrics]:
    logit_scale = model.logit_scale[...]
    loss = contrastive_loss(*embeddings, logit_scale, negative_mask(image_key, config))
    return loss, {"icl": loss, "accuracy": _accuracy(embeddings, image_key), "logit_scale": logit_scale}


def sigmoid(
    model: LearnedScale, embeddings: Embeddings, image_key: Int[Array, " B"], config: LossConfig, fold: Fold
) -> tuple[Float[Array, ""], Metrics]:
    log_scale, bias = model.log_scale[...], model.logit_bias[...]
    same_image = "positive" if config.multi_positive else "mask" if config.mask_same_image else "negative"
    loss = sigmoid_loss(*embeddings, log_scale, bias, image_key, same_image, fold=fold)
    accuracy = jnp.mean(nearest_key(*embeddings, image_key, fold) == image_key)
    return loss, {"sigmoid": loss, "accuracy": accuracy, "log_scale": log_scale, "logit_bias": bias}


def triplet(
    model: LearnedScale, embeddings: Embeddings, image_key: Int[Array, " B"], config: LossConfig, fold: Fold
) -> tuple[Float[Array, ""], Metrics]:
    own, same_image = jnp.eye(len(image_key), dtype=bool), ~different_images(image_key)
    same = same_image if config.multi_positive else own
    other = ~same_image if config.mask_same_image else ~own
    rows = jnp.concatenate(embeddings)  # images, then videos: each is compared with all
    loss = triplet_loss(rows, jnp.tile(same, (2, 2)), jnp.tile(other, (2, 2)))
    return loss, {"triplet": loss, "accuracy": _accuracy(embeddings, image_key)}


CONTRASTS: dict[str, Contrast] = {"softmax": softmax, "sigmoid": sigmoid, "triplet": triplet}


def negative_mask(image_key: Int[Array, " B"], config: LossConfig) -> Bool[Array, "B B"] | None:
    """Which images and videos of a batch may be contrasted; None = all."""
    return different_images(image_key) if config.mask_same_image else None


def _accuracy(embeddings: Embeddings, image_key: Int[Array, " B"]) -> Float[Array, ""]:
    nearest = jnp.argmax(similarity(embeddings.video, embeddings.image), axis=1)
    return jnp.mean(image_key[nearest] == image_key)

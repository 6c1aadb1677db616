"""COPE's loss: contrasts of pairs of views of the same products, and a classification of each domain's items."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rice_jax.losses.contrastive import different_images
from rice_jax.losses.cosface import Split, cosface_loss
from rice_jax.losses.smoothed import smoothed_contrastive_loss


class Pair(NamedTuple):
    """Two views that are contrasted: a domain, such as "page", or a part of it, "page_visual" or "page_text"."""

    first: str
    second: str
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.first}-{self.second}"


PAIRS = Pair("page", "video"), Pair("page", "live"), Pair("video", "live")


class Centers(NamedTuple):
    """What items are classified by; see `cosface_loss`."""

    centers: Float[Array, "C E"]
    number: Int[Array, " C"] | None = None
    num_classes: int | None = None
    split: Split = lambda logits: logits


def cope_loss(
    views: Mapping[str, Float[Array, "B E"]],
    product: Int[Array, " B"],
    real: Mapping[str, Bool[Array, " B"]],
    pairs: Sequence[Pair] = PAIRS,
    centers: Centers | None = None,
    classified: Mapping[str, float] | None = None,
) -> dict[str, Float[Array, ""]]:
    """The weighted sum of the losses of a global batch, in which a row is a product.

    Args:
        views: unit-length embeddings by name, float32.
        product: of each row. Rows of the same product are not each other's negatives.
        real: by name, False = a row whose product lacks the view, which is left out; without an entry all are real.
        pairs: what is contrasted.
        centers: of the classes, which are products; None = no classification.
        classified: the weights of the views that are classified.

    Returns:
        `loss`, and each loss before its weight by the name of its pair, or of its view after "class-".

    Raises:
        ValueError: there is no view of a name in `pairs` or `classified`.

    Source: Bai et al. 2023, COPE; each loss is described in `smoothed` and `cosface`.
    """
    classified = classified or {}
    wanted = {name for pair in pairs for name in pair[:2]} | set(classified)
    if unknown := sorted(wanted - set(views)):
        raise ValueError(f"loss: found {', '.join(unknown)}, expected some of {', '.join(sorted(views))}")
    if classified and centers is None:
        raise ValueError(f"loss: found {', '.join(classified)} to classify, expected a model with centers of classes")
    rows = {name: real.get(name, jnp.ones(len(product), bool)) for name in wanted}
    mask, losses, total = different_images(product), {}, jnp.zeros(())
    for pair in pairs:
        both = rows[pair.first] & rows[pair.second]
        losses[str(pair)] = smoothed_contrastive_loss(views[pair.first], views[pair.second], mask, both)
        total += pair.weight * losses[str(pair)]
    if classified:
        assert centers is not None
        each = cosface_loss(
            jnp.stack([views[name] for name in classified], axis=1),
            product,
            centers.centers,
            number=centers.number,
            num_classes=centers.num_classes,
            real=jnp.stack([rows[name] for name in classified], axis=1),
            split=centers.split,
        )
        for place, (name, weight) in enumerate(classified.items()):
            losses[f"class-{name}"] = each[place]
            total += weight * each[place]
    return {"loss": total} | losses

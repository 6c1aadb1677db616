"""CosFace, a classification of embeddings whose classes may be split over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rice_jax.losses.contrastive import MASKED_LOGIT, similarity

SCALE, MARGIN = 64.0, 0.4
HIGHEST = 69.0776  # -log(1e-30), of a row's value
# Pins the logits, the last axis of which is classes, to devices, which then need not hold them whole; see
# `parallel.blocks.split_classes`.
Split = Callable[[Array], Array]


def cosface_loss(
    embedding: Float[Array, "B *V E"],
    label: Int[Array, " B"],
    centers: Float[Array, "C E"],
    *,
    number: Int[Array, " C"] | None = None,
    num_classes: int | None = None,
    real: Bool[Array, "B *V"] | None = None,
    split: Split = lambda logits: logits,
) -> Float[Array, " *V"]:
    """Mean cross entropy of the scaled cosines of embeddings and classes, less a margin at the row's own class.

    The sums over classes are of each device's own ones first, then of the devices' maxima and sums.

    Args:
        embedding: unit-length embeddings, float32; of one view, or of V views, whose gradients for the centers are
            then summed over devices once.
        label: the class of each row.
        centers: a row for each class, of any length, float32.
        number: the class of each row of `centers`, each at most once; None = its place. A row's own class is among
            them.
        num_classes: rows of a higher number are padding, which is no class; None = there is none.
        real: False = a row that is left out; None = all are real. Without any the loss is 0.
        split: of the logits.

    Returns:
        Loss of each view, float32. The value of a row is at most 69.08, its gradient goes on.

    Source: Wang et al. 2018, "CosFace"; An et al. 2022, "Partial FC", whose code has this bound.
    """
    number = jnp.arange(len(centers)) if number is None else number
    real = jnp.ones(embedding.shape[:-1], bool) if real is None else real
    own = label.reshape(-1, *[1] * (embedding.ndim - 1)) == number
    logits = split(SCALE * (similarity(embedding, _unit(centers)) - MARGIN * own))
    if num_classes is not None:
        logits = jnp.where(number < num_classes, logits, MASKED_LOGIT)
    loss = jax.nn.logsumexp(logits, axis=-1) - jnp.where(own, logits, 0).sum(axis=-1)
    loss += jax.lax.stop_gradient(jnp.minimum(loss, HIGHEST) - loss)
    return jnp.where(real, loss, 0).sum(axis=0) / jnp.maximum(real.sum(axis=0), 1)


def sample_classes(label: Int[Array, " B"], num_classes: int, size: int, key: Array) -> Int[Array, " K"]:
    """The classes of a batch and, drawn evenly, as many others as are needed for `size`.

    What is drawn depends on the key alone, and not on where the classes are.

    Args:
        label: the class of each row.
        num_classes: classes to draw from.
        size: K, at least the number of rows, at most the number of classes.
        key: of the step.

    Returns:
        Different classes, ascending: `number` of `cosface_loss`, whose `centers` are then these rows.

    Source: An et al. 2022, "Partial FC", section 3.3.
    Differs: drawn from all classes together, and not from each device's.
    """
    if not len(label) <= size <= num_classes:
        raise ValueError(f"size: found {size}, expected {len(label)} rows of the batch to {num_classes} classes")
    priority = jax.random.uniform(key, (num_classes,)).at[label].set(2.0)
    return jnp.sort(jax.lax.top_k(priority, size)[1])


def _unit(rows: Float[Array, "C E"]) -> Float[Array, "C E"]:
    """Rows of unit length; rows of zeros, as padding may be, stay, without a gradient that is not a number."""
    square = (rows**2).sum(axis=1, keepdims=True)
    return jnp.where(square > 0, rows * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)

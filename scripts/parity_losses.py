"""Compares COPE's losses with recorded results, number by number; `check_parity.py` is the command."""

from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rice_jax.losses.contrastive import similarity
from rice_jax.losses.cosface import cosface_loss
from rice_jax.losses.smoothed import TEMPERATURE, smoothed_contrastive_loss
from rice_jax.models.aggregation.mean import embed
from scripts.parity import EPSILON, GRADIENT_TOLERANCE, Case, Line, of_maximum, relative_l2

# Recorded, but not part of rice_jax: losses that COPE does not use, and a number above 1.
_TEXT = "text_relevance", "text_relevance_2d_3d", "text_relevance_3d_3d", "text_relevance_bank"
NOT_USED = dict.fromkeys(("arcface", "flatnce", *_TEXT, "same_product", "rank", "rank_margins"), "COPE does not use it")
NOT_USED |= {f"{name}/out/reference_accuracy": "no share of rows" for name in ("cosface", "cosface_sampled")}

Inputs = Mapping[str, jax.Array]


def contrastive(given: Inputs) -> jax.Array:
    return smoothed_contrastive_loss(embed(given["a"]), embed(given["b"]))


def cosface(given: Inputs) -> jax.Array:
    """With `index`, of these classes alone."""
    number = given.get("index")
    centers = given["w"] if number is None else given["w"][number]
    return cosface_loss(embed(given["x"]), given["y"], centers, number=number)


LOSSES: dict[str, Callable[[Inputs], jax.Array]] = {
    "contrastive": contrastive,
    "cosface": cosface,
    "cosface_sampled": cosface,
}


def compare_losses(case: Case) -> Iterator[Line]:
    """Compares values and gradients of the losses that COPE uses."""
    for name, loss in LOSSES.items():
        given = {key: jnp.asarray(value) for key, value in case.under(f"{name}/in/").items()}
        gradients = case.under(f"{name}/grad/")
        whole = {key: given[key] for key in given.keys() - gradients.keys()}
        found, by_input = jax.jit(jax.value_and_grad(lambda parts, loss=loss, whole=whole: loss(whole | parts)))(
            {key: given[key] for key in gradients}
        )
        outputs = {"loss": found}
        if name == "contrastive":
            outputs["logits"] = similarity(embed(given["a"]), embed(given["b"])) / TEMPERATURE
        for key, expected in case.under(f"{name}/out/").items():
            if key in outputs:
                yield Line(f"{name}/out/{key}", (of_maximum(outputs[key], expected),))
        rounding = EPSILON * float(np.linalg.norm([np.linalg.norm(gradient) for gradient in gradients.values()]))
        for key, expected in gradients.items():
            measure = relative_l2(np.asarray(by_input[key]), expected, GRADIENT_TOLERANCE, rounding)
            yield Line(f"{name}/grad/{key}", (measure,))

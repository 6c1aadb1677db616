"""Compares text towers with recorded results, number by number; `check_parity.py` is the command."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rice_jax.config import TextTowerConfig
from rice_jax.convert.tensors import to_theirs
from rice_jax.convert.text import Names, from_hugging_face_text, text_places, text_shapes
from rice_jax.models.aggregation.mean import embed
from rice_jax.models.layers import unstack
from rice_jax.models.text import TEXT_TOWERS
from scripts.parity import GRADIENT_TOLERANCE, Case, Line, gradient_rounding, of_maximum, relative_l2


def compare_chinese_clip(case: Case) -> Iterator[Line]:
    """Chinese-CLIP's tower."""
    sizes = case.facts["config"]
    config = {"model_type": "chinese_clip", "projection_dim": sizes["projection"], "text_config": _sizes(sizes)}
    yield from compare_tower(case, config)


def compare_bert(case: Case) -> Iterator[Line]:
    """BERT with its pooler."""
    yield from compare_tower(case, {"model_type": "bert"} | _sizes(case.facts["config"]["text"]))


def compare_tower(case: Case, config: Mapping[str, Any]) -> Iterator[Line]:
    """Compares outputs and gradients of a tower.

    Args:
        case: a recording with the parameters' names in transformers.
        config: `config.json` with its sizes.
    """
    params, tower, names = from_hugging_face_text(case.under("params/"), config)
    ids, mask = (jnp.asarray(case.arrays[f"in/{name}"]) for name in ("input_ids", "attention_mask"))
    cotangents = case.under("cotangent/")

    @jax.jit
    def differentiate(params: PyTree):
        def scalar(params: PyTree):
            outputs = text_outputs(tower, params, ids.astype(jnp.int32), mask.astype(bool))
            value = sum((outputs[name] * cotangent).sum() for name, cotangent in cotangents.items())
            return value, outputs | {"scalar": value}

        return jax.grad(scalar, has_aux=True)(params)

    gradients, outputs = differentiate(jax.tree.map(jnp.asarray, params))
    for name, expected in case.under("out/").items():
        if name in outputs:
            yield Line(f"out/{name}", (of_maximum(outputs[name], expected),))
    found = named(gradients, names, tower)
    rounding = gradient_rounding(case)
    for name, expected in case.under("grad/").items():
        if name in found:
            yield Line(f"grad/{name}", (relative_l2(found[name], expected, GRADIENT_TOLERANCE, rounding),))


def text_outputs(config: TextTowerConfig, params: PyTree, ids: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """A tower's outputs under the recordings' names."""
    create: Any = TEXT_TOWERS[config.kind]
    model = nnx.merge(nnx.split(nnx.eval_shape(lambda: create(config, rngs=nnx.Rngs(0))))[0], params)
    features, tokens = model(ids, mask)
    outputs = {"feature": features, "pooled": features, "tokens": tokens, "embedding": embed(features)}
    if config.kind == "bert":
        hidden = [model.embed(ids)]
        for number in range(config.layers):
            hidden.append(unstack(model.blocks, number)(hidden[-1], mask[:, None, None]))
        outputs |= {f"hidden{number}": x for number, x in enumerate(hidden)}
    return outputs


def named(tree: PyTree, names: Names, config: TextTowerConfig) -> dict[str, np.ndarray]:
    """Parameters or gradients of a tower under their recorded names."""
    where = text_places(names.table, config)
    return to_theirs(jax.tree.map(np.asarray, tree), where, text_shapes(config), names.what)


def _sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """A recording's sizes under transformers' names."""
    theirs = {
        "vocab": "vocab_size",
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "intermediate": "intermediate_size",
        "max_position": "max_position_embeddings",
    }
    return {theirs[name]: size for name, size in sizes.items() if name in theirs}


# By the sidecar's `case`.
TEXT_CASES: dict[str, Callable[[Case], Iterator[Line]]] = {"chinese_clip": compare_chinese_clip, "text": compare_bert}

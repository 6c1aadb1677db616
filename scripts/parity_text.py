"""Compares text towers and the decoder with recorded results, number by number; `check_parity.py` is the command."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rice_jax.config import PmdConfig, TextTowerConfig, VitConfig
from rice_jax.convert.names import REFERENCE, Table
from rice_jax.convert.tensors import find_places, parameter_shapes, to_ours, to_theirs
from rice_jax.convert.text import Names, from_hugging_face_text, text_places, text_shapes
from rice_jax.models.aggregation.mean import embed
from rice_jax.models.layers import unstack
from rice_jax.models.pmd import Pmd
from rice_jax.models.text import TEXT_TOWERS
from rice_jax.types import EmbeddedTexts
from scripts.parity import GRADIENT_TOLERANCE, Case, Line, gradient_rounding, of_maximum, relative_l2


def _decoder_table() -> Table:
    """The reference's names of the decoder, which the recording writes shorter, and those of its texts."""
    short = {"transformer.transformer.": "decoder.", "transformer.heads.": ""}

    def shorten(name: str) -> str:
        start = next(start for start in short if name.startswith(start))
        return short[start] + name.removeprefix(start)

    decoder = {path.removeprefix("pmd/"): entry for path, entry in REFERENCE.items() if path.startswith("pmd/")}
    table = {path: (layout, [shorten(name) for name in names]) for path, (layout, names) in decoder.items()}
    transposed, same = decoder["pool/kernel"][0], decoder["ln_pool/bias"][0]
    for ours, theirs in (("title", "fc_title"), ("speech", "fc_asr")):
        table[f"text/{ours}/kernel"] = transposed, [f"{theirs}.weight"]
        table[f"text/{ours}/bias"] = same, [f"{theirs}.bias"]
    return table


DECODER = _decoder_table()


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


def compare_decoder(case: Case) -> Iterator[Line]:
    """The decoder with a title and speech, some of them missing."""
    sizes = case.facts["config"]
    encoder = VitConfig(width=sizes["width"], layers=2 * sizes["pairs"], heads=sizes["heads"], dtype="float32")
    config = PmdConfig(sizes["pairs"], sizes["heads"], attention_dropout=0.0)

    def create() -> Pmd:
        pmd = Pmd(encoder, config, rngs=nnx.Rngs(0))
        pmd.read_texts(sizes["text_width"], encoder, rngs=nnx.Rngs(1))
        return pmd

    graphdef, shapes = nnx.split(nnx.eval_shape(create))[0], parameter_shapes(create)
    where = find_places(DECODER, {"self_blocks/": sizes["pairs"], "cross_blocks/": sizes["pairs"]})
    params = jax.tree.map(jnp.asarray, to_ours(case.under("params/"), where, shapes, "the decoder"))
    inputs = {name: jnp.asarray(value) for name, value in case.under("in/").items()}
    given = ("image_tokens", "video_tokens", "title", "asr")
    cotangents, scale = case.under("cotangent/"), (sizes["width"] / sizes["heads"]) ** 0.5

    def scalar(params: PyTree, differentiable: dict[str, jax.Array]):
        pmd, arrays = nnx.merge(graphdef, params), inputs | differentiable
        title, speech = (EmbeddedTexts(arrays[name], arrays[f"has_{name}"].astype(bool)) for name in ("title", "asr"))
        frame_mask, others = arrays["frame_mask"].astype(bool), jnp.roll(jnp.arange(sizes["B"]), 1)[:, None]
        images, videos = arrays["image_tokens"], arrays["video_tokens"]
        matches = pmd(images, videos, frame_mask, others, title=title, speech=speech, with_attention=True)
        outputs = {"logit": 10 * matches.cosine[:, 0], "attention": scale * matches.attention}
        value = sum((outputs[name] * cotangent).sum() for name, cotangent in cotangents.items())
        return value, outputs | {"scalar": value} | hidden_outputs(pmd, images, videos, frame_mask, title, speech)

    (gradients, of_inputs), outputs = jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))(
        params, {name: inputs[name] for name in given}
    )
    for name, expected in case.under("out/").items():
        yield Line(f"out/{name}", (of_maximum(outputs[name], expected),))
    found = to_theirs(jax.tree.map(np.asarray, gradients), where, shapes, "the decoder")
    rounding = gradient_rounding(case)
    for kind, arrays in (("grad", found), ("grad_in", of_inputs)):
        for name, expected in case.under(f"{kind}/").items():
            measure = relative_l2(np.asarray(arrays[name]), expected, GRADIENT_TOLERANCE, rounding)
            yield Line(f"{kind}/{name}", (measure,))


def hidden_outputs(
    pmd: Pmd, images: jax.Array, videos: jax.Array, frame_mask: jax.Array, title: EmbeddedTexts, speech: EmbeddedTexts
) -> dict[str, jax.Array]:
    """What the decoder does not return, without its optimizations."""
    queries, mask = pmd.text.with_title(images, title)
    token_mask = jnp.repeat(frame_mask, videos.shape[2], axis=1)
    keys, key_mask = pmd.text.with_speech(videos.reshape(len(videos), -1, videos.shape[-1]), token_mask, speech)
    x = queries
    for pair in range(pmd.config.num_pairs):
        self_block, cross_block = unstack(pmd.self_blocks, pair), unstack(pmd.cross_blocks, pair)
        x, _ = cross_block(self_block(x, mask), *cross_block.keys_values(keys), key_mask)
    return {"queries": queries, "keys": keys, "last_hidden": x, "pooled": pmd.pooled(x[:, 0])}


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
TEXT_CASES: dict[str, Callable[[Case], Iterator[Line]]] = {
    "chinese_clip": compare_chinese_clip,
    "text": compare_bert,
    "rice_text_head": compare_decoder,
}

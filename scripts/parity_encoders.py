"""Compares encoders with what transformers' models computed, number by number; `check_parity.py` is the command."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rice_jax.config import VitConfig
from rice_jax.convert import swin as swins
from rice_jax.convert.hugging_face import find_table, from_hugging_face, read_family
from rice_jax.convert.tensors import to_theirs
from rice_jax.convert.vit import places, shapes
from rice_jax.models.encoders.swin import Swin
from rice_jax.models.encoders.timesformer import Timesformer
from rice_jax.models.encoders.vit import Vit, rotary_positions
from rice_jax.models.layers import unstack
from scripts.parity import GRADIENT_TOLERANCE, Case, Line, gradient_rounding, of_maximum, relative_l2

Outputs = Mapping[str, jax.Array]


def of_frames(params: PyTree, case: Case) -> Iterator[Line]:
    """An encoder of frames has nothing more to compare."""
    yield from ()


class Encoder(NamedTuple):
    """Our model with a recording's weights.

    Attributes:
        params: the weights.
        forward: the outputs under the recording's names, from parameters and pixels as the recording has them.
        named: parameters or gradients under the recording's names.
        more: compares what is recorded beside outputs and gradients.
    """

    params: PyTree
    forward: Callable[[PyTree, jax.Array], Outputs]
    named: Callable[[PyTree], dict[str, np.ndarray]]
    more: Callable[[PyTree, Case], Iterator[Line]] = of_frames


def compare_encoder(case: Case) -> Iterator[Line]:
    """Compares outputs and gradients; a class that is not in `ENCODERS` has none."""
    if case.facts["class"] not in ENCODERS:
        return
    encoder = ENCODERS[case.facts["class"]](case.under("params/"), case.facts["config"])
    cotangents = case.under("in/cotangent/")

    @jax.jit
    @partial(jax.grad, argnums=(0, 1), has_aux=True)
    def differentiate(params, pixels):
        outputs = encoder.forward(params, pixels)
        return sum((outputs[name] * cotangent).sum() for name, cotangent in cotangents.items()), outputs

    (gradients, of_pixels), outputs = differentiate(encoder.params, jnp.asarray(case.arrays["in/pixel_values"]))
    for name, expected in case.under("out/").items():
        if name in outputs:
            yield Line(f"out/{name}", (of_maximum(outputs[name], expected),))
    found = encoder.named(jax.tree.map(np.asarray, gradients)) | {"in/pixel_values": np.asarray(of_pixels)}
    # No parameters of ours, which is right as long as no output depends on them.
    found |= {name: np.zeros(case.facts["shapes"][name], np.float32) for name in case.facts["no_gradient"]}
    for name, expected in case.under("grad/").items():
        if name in found:
            rounding = gradient_rounding(case)
            yield Line(f"grad/{name}", (relative_l2(found[name], expected, GRADIENT_TOLERANCE, rounding),))
    yield from encoder.more(encoder.params, case)


def vit(state: Mapping[str, np.ndarray], config: Mapping[str, Any], *, pooled: str, normed: bool) -> Encoder:
    """A vision transformer.

    Args:
        state: the recording's parameters.
        config: `config.json`.
        pooled: name of the feature.
        normed: whether `last_hidden_state` is after the last layer norm.
    """
    params, sizes = from_hugging_face(state, config)
    assert isinstance(sizes, VitConfig)
    family, values = read_family(config)
    where = places(find_table(family, values, state), sizes)
    graphdef = nnx.split(nnx.eval_shape(lambda: Vit(sizes, rngs=nnx.Rngs(0))))[0]
    rotary = rotary_positions(sizes, sizes.class_token + sizes.registers) if sizes.positions == "rotary" else None

    def forward(params: PyTree, pixels: jax.Array) -> Outputs:
        model, pictures = nnx.merge(graphdef, params), jnp.moveaxis(pixels, 1, -1)
        hidden = [model.embed(pictures)]
        for number in range(sizes.layers):
            hidden.append(unstack(model.blocks, number)(hidden[-1], None, rotary))
        last = model.ln_post(hidden[-1]) if normed else hidden[-1]
        states = {f"hidden_states/{number}": x for number, x in enumerate(hidden)}
        return states | {"last_hidden_state": last, pooled: model(pictures)[1]}

    return Encoder(params, forward, lambda tree: to_theirs(tree, where, shapes(sizes), family.what))


def swin(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Encoder:
    """A Swin transformer; see `vit`."""
    params, sizes = swins.from_swin(state, config)
    where = swins.places(sizes, state)
    graphdef = nnx.split(nnx.eval_shape(lambda: Swin(sizes, rngs=nnx.Rngs(0))))[0]

    def forward(params: PyTree, pixels: jax.Array) -> Outputs:
        model = nnx.merge(graphdef, params)
        hidden = [model.embed(jnp.moveaxis(pixels, 1, -1))]
        for number in range(len(sizes.stages)):
            hidden.append(getattr(model, f"stage_{number}")(hidden[-1]))
        last, pooled = model.summarize(hidden[-1])
        states = {f"hidden_states/{number}": x.reshape(len(x), -1, x.shape[-1]) for number, x in enumerate(hidden)}
        return states | {"last_hidden_state": last, "pooler_output": pooled}

    return Encoder(params, forward, lambda tree: to_theirs(tree, where, swins.shapes(sizes), swins.WHAT))


def timesformer(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Encoder:
    """A TimeSformer, also with padded frames."""
    params, sizes = from_hugging_face(state, config)
    family, values = read_family(config)
    where = places(find_table(family, values, state), sizes)
    graphdef = nnx.split(nnx.eval_shape(lambda: Timesformer(sizes, rngs=nnx.Rngs(0))))[0]

    def encode(params: PyTree, pixels: jax.Array, frame_mask: jax.Array) -> list[jax.Array]:
        model = nnx.merge(graphdef, params)
        hidden = [model.embed_videos(jnp.moveaxis(pixels, 2, -1))]
        for number in range(sizes.layers):
            hidden.append(unstack(model.blocks, number)(hidden[-1], frame_mask))
        return [*hidden, model.ln_post(hidden[-1])]

    def forward(params: PyTree, pixels: jax.Array) -> Outputs:
        *hidden, last = encode(params, pixels, jnp.ones(pixels.shape[:2], bool))
        states = {f"hidden_states/{number}": x for number, x in enumerate(hidden)}
        return states | {"last_hidden_state": last}

    def padded(params: PyTree, case: Case) -> Iterator[Line]:
        masks, videos = case.arrays["masked/frame_mask"].astype(bool), case.arrays["in/pixel_values"]
        # Whatever is in padding changes nothing.
        videos = np.where(masks[:, :, None, None, None], videos, 9.0).astype(np.float32)

        @jax.jit
        def compute(params: PyTree, videos: jax.Array, frame_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
            features = nnx.merge(graphdef, params)(jnp.moveaxis(videos, 2, -1), frame_mask)
            return features, encode(params, videos, frame_mask)[-1]

        features, last = jax.tree.map(np.asarray, compute(params, videos, masks))
        yield Line("masked/cls", (of_maximum(features, case.arrays["masked/cls"]),), ("masked/frame_mask",))
        for row, mask in enumerate(masks):
            kept = last[row, np.r_[True, np.tile(mask, sizes.num_patches)]]
            name = f"masked/last_hidden_state/{row}"
            yield Line(name, (of_maximum(kept, case.arrays[name]),))

    return Encoder(params, forward, lambda tree: to_theirs(tree, where, shapes(sizes), family.what), padded)


_pooled = partial(vit, pooled="pooler_output", normed=True)
# By the sidecar's `class`.
ENCODERS: dict[str, Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Encoder]] = {
    "CLIPVisionModelWithProjection": partial(vit, pooled="image_embeds", normed=False),
    "SiglipVisionModel": _pooled,
    "Dinov2Model": _pooled,
    "Dinov2WithRegistersModel": _pooled,
    "DINOv3ViTModel": _pooled,
    "SwinModel": swin,
    "TimesformerModel": timesformer,
}

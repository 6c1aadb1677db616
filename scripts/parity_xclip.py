"""Compares X-CLIP with what its own modules computed, number by number; `check_parity.py` is the command."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rice_jax.config import VitConfig
from rice_jax.convert import names
from rice_jax.convert.tensors import to_theirs
from rice_jax.convert.vit import convert_vit, places, shapes
from rice_jax.models.encoders.xclip import Xclip
from rice_jax.models.layers import unstack
from scripts.parity import GRADIENT_TOLERANCE, Case, Line, gradient_rounding, of_maximum, relative_l2

WHAT = "an X-CLIP vision transformer"


def compare_xclip(case: Case) -> Iterator[Line]:
    """Compares outputs and gradients for a video, and for a page, which is a single picture."""
    config = encoder_config(case)
    where = places(names.XCLIP_OWN, config)
    params = convert_vit(case.under("params/"), names.XCLIP_OWN, config, names.OPENAI_IGNORED, WHAT)
    graphdef = nnx.split(nnx.eval_shape(lambda: Xclip(config, rngs=nnx.Rngs(0))))[0]
    rounding = gradient_rounding(case)
    for kind in ("video", "page"):
        cotangents = case.under(f"cotangent/{kind}/")

        @jax.jit
        @partial(jax.grad, argnums=(0, 1), has_aux=True)
        def differentiate(params, pixels, cotangents=cotangents):
            outputs = summaries(nnx.merge(graphdef, params), pixels)
            scalar = sum((outputs[name] * cotangent).sum() for name, cotangent in cotangents.items())
            return scalar, outputs | {"scalar": scalar}

        arrays = jax.tree.map(jnp.asarray, (params, case.arrays[f"in/{kind}"]))
        outputs = jax.jit(lambda params, pixels: steps(nnx.merge(graphdef, params), pixels))(*arrays)
        (gradients, of_pixels), further = differentiate(*arrays)
        outputs |= further
        for name, expected in case.under(f"out/{kind}/").items():
            if name in outputs:
                yield Line(f"out/{kind}/{name}", (of_maximum(outputs[name], expected),))
        found = to_theirs(jax.tree.map(np.asarray, gradients), where, shapes(config), WHAT)
        compared = {f"grad/{kind}/{name}": x for name, x in found.items()}
        compared[f"grad_in/{kind}"] = np.asarray(of_pixels)
        for key, x in compared.items():
            if key in case.recorded:
                yield Line(key, (relative_l2(x, case.recorded[key], GRADIENT_TOLERANCE, rounding),))


def encoder_config(case: Case, **settings: Any) -> VitConfig:
    """The sizes of the recorded encoder."""
    facts: Mapping[str, Any] = case.facts["config"]
    return VitConfig(
        architecture="xclip",
        image_size=facts["image"],
        patch_size=facts["patch"],
        width=facts["width"],
        layers=facts["layers"],
        heads=facts["heads"],
        embed_dim=facts["embed"],
        num_frames=facts["T"],
        integration_layers=facts["mit_layers"],
        integration_heads=facts["mit_heads"],
        dtype="float32",
        **settings,
    )


def summaries(model: Xclip, pixels: jax.Array) -> dict[str, jax.Array]:
    """The last outputs under the recording's names, from the encoder's parts as it calls them."""
    videos, frame_mask = videos_of(pixels)
    x = model.apply_blocks(model.embed_videos(videos), frame_mask)
    features = model.frame_features(x, frame_mask)
    normed = model.ln_post(by_frame(x, frame_mask))
    return {
        "cls": normed[:, :, 0],
        "patches": normed[:, :, 1:],
        "frames": model.integration.frames(*model.integration.fill(features, frame_mask)),
        "feature": model.integration(features, frame_mask),
    }


def steps(model: Xclip, pixels: jax.Array) -> dict[str, jax.Array]:
    """What is between, under the recording's names."""
    videos, frame_mask = videos_of(pixels)
    x = model.embed_videos(videos)
    found = {"tokens_pre": by_frame(x, frame_mask).reshape(frame_mask.size, -1, x.shape[-1])}
    for number in range(model.config.layers):
        block = unstack(model.blocks, number)
        found[f"message_fc{number}"] = block.message.dense(by_frame(x, frame_mask)[:, :, 0])
        found[f"message_attn{number}"] = block.message.attend(found[f"message_fc{number}"], frame_mask)
        x = block(x, frame_mask)
        found[f"block{number}"] = by_frame(x, frame_mask)
    rows, mask = model.integration.fill(model.frame_features(x, frame_mask), frame_mask)
    rows = rows + model.integration.position[...]
    for number in range(model.config.integration_layers):
        rows = unstack(model.integration.blocks, number)(rows, mask)
        found[f"mit{number}"] = rows
    return found


def videos_of(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Videos without padding as the encoder takes them."""
    return jnp.moveaxis(pixels, 2, -1), jnp.ones(pixels.shape[:2], bool)


def by_frame(x: jax.Array, frame_mask: jax.Array) -> jax.Array:
    """The tokens of each frame, `[B, T, L, D]`."""
    return x.reshape(*frame_mask.shape, -1, x.shape[-1])

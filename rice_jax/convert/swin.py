"""Reads transformers' Swin transformers, `SwinModel` and the encoder of its other models, and writes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rice_jax.config import SwinConfig, SwinSettings
from rice_jax.convert import names
from rice_jax.convert.tensors import (
    ConvertError,
    Places,
    bullets,
    check_names,
    parameter_places,
    parameter_shapes,
    require_possible,
    to_ours,
)
from rice_jax.models.encoders.swin import Swin

WHAT = "a Swin transformer"
PREFIX = "swin."  # of all names in the files of whole models
DEFAULTS: dict[str, Any] = (
    dict(image_size=224, patch_size=4, num_channels=3, embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24])
    | dict(window_size=7, mlp_ratio=4.0, qkv_bias=True, hidden_act="gelu", layer_norm_eps=1e-5)
    | dict(use_absolute_embeddings=False)
)
FIXED = {"num_channels": 3, "qkv_bias": True, "use_absolute_embeddings": False}


def from_swin(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> tuple[PyTree, SwinConfig]:
    """Converts tensors with Hugging Face's names.

    Args:
        state: the tensors of `model.safetensors`, any float type.
        config: `config.json`.

    Returns:
        Parameters of `Swin` as a nested dict of float32 arrays, and its settings: without a projection, the size of an
        embedding is the last stage's width.

    Raises:
        ConvertError: the config does not describe an encoder that `Swin` supports; or listing every unknown name,
            missing name and wrong shape.
    """
    sizes = swin_config(config)
    where = places(sizes, state)
    check_names(state, where, names.SWIN_IGNORED, f"{WHAT} of {sizes.depths} blocks")
    return to_ours(state, where, shapes(sizes), f"{WHAT} of {sizes.own}"), sizes


def swin_config(config: Mapping[str, Any]) -> SwinConfig:
    """The settings of the encoder.

    Raises:
        ConvertError: one of theirs has another meaning than `Swin` can have.
    """
    values = DEFAULTS | {name: config[name] for name in DEFAULTS if name in config}
    problems = [
        f"{name} {values[name]!r}: expected a positive whole number"
        for name in ("image_size", "patch_size", "embed_dim", "window_size")
        if not isinstance(values[name], int) or values[name] < 1
    ]
    problems += [f"{name} {values[name]!r}: expected {want!r}" for name, want in FIXED.items() if values[name] != want]
    problems += [
        f"{name} {values[name]!r}: expected a list of whole numbers"
        for name in ("depths", "num_heads")
        if not isinstance(values[name], list) or not all(isinstance(number, int) for number in values[name])
    ]
    if str(values["hidden_act"]) not in names.ACTIVATIONS:
        known = ", ".join(map(repr, names.ACTIVATIONS))
        problems.append(f"hidden_act {values['hidden_act']!r}: expected one of {known}")
    if not problems:
        own: dict[str, Any] = dict(
            patch_size=values["patch_size"],
            width=values["embed_dim"],
            depths=",".join(map(str, values["depths"])),
            heads=",".join(map(str, values["num_heads"])),
            window=values["window_size"],
            mlp_ratio=values["mlp_ratio"],
            activation=names.ACTIVATIONS[values["hidden_act"]],
            epsilon=values["layer_norm_eps"],
        )
        require_possible(SwinSettings, own, WHAT, "config.model.swin")
        found = SwinConfig(
            **own,
            image_size=values["image_size"],
            embed_dim=values["embed_dim"] * 2 ** (len(values["depths"]) - 1),
            pixels="imagenet",
            dtype="float32",
        )
        problems = list(found.problems())
    if problems:
        raise ConvertError(f"config.json: not {WHAT} that rice_jax supports:" + bullets(problems))
    return found


def to_values(config: SwinConfig) -> dict[str, Any]:
    """The sizes in `config.json`, as `swin_config` reads them.

    Raises:
        ConvertError: transformers' `SwinModel` computes no encoder of these sizes.
    """
    grid = config.image_size // config.patch_size
    for number, (_, _, width) in enumerate(config.stages):
        if grid < config.window:
            raise ConvertError(
                f"found {grid} × {grid} patches in stage {number} of a Swin transformer with "
                f"config.model.image_size={config.image_size}, expected at least swin.window={config.window} of them "
                "on a side: transformers' SwinModel has no smaller windows; train with larger pictures"
            )
        if int(width * config.mlp_ratio) != round(width * config.mlp_ratio):
            raise ConvertError(
                f"found swin.mlp_ratio={config.mlp_ratio} in a stage of width {width}, expected a whole number as "
                "their product: transformers' SwinModel rounds it down"
            )
        grid = (grid + 1) // 2
    return FIXED | {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depths": [depth for depth, _, _ in config.stages],
        "num_heads": [heads for _, heads, _ in config.stages],
        "window_size": config.window,
        "mlp_ratio": config.mlp_ratio,
        "hidden_act": names.HIDDEN_ACT[config.activation],
        "layer_norm_eps": config.epsilon,
    }


def places(config: SwinConfig, state: Mapping[str, Any]) -> Places:
    """The names of each parameter in a file."""
    table = names.swin(len(config.stages))
    table = names.prefixed(table, "", PREFIX if any(name.startswith(PREFIX) for name in state) else "")
    return parameter_places(table, shapes(config))


def shapes(config: SwinConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter."""
    return parameter_shapes(lambda: Swin(config, rngs=nnx.Rngs(0)))

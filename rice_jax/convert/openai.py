"""Reads models with OpenAI's names: OpenAI's own, and those of open_clip, whose JSON says what their tensors do not."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from rice_jax.config import VitConfig
from rice_jax.convert.hugging_face import SIGLIP_PARTS, read_json
from rice_jax.convert.names import OPEN_CLIP, OPENAI, OPENAI_IGNORED, TIMM_SIGLIP
from rice_jax.convert.tensors import (
    ConvertError,
    check_names,
    find_places,
    num_layers,
    read_safetensors,
    require_possible,
)
from rice_jax.convert.torch_files import read_torch
from rice_jax.convert.vit import convert_vit, find_pixels

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
# Settings of open_clip's encoders that change nothing in them, or that their tensors show.
_HARMLESS = {"patch_dropout", "output_tokens", "pos_embed_type", "final_ln_after_pool"}
_HARMLESS |= {"attn_pooler_queries", "attn_pooler_heads", "timm_drop", "timm_drop_path", "timm_model_pretrained"}
_WHAT = "a CLIP vision transformer"
# Heads of timm's SigLIP encoders, and which of these compute GELU's approximation.
_TIMM_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
_TIMM_TANH = re.compile(r"vit_(base_patch32_siglip_256|large_patch16_siglip_512|(so400m|giantopt)_patch16_siglip_\d+)")


def from_openai(state: Mapping[str, np.ndarray], **settings: Any) -> tuple[PyTree, VitConfig]:
    """Converts a state dict with OpenAI's names, and reads the encoder's sizes from it.

    Args:
        state: the model's state dict, any float type; the text tower's tensors are ignored.
        settings: of the encoder (`VitConfig`), where they are others than OpenAI's; the tensors do not show `heads`.

    Returns:
        Parameters of `Vit` as a nested dict of float32 arrays, and its settings.

    Raises:
        ConvertError: listing every unknown name, missing name and wrong shape.
    """
    num_blocks = num_layers(state, r"visual\.transformer\.resblocks\.(\d+)\.")
    check_names(state, find_places(OPENAI, {"blocks/": num_blocks}), OPENAI_IGNORED, f"{_WHAT} of {num_blocks} blocks")
    config = dataclasses.replace(encoder_sizes(state, "visual.", settings.get("heads")), **settings)
    return convert_vit(state, OPENAI, config, OPENAI_IGNORED, _WHAT), config


def encoder_sizes(state: Mapping[str, np.ndarray], prefix: str, heads: int | None = None) -> VitConfig:
    """Reads the sizes of an encoder from tensors with OpenAI's names.

    Args:
        state: all tensors of the encoder.
        prefix: of the encoder's names, e.g. "visual.".
        heads: number of heads; None = one per 64 channels, as in OpenAI's models.

    Raises:
        ConvertError: the tensors have too few or too many axes, or `heads` is None and the width is not a multiple of
            64.
    """
    patches, positions, projection = (state[prefix + name] for name in ("conv1.weight", "positional_embedding", "proj"))
    if (patches.ndim, positions.ndim, projection.ndim) != (4, 2, 2):
        raise ConvertError(
            f"found {prefix}conv1.weight {patches.shape}, {prefix}positional_embedding {positions.shape} and "
            f"{prefix}proj {projection.shape}: expected 4, 2 and 2 axes"
        )
    width, patch_size = patches.shape[0], patches.shape[-1]
    if not width or (heads is None and width % 64):
        raise ConvertError(
            f"found a width of {width} ({prefix}conv1.weight {patches.shape}): expected a multiple of 64, since "
            "OpenAI's models have one head per 64 channels and their files do not contain the number of heads"
        )
    grid = round((positions.shape[0] - 1) ** 0.5)
    return VitConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        layers=num_layers(state, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\."),
        heads=width // 64 if heads is None else heads,
        embed_dim=projection.shape[1],
        dtype="float32",
    )


def from_open_clip(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> tuple[PyTree, VitConfig]:
    """Converts tensors of open_clip's models.

    Args:
        state: the tensors, any float type; those of the text tower are ignored.
        config: `open_clip_config.json`.

    Raises:
        ConvertError: the config does not describe a vision transformer that `Vit` supports; or listing every unknown
            name, missing name and wrong shape.
    """
    model, shown = config.get("model_cfg", config), config.get("preprocess_cfg") or {}
    vision = model.get("vision_cfg") if isinstance(model, Mapping) else None
    if not isinstance(vision, Mapping):
        raise ConvertError(f"{OPEN_CLIP_CONFIG}: found no vision_cfg, expected a model of open_clip")
    timm = vision.get("timm_model_name")
    try:
        if timm:
            state, table, what = join_timm(state), TIMM_SIGLIP, "a SigLIP vision transformer of timm"
            vit = timm_config(timm, vision, state)
        else:
            table, what, vit = OPEN_CLIP, _WHAT, open_clip_config(model, vision)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ConvertError(f"{OPEN_CLIP_CONFIG}: not the settings of a vision transformer: {error!r}") from error
    if "mean" in shown and "std" in shown:
        vit = dataclasses.replace(vit, pixels=find_pixels(shown["mean"], shown["std"], OPEN_CLIP_CONFIG))
    return convert_vit(state, table, vit, OPENAI_IGNORED, what), vit


def open_clip_config(model: Mapping[str, Any], vision: Mapping[str, Any]) -> VitConfig:
    """The settings of an encoder of open_clip's own classes.

    Source: the defaults of `CLIPVisionCfg` in open_clip's `model.py`.
    """
    values: dict[str, Any] = {
        **dict(image_size=224, layers=12, width=768, patch_size=16, head_width=64, mlp_ratio=4.0),
        **dict(ls_init_value=None, no_ln_pre=False, pool_type="tok", act_kwargs=None, norm_kwargs=None),
    }
    unknown = {name: value for name, value in vision.items() if value and name not in values.keys() | _HARMLESS}
    values |= {name: value for name, value in vision.items() if name in values}
    activation, approximate = values["act_kwargs"] or {}, {"approximate": "tanh"}
    norm = values["norm_kwargs"] or {}
    if values["pool_type"] != "tok":
        unknown["pool_type"] = values["pool_type"]
    if activation not in ({}, approximate):
        unknown["act_kwargs"] = activation
    if norm.keys() - {"eps"}:
        unknown["norm_kwargs"] = norm
    if not isinstance(values["layers"], int):  # a ResNet has four numbers
        unknown["layers"] = values["layers"]
    if unknown:
        listed = ", ".join(f"{name}={value!r}" for name, value in sorted(unknown.items()))
        raise ConvertError(f"{OPEN_CLIP_CONFIG}: found vision_cfg with {listed}, which rice_jax does not compute")
    width = values["width"]
    quick = "quick_gelu" if model.get("quick_gelu") else "gelu"
    found: dict[str, Any] = dict(
        image_size=_side(values["image_size"]),
        patch_size=values["patch_size"],
        width=width,
        layers=values["layers"],
        heads=width // values["head_width"],
        embed_dim=model["embed_dim"],
        mlp_ratio=int(width * values["mlp_ratio"]) / width,
        activation="gelu_tanh" if activation == approximate else quick,
        layer_scale=values["ls_init_value"] is not None,
        ln_pre=not values["no_ln_pre"],
        epsilon=norm.get("eps", 1e-5),
        dtype="float32",
    )
    require_possible(VitConfig, found, _WHAT)
    return VitConfig(**found)


def timm_config(name: str, vision: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> VitConfig:
    """The settings of a SigLIP encoder of timm, whose name tells what its tensors do not.

    Source: timm's `vision_transformer.py`.
    """
    size = next((size for size in _TIMM_HEADS if re.fullmatch(rf"vit_{size}_patch\d+_siglip_\d+", name)), None)
    pool, projection = vision.get("timm_pool"), vision.get("timm_proj")
    if size is None or pool != "map" or projection not in ("none", ""):
        raise ConvertError(
            f"{OPEN_CLIP_CONFIG}: found timm_model_name {name!r} with timm_pool {pool!r} and timm_proj {projection!r}, "
            "expected one like 'vit_base_patch16_siglip_224' with 'map' and 'none'"
        )
    patches, hidden = (
        state[f"visual.trunk.{tensor}.weight"].shape for tensor in ("patch_embed.proj", "blocks.0.mlp.fc1")
    )
    found: dict[str, Any] = dict(
        image_size=_side(vision["image_size"]),
        patch_size=patches[-1],
        width=patches[0],
        layers=num_layers(state, r"visual\.trunk\.blocks\.(\d+)\."),
        heads=_TIMM_HEADS[size],
        embed_dim=patches[0],
        mlp_ratio=hidden[0] / patches[0],
        activation="gelu_tanh" if _TIMM_TANH.fullmatch(name) else "gelu",
        **SIGLIP_PARTS,
        dtype="float32",
    )
    require_possible(VitConfig, found, "a SigLIP vision transformer of timm")
    return VitConfig(**found)


def join_timm(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm's pooling has the projection of queries apart from that of keys and values; joins them."""
    joined, start = dict(state), "visual.trunk.attn_pool."
    for kind in ("weight", "bias"):
        parts = [f"{start}{part}.{kind}" for part in ("q", "kv")]
        if all(part in joined and joined[part].ndim for part in parts):
            joined[f"{start}qkv.{kind}"] = np.concatenate([joined.pop(part) for part in parts])
    return joined


def read_open_clip(folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads open_clip's weights and configuration in a folder; a ConvertError if one is missing or unreadable."""
    weights = next((folder / name for name in OPEN_CLIP_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ConvertError(f"{folder / OPEN_CLIP_WEIGHTS[0]}: not found, expected beside {OPEN_CLIP_CONFIG}")
    values = read_json(folder / OPEN_CLIP_CONFIG)
    return read_torch(weights)[0] if weights.suffix == ".bin" else read_safetensors(weights), values


def _side(size: Any) -> Any:
    """The side of a square picture, which open_clip writes as a number or as height and width; a number if valid."""
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) != 1:
        raise ConvertError(f"{OPEN_CLIP_CONFIG}: found image_size {size}, expected a square")
    return sides.pop()

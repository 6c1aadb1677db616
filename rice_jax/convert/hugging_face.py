"""Reads transformers' folders: a family for each kind of model, found by `model_type` in `config.json`."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from rice_jax.config import EncoderConfig, VitConfig
from rice_jax.convert import names
from rice_jax.convert.names import ACTIVATIONS, Table, prefixed
from rice_jax.convert.own import MODEL_TYPE, from_own
from rice_jax.convert.swin import from_swin
from rice_jax.convert.tensors import ConvertError, bullets, read_sharded, require_possible
from rice_jax.convert.torch_files import read_torch
from rice_jax.convert.vit import convert_vit, find_pixels

WEIGHTS = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
SIZES = "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads"
FURTHER_SIZES = (
    *("intermediate_size", "projection_dim", "num_frames", "mit_hidden_size", "mit_intermediate_size"),
    *("mit_num_hidden_layers", "mit_num_attention_heads"),
)
MULTIPLES = (
    ("image_size", "patch_size"),
    ("hidden_size", "num_attention_heads"),
    ("mit_hidden_size", "mit_num_attention_heads"),
)

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of models of transformers.

    Attributes:
        what: the kind in words.
        defaults: of its settings that count here, as a `config.json` may leave them out.
        switches: makes the fields of `VitConfig` from them, beside the sizes.
        table: makes the table of names from them.
        prefix: of all names in the files of whole models; those of the vision tower alone may lack it.
        ignored: names of other parts.
        fixed: settings that can have only one value.
    """

    what: str
    defaults: Values
    switches: Callable[[Values], dict[str, Any]]
    table: Callable[[Values], Table]
    ignored: re.Pattern
    prefix: str = ""
    fixed: Values = dataclasses.field(default_factory=dict)


def _clip(values: Values) -> dict[str, Any]:
    return {
        "embed_dim": values["projection_dim"] if values["projection"] else values["hidden_size"],
        "mlp_ratio": values["intermediate_size"] / values["hidden_size"],
        "projection": values["projection"],
    }


def _siglip(values: Values) -> dict[str, Any]:
    return SIGLIP_PARTS | {"mlp_ratio": values["intermediate_size"] / values["hidden_size"]}


SIGLIP_PARTS: dict[str, Any] = dict(
    pixels="half", patch_bias=True, class_token=False, ln_pre=False, pooling="attention", projection=False, epsilon=1e-6
)
_DINO: dict[str, Any] = dict(pixels="imagenet", patch_bias=True, ln_pre=False, layer_scale=True, projection=False)


def _dinov2(values: Values) -> dict[str, Any]:
    gated, hidden = values["use_swiglu_ffn"], int(values["hidden_size"] * values["mlp_ratio"])
    if gated:  # two thirds, so that three matrices have as many parameters as two; a multiple of 8
        hidden = -(-int(hidden * 2 / 3) // 8) * 8
    found = {"gated_mlp": gated, "mlp_ratio": hidden / values["hidden_size"]}
    return _DINO | found | {"registers": values["num_register_tokens"]} | ({"activation": "silu"} if gated else {})


def _dinov3(values: Values) -> dict[str, Any]:
    return _DINO | {
        "mlp_ratio": values["intermediate_size"] / values["hidden_size"],
        "gated_mlp": values["use_gated_mlp"],
        "registers": values["num_register_tokens"],
        "positions": "rotary",
        "key_bias": values["key_bias"],
    }


def _timesformer(values: Values) -> dict[str, Any]:
    return dict(
        architecture="timesformer",
        pixels="kinetics",
        patch_bias=True,
        ln_pre=False,
        projection=False,
        mlp_ratio=values["intermediate_size"] / values["hidden_size"],
        num_frames=values["num_frames"],
    )


def _xclip(values: Values) -> dict[str, Any]:
    return dict(
        architecture="xclip",
        pixels="imagenet",
        embed_dim=values["projection_dim"],
        mlp_ratio=values["intermediate_size"] / values["hidden_size"],
        num_frames=values["num_frames"],
        integration_layers=values["mit_num_hidden_layers"],
        integration_heads=values["mit_num_attention_heads"],
        integration_mlp_ratio=values["mit_intermediate_size"] / values["mit_hidden_size"],
    )


_SIZES = {"image_size": 224, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3}
CLIP = Family(
    what="a CLIP vision transformer",
    defaults=_SIZES
    | dict(patch_size=32, intermediate_size=3072, projection_dim=512, hidden_act="quick_gelu", layer_norm_eps=1e-5),
    switches=_clip,
    table=lambda values: names.HUGGING_FACE,
    ignored=names.HUGGING_FACE_IGNORED,
)
SIGLIP = Family(
    what="a SigLIP vision transformer",
    defaults=_SIZES
    | dict(patch_size=16, intermediate_size=3072, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    | dict(vision_use_head=True),
    switches=_siglip,
    table=lambda values: names.SIGLIP,
    prefix="vision_model.",
    ignored=names.HUGGING_FACE_IGNORED,
    fixed={"vision_use_head": True},
)
DINOV2 = Family(
    what="a DINOv2 vision transformer",
    defaults=_SIZES
    | dict(patch_size=14, mlp_ratio=4, hidden_act="gelu", layer_norm_eps=1e-6, use_swiglu_ffn=False, qkv_bias=True)
    | dict(num_register_tokens=0),
    switches=_dinov2,
    table=lambda values: names.DINOV2 | (names.DINOV2_GATED if values["use_swiglu_ffn"] else {}),
    ignored=names.DINO_IGNORED,
    fixed={"qkv_bias": True},
)
DINOV2_REGISTERS = dataclasses.replace(DINOV2, defaults={**DINOV2.defaults, "patch_size": 16, "num_register_tokens": 4})
DINOV3 = Family(
    what="a DINOv3 vision transformer",
    defaults=_SIZES
    | dict(hidden_size=384, num_attention_heads=6, patch_size=16, intermediate_size=1536, hidden_act="gelu")
    | dict(layer_norm_eps=1e-5, use_gated_mlp=False, num_register_tokens=0, rope_theta=100.0, key_bias=False)
    | dict(query_bias=True, value_bias=True, proj_bias=True, mlp_bias=True),
    switches=_dinov3,
    table=lambda values: names.DINOV3 | (names.DINOV3_GATED if values["use_gated_mlp"] else {}),
    ignored=names.DINO_IGNORED,
    fixed=dict(rope_theta=100.0, query_bias=True, value_bias=True, proj_bias=True, mlp_bias=True),
)
TIMESFORMER = Family(
    what="a TimeSformer",
    defaults=_SIZES
    | dict(patch_size=16, intermediate_size=3072, hidden_act="gelu", layer_norm_eps=1e-6, num_frames=8)
    | dict(attention_type="divided_space_time", qkv_bias=True),
    switches=_timesformer,
    table=lambda values: names.TIMESFORMER,
    prefix="timesformer.",
    ignored=names.CLASSIFIER_IGNORED,
    fixed=dict(attention_type="divided_space_time", qkv_bias=True),
)
XCLIP = Family(
    what="an X-CLIP vision transformer",
    defaults={**CLIP.defaults}
    | dict(num_frames=8, mit_hidden_size=512, mit_intermediate_size=2048)
    | dict(mit_num_hidden_layers=1, mit_num_attention_heads=8),
    switches=_xclip,
    table=lambda values: names.XCLIP,
    ignored=names.XCLIP_IGNORED,
)
FAMILIES = {
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "chinese_clip": CLIP,
    "chinese_clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2_REGISTERS,
    "dinov3_vit": DINOV3,
    "timesformer": TIMESFORMER,
    "xclip": XCLIP,
}
# {another `model_type`: what to do}
UNKNOWN = {
    "siglip2": "; checkpoints of a fixed resolution have model_type 'siglip'",
    "xclip_vision_model": "; the layers over the frames are in whole models alone, which have model_type 'xclip'",
}
# Encoders that are no vision transformers.
OTHERS: dict[str, Callable[[Mapping[str, np.ndarray], Values], tuple[PyTree, EncoderConfig]]] = {
    "swin": from_swin,
    MODEL_TYPE: from_own,
}


def from_hugging_face(state: Mapping[str, np.ndarray], config: Values) -> tuple[PyTree, EncoderConfig]:
    """Converts tensors with Hugging Face's names.

    Args:
        state: the tensors of `model.safetensors`, any float type; those of the text tower are ignored.
        config: `config.json`, of a whole model or of its vision tower alone.

    Returns:
        Parameters of the encoder as a nested dict of float32 arrays, and its settings.

    Raises:
        ConvertError: the config does not describe an encoder that rice_jax supports; or listing every unknown name,
            missing name and wrong shape.
    """
    if str(config.get("model_type")) in OTHERS:
        return OTHERS[config["model_type"]](state, config)
    family, values = read_family(config)
    vit = vit_config(family, values)
    return convert_vit(state, find_table(family, values, state), vit, family.ignored, family.what), vit


def read_family(config: Values) -> tuple[Family, dict[str, Any]]:
    """The family of a `config.json`, and the settings that count, with the family's defaults."""
    kind = config.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        reason = UNKNOWN.get(str(kind), "")
        known = ", ".join((*FAMILIES, *OTHERS))
        raise ConvertError(f"config.json: found model_type {kind!r}, expected one of {known}{reason}")
    values = dict(family.defaults)
    vision = config.get("vision_config", config)
    if not isinstance(vision, Mapping):
        raise ConvertError(f"config.json: found vision_config {vision!r}, expected an object")
    values |= {name: vision[name] for name in values if name in vision}
    if "projection_dim" in values and "vision_config" in config:
        # A config of a whole model has the embedding's width at its top level; in `vision_config` it may be wrong.
        values["projection_dim"] = config.get("projection_dim", family.defaults["projection_dim"])
    if family is CLIP:
        alone = ["CLIPVisionModel"], ["ChineseCLIPVisionModel"]
        values["projection"] = config.get("architectures") not in alone and kind != "chinese_clip_vision_model"
    return family, values


def vit_config(family: Family, values: Values) -> VitConfig:
    """The settings of the encoder.

    Raises:
        ConvertError: one of theirs has a value that rice_jax does not support.
    """
    whole = [*SIZES, *(name for name in FURTHER_SIZES if name in values)]
    problems = [
        f"{name} {values[name]!r}: expected a positive whole number"
        for name in whole
        if not isinstance(values[name], int) or values[name] < 1
    ]
    expected = {"num_channels": 3, **family.fixed}
    if "mit_hidden_size" in values:
        expected["mit_hidden_size"] = values["projection_dim"]
    problems += [
        f"{name} {values[name]!r}: expected {want!r}" for name, want in expected.items() if values[name] != want
    ]
    if str(values["hidden_act"]) not in ACTIVATIONS:
        problems.append(f"hidden_act {values['hidden_act']!r}: expected one of {', '.join(map(repr, ACTIVATIONS))}")
    if not problems:
        problems = [
            f"{of} {values[of]} is no multiple of {part} {values[part]}"
            for of, part in MULTIPLES
            if of in values and values[of] % values[part]
        ]
    if problems:
        raise ConvertError(f"config.json: not {family.what} that rice_jax supports:" + bullets(problems))
    image_size, patch_size, width, layers, heads = (values[name] for name in SIZES)
    found = {
        **dict(image_size=image_size, patch_size=patch_size, width=width, layers=layers, heads=heads, embed_dim=width),
        "activation": ACTIVATIONS[values["hidden_act"]],
        **family.switches(values),
        "epsilon": values["layer_norm_eps"],
        "dtype": "float32",
    }
    require_possible(VitConfig, found, family.what)
    return VitConfig(**found)


def find_table(family: Family, values: Values, state: Mapping) -> Table:
    """The family's names as this file has them."""
    has_prefix = family.prefix and any(name.startswith(family.prefix) for name in state)
    return prefixed(family.table(values), "", family.prefix if has_prefix else "")


def read_hugging_face(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads a model's weights (a directory or its `model.safetensors`) and the `config.json` beside them.

    Raises:
        ConvertError: one of them is missing or unreadable.
    """
    folder = path if path.is_dir() else path.parent
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[0])
    weights = weights if path.is_dir() else path
    config = folder / "config.json"
    for file in (weights, config):
        if not file.is_file():
            raise ConvertError(f"{file}: not found; a Hugging Face model is a model.safetensors beside a config.json")
    values = read_json(config)
    return read_torch(weights)[0] if weights.suffix == ".bin" else read_sharded(weights), values


def read_pixels(folder: Path) -> str | None:
    """The pixel statistics in `preprocessor_config.json`; None if there is none."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    values = read_json(path)
    if "image_mean" not in values or "image_std" not in values:
        return None
    return find_pixels(values["image_mean"], values["image_std"], str(path))


def read_json(path: Path) -> dict:
    """Reads an object; a ConvertError if the file holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConvertError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConvertError(f"{path}: found a {type(values).__name__}, expected an object")
    return values

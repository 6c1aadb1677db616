"""Writes encoders for transformers: an entry for each class, the inverse of `hugging_face.from_hugging_face`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from rice_jax.config import EncoderConfig, SwinConfig, VitConfig
from rice_jax.config import model as ours
from rice_jax.convert import swin
from rice_jax.convert.hugging_face import FAMILIES, SIZES, read_family, vit_config
from rice_jax.convert.names import HIDDEN_ACT, prefixed
from rice_jax.convert.tensors import ConvertError, to_theirs
from rice_jax.convert.vit import places, shapes, without_projection


@dataclasses.dataclass(frozen=True)
class Export:
    """A class of transformers that computes encoders of one family.

    Attributes:
        name: of the class.
        model_type: in `config.json`.
        feature: the output of the class that is our feature, or what our projection takes, as Python names it.
        values: makes the family's own settings in `config.json`.
        prefix: of the names of tensors, if the family's table is written without it.
    """

    name: str
    model_type: str
    feature: str
    values: Callable[[Any], dict[str, Any]]
    prefix: str = ""


class Found(NamedTuple):
    """How transformers computes an encoder.

    Attributes:
        export: the class.
        values: content of `config.json`.
        encoder: what the class computes: the encoder, or, if the class has no place for the projection, all but that.
    """

    export: Export
    values: dict[str, Any]
    encoder: EncoderConfig


def _clip(config: VitConfig) -> dict[str, Any]:
    return {"intermediate_size": config.mlp_width, "projection_dim": config.embed_dim}


def _siglip(config: VitConfig) -> dict[str, Any]:
    return {"intermediate_size": config.mlp_width, "vision_use_head": True}


def _dinov2(config: VitConfig) -> dict[str, Any]:
    # A whole number, of the MLP that has as many parameters as the gated one.
    ratio = round(config.mlp_width / config.width * (1.5 if config.gated_mlp else 1))
    return {"mlp_ratio": ratio, "use_swiglu_ffn": config.gated_mlp}


def _dinov2_registers(config: VitConfig) -> dict[str, Any]:
    return _dinov2(config) | {"num_register_tokens": config.registers}


def _dinov3(config: VitConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.mlp_width,
        "use_gated_mlp": config.gated_mlp,
        "num_register_tokens": config.registers,
        "key_bias": config.key_bias,
    }


def _timesformer(config: VitConfig) -> dict[str, Any]:
    return {"intermediate_size": config.mlp_width, "num_frames": config.num_frames}


EXPORTS = (
    Export("CLIPVisionModelWithProjection", "clip_vision_model", "image_embeds", _clip),
    Export("CLIPVisionModel", "clip_vision_model", "pooler_output", _clip),
    Export("SiglipVisionModel", "siglip_vision_model", "pooler_output", _siglip, "vision_model."),
    Export("Dinov2Model", "dinov2", "pooler_output", _dinov2),
    Export("Dinov2WithRegistersModel", "dinov2_with_registers", "pooler_output", _dinov2_registers),
    Export("DINOv3ViTModel", "dinov3_vit", "pooler_output", _dinov3),
    Export("TimesformerModel", "timesformer", "last_hidden_state[:, 0]", _timesformer),
)
SWIN = Export("SwinModel", "swin", "pooler_output", swin.to_values)


def find_export(config: EncoderConfig) -> Found:
    """The class that computes an encoder.

    A class fits if its `config.json`, read back, describes the encoder; pixel statistics may be any. If none does, one
    may fit without the projection.

    Raises:
        ConvertError: no class does.
    """
    if isinstance(config, SwinConfig):
        alone = without_projection(config)
        return Found(SWIN, _named(SWIN) | SWIN.values(alone), alone)
    close: list[tuple[str, dict[str, Any]]] = []
    for encoder in (config, without_projection(config)):
        for export in EXPORTS:
            values = _values(export, encoder)
            try:
                found = vit_config(*read_family(values))
            except ConvertError:
                continue
            different = _differences(found, encoder)
            if not different:
                return Found(export, values, encoder)
            close.append((export.name, different))
    hint = "; `rice convert clip --export` writes an encoder with a stem" if config.stem != "patches" else ""
    closest, parts = min(close, key=lambda one: ("architecture" in one[1], len(one[1])))
    raise ConvertError(
        f"found an encoder with {_listed(config.switches)}, expected one that a class of transformers computes: "
        f"{', '.join(export.name for export in (*EXPORTS, SWIN))}; the closest, {closest}, has "
        f"{_listed(parts)}{hint}"
    )


def to_hugging_face(params: PyTree, config: EncoderConfig) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and `config.json` of an encoder, which `from_hugging_face` reads back.

    Args:
        params: parameters of the encoder as a nested dict of arrays; a projection for which the class has no place is
            left out.
        config: of the encoder.

    Returns:
        The tensors by Hugging Face's names, in the parameters' type, and the content of `config.json`.

    Raises:
        ConvertError: the parameters are not those of an encoder of this kind, or transformers has no class for it.
    """
    export, values, encoder = find_export(config)
    if encoder != config:
        params = {name: value for name, value in params.items() if name != "projection"}
    if isinstance(encoder, SwinConfig):
        return to_theirs(params, swin.places(encoder, {}), swin.shapes(encoder), "a Swin"), values
    family, read = read_family(values)
    table = prefixed(family.table(read), "", export.prefix)
    return to_theirs(params, places(table, encoder), shapes(encoder), "a Vit"), values


def _values(export: Export, config: VitConfig) -> dict[str, Any]:
    sizes = config.image_size, config.patch_size, config.width, config.layers, config.heads
    return {
        **_named(export),
        **dict(zip(SIZES, sizes, strict=True)),
        "num_channels": 3,
        "hidden_act": HIDDEN_ACT[config.activation],
        "layer_norm_eps": config.epsilon,
        **FAMILIES[export.model_type].fixed,
        **export.values(config),
    }


def _differences(found: VitConfig, expected: VitConfig) -> dict[str, Any]:
    """What differs between two encoders, as the first has it, apart from pixel statistics."""
    names = {"image_size", *ours.SIZES, *ours.SWITCHES} - {"pixels"}
    return {name: value for name in sorted(names) if (value := getattr(found, name)) != getattr(expected, name)}


def _listed(parts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in parts.items())


def _named(export: Export) -> dict[str, Any]:
    return {"architectures": [export.name], "model_type": export.model_type}

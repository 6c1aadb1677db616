"""Writes encoders for transformers: an entry for each class, the inverse of `hugging_face.from_hugging_face`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from rice_jax.config import EncoderConfig, VitConfig
from rice_jax.convert.hugging_face import ACTIVATIONS, FAMILIES, SIZES, read_family, vit_config
from rice_jax.convert.names import prefixed
from rice_jax.convert.tensors import ConvertError, to_theirs
from rice_jax.convert.vit import places, settings, shapes


@dataclasses.dataclass(frozen=True)
class Export:
    """A class of transformers that computes encoders of one family.

    Attributes:
        name: of the class.
        model_type: in `config.json`.
        feature: the output of the class that is our feature, before L2 normalization.
        values: makes the family's own settings in `config.json`.
        prefix: of the names of tensors, if the family's table is written without it.
    """

    name: str
    model_type: str
    feature: str
    values: Callable[[VitConfig], dict[str, Any]]
    prefix: str = ""


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


EXPORTS = (
    Export("CLIPVisionModelWithProjection", "clip_vision_model", "image_embeds", _clip),
    Export("CLIPVisionModel", "clip_vision_model", "pooler_output", _clip),
    Export("SiglipVisionModel", "siglip_vision_model", "pooler_output", _siglip, "vision_model."),
    Export("Dinov2Model", "dinov2", "pooler_output", _dinov2),
    Export("Dinov2WithRegistersModel", "dinov2_with_registers", "pooler_output", _dinov2_registers),
    Export("DINOv3ViTModel", "dinov3_vit", "pooler_output", _dinov3),
)


def find_export(config: EncoderConfig) -> tuple[Export, dict[str, Any]]:
    """The class that computes an encoder, and the content of its `config.json`.

    A class fits if its `config.json`, read back, describes the encoder; pixel statistics may be any.

    Raises:
        ConvertError: no class does.
    """
    for export in EXPORTS:
        if not isinstance(config, VitConfig):
            break
        values = _values(export, config)
        try:
            found = vit_config(*read_family(values))
        except ConvertError:
            continue
        if settings(dataclasses.replace(found, pixels=config.pixels)) == settings(config):
            return export, values
    parts = ", ".join(f"{name}={value!r}" for name, value in config.switches.items())
    raise ConvertError(
        f"found an encoder with {parts}, expected one that a class of transformers computes: "
        f"{', '.join(export.name for export in EXPORTS)}"
    )


def to_hugging_face(params: PyTree, config: EncoderConfig) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and `config.json` of an encoder, which `from_hugging_face` reads back.

    Args:
        params: parameters of `Vit` as a nested dict of arrays.
        config: of the encoder.

    Returns:
        The tensors by Hugging Face's names, in the parameters' type, and the content of `config.json`.

    Raises:
        ConvertError: the parameters are not those of a `Vit` of this kind, or transformers has no class for it.
    """
    export, values = find_export(config)
    assert isinstance(config, VitConfig)  # no export fits another
    family, read = read_family(values)
    table = prefixed(family.table(read), "", export.prefix)
    return to_theirs(params, places(table, config), shapes(config), "a Vit"), values


def _values(export: Export, config: VitConfig) -> dict[str, Any]:
    sizes = config.image_size, config.patch_size, config.width, config.layers, config.heads
    return {
        "architectures": [export.name],
        "model_type": export.model_type,
        **dict(zip(SIZES, sizes, strict=True)),
        "num_channels": 3,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "layer_norm_eps": config.epsilon,
        **FAMILIES[export.model_type].fixed,
        **export.values(config),
    }

"""Encoders that no class of transformers computes, in files of the same kind: `model.safetensors` and `config.json`.

The tensors have the names and shapes of our parameters, and `config.json` has the encoder's settings.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from rice_jax.config import ConfigError, VitConfig
from rice_jax.config.fields import build
from rice_jax.config.model import SIZES, SWITCHES
from rice_jax.convert.tensors import ConvertError, bullets
from rice_jax.convert.vit import settings, shapes

MODEL_TYPE = "rice_jax"  # in `config.json`


def from_own(state: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> tuple[PyTree, VitConfig]:
    """Parameters and settings of an encoder, float32.

    Args:
        state: tensors by our paths, with dots, any float type.
        values: content of `config.json`.

    Raises:
        ConvertError: the settings are not those of an encoder; or listing every unknown name, missing name and wrong
            shape.
    """
    if missing := [name for name in ("image_size", *SIZES) if name not in values]:
        raise ConvertError(f"config.json: {missing[0]!r} is missing")
    found = {name: values[name] for name in ("image_size", *SIZES, *SWITCHES) if name in values}
    try:
        config = build(VitConfig, found | {"dtype": "float32"}, "config.model")
    except ConfigError as error:
        raise ConvertError(f"config.json: {error}") from error
    if problem := next(config.problems(), None):
        raise ConvertError(f"config.json: {problem}")
    expected = shapes(config)
    flat = {name.replace(".", "/"): tensor for name, tensor in state.items()}
    wrong = [f"{path}: missing" for path in sorted(expected.keys() - flat.keys())]
    wrong += [f"{path}: unknown" for path in sorted(flat.keys() - expected.keys())]
    for path in sorted(flat.keys() & expected.keys()):
        if flat[path].shape != expected[path]:
            wrong.append(f"{path}: found shape {flat[path].shape}, expected {expected[path]}")
        elif not np.isfinite(flat[path]).all():
            wrong.append(f"{path}: found values that are not finite")
    if wrong:
        raise ConvertError(f"tensors that do not fit an encoder with {settings(config)}:" + bullets(wrong))
    return unflatten_dict({path: tensor.astype(np.float32) for path, tensor in flat.items()}, sep="/"), config


def to_own(params: PyTree, config: VitConfig) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The inverse of `from_own`, in the parameters' type."""
    state = {name: np.asarray(value) for name, value in flatten_dict(params, sep=".").items()}
    return state, {"model_type": MODEL_TYPE, **settings(config)}

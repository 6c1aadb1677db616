"""A model that starts from weights on disk: settings that follow from them, and parameters that they replace."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from rice_jax.config import ModelConfig, SwinConfig, VitConfig
from rice_jax.models.cope import CLASSES
from rice_jax.models.create import AnyModelConfig, start_decoder
from rice_jax.models.detr import DetrConfig
from rice_jax.models.encoders import between_frames, encoder_class
from rice_jax.models.rice import RiceConfig
from rice_jax.models.saved_encoder import differences, take_settings
from rice_jax.models.weights import (
    CHECKPOINTS,
    PROJECTION,
    CheckpointError,
    find_weights,
    list_steps,
    load_weights,
    read_config,
)

logger = logging.getLogger(__name__)


def with_saved_encoder(model: ModelConfig, workdir: Path | None) -> ModelConfig:
    """Settings of the model, those of its encoder as in the weights that the run starts from.

    A setting at its default takes the weights' value; the picture's size and how to compute stay the run's own. A run
    that goes on without these weights takes what its checkpoint says of them. Where there are no weights to read,
    nothing changes.

    Args:
        model: as the user set it.
        workdir: of the run.

    Raises:
        ConfigError: a setting is not at its default and contradicts the weights, in a way that no shape shows.
    """
    for source in _sources(model.init_from, workdir):
        try:
            saved = read_config(source).get("model", {})
        except CheckpointError:
            continue
        if not (model.init_from or saved.get("init_from")):
            return model
        return take_settings(model, saved, str(source))
    return model


def _sources(init_from: str, workdir: Path | None) -> Iterator[Path]:
    """The checkpoints that may describe a run's encoder: that from which it starts, then its own."""
    if init_from:
        with contextlib.suppress(CheckpointError):
            yield find_weights(Path(init_from).absolute())
    if workdir:
        yield from (workdir.absolute() / CHECKPOINTS / str(step) for step in list_steps(workdir))


def start_from(directory: str | os.PathLike, params: PyTree, config: AnyModelConfig) -> PyTree:
    """Replaces fresh parameters by those of a converted model or of another run.

    Parts of the checkpoint that the model does not have are left out, and so are centers of products, whose rows only
    its run's list can tell apart. Parameters that the checkpoint does not have stay fresh, in an encoder only its
    layers between frames, except that a decoder starts from the last blocks of the checkpoint's encoder. So a detector
    of clips may start from one of frames.

    Args:
        directory: output of `rice_jax.convert`, or a workdir.
        params: fresh parameters, or their shapes and places (`create.abstract_params`) if the checkpoint has them all.
        config: of the model; positions are interpolated to its image size.

    Raises:
        CheckpointError: there is no checkpoint, or its parameters have other names or shapes.
    """
    saved, saved_config = load_weights(directory)
    if "encoder" not in saved or "model" not in saved_config:
        raise CheckpointError(
            f"{directory}: found {', '.join(sorted(saved))}, expected an encoder; a text tower goes to "
            "config.model.text_init_from"
        )
    saved.pop(CLASSES, None)
    for part in sorted(saved.keys() - params.keys()):
        logger.info("%s: has a part %s, which this model does not have; it is not loaded", directory, part)
        del saved[part]
    _require_same_parts(saved_config["model"], saved, config, directory)
    if "pmd" in params and "pmd" not in saved:
        saved = start_decoder(saved | {"pmd": params["pmd"]}, config)
    saved["encoder"] = encoder_class(config.encoder).fit(saved["encoder"], config.encoder)

    fresh = flatten_dict(params, sep="/")
    found = flatten_dict(saved, sep="/")
    lacking = [name for name in sorted(fresh.keys() - found.keys()) if name.startswith("encoder/")]
    may_be = tuple(_may_be_fresh(saved_config["model"], config))
    if new := [path for path in may_be if any(name.startswith(path) for name in lacking)]:
        logger.info("%s: has no %s; they start from fresh weights", directory, " and no ".join(new))
    wrong = [f"  {name}: unknown" for name in sorted(found.keys() - fresh.keys())]
    wrong += [f"  {name}: missing" for name in lacking if not name.startswith(may_be)]
    wrong += [
        f"  {name}: found {found[name].shape}, expected {fresh[name].shape}"
        for name in sorted(found.keys() & fresh.keys())
        if found[name].shape != fresh[name].shape
    ]
    if wrong:
        raise CheckpointError(
            "\n".join([f"{directory}: does not fit config.model:", *wrong]) + "\nUse the sizes that it was made with."
        )
    placed = {name: jax.device_put(value, fresh[name].sharding) for name, value in found.items()}
    return unflatten_dict(fresh | placed, sep="/")


def _may_be_fresh(saved: dict, config: AnyModelConfig) -> Iterator[str]:
    """The beginnings of the paths of an encoder's parameters that its weights may lack."""
    if isinstance(config.encoder, SwinConfig):
        yield PROJECTION
    elif saved.get("architecture", "vit") == "vit":
        yield from (f"encoder/{path}" for path in between_frames(config.encoder))


def _require_same_parts(saved: dict, parts: PyTree, config: AnyModelConfig, directory: str | os.PathLike) -> None:
    """Compares what no parameter's shape shows: the encoder's switches, and the numbers of heads."""
    if found := differences(saved, config.encoder):
        raise CheckpointError(f"{directory}: found an encoder with {found}")
    pairs: dict[str, tuple[int, int]] = {}
    if isinstance(config.encoder, VitConfig):
        pairs["heads"] = saved["heads"], config.encoder.heads
    if isinstance(config, RiceConfig) and config.pmd and "pmd" in parts:
        pairs["pmd.num_heads"] = (saved["pmd"]["num_heads"], config.pmd.num_heads)
    if isinstance(config, RiceConfig) and config.aggregation.kind == "transformer" and "aggregation" in parts:
        found = saved["aggregation"]["transformer"]["heads"]
        pairs["aggregation.transformer.heads"] = found, config.aggregation.transformer.heads
    if isinstance(config, RiceConfig) and config.aggregation.kind == "attention" and "aggregation" in parts:
        pooling, expected = saved["aggregation"]["attention"]["pooling"], config.aggregation.attention.pooling
        if saved["aggregation"]["kind"] == "attention" and pooling != expected:
            raise CheckpointError(
                f"{directory}: found pooling={pooling!r}, expected {expected!r} "
                "(config.model.aggregation.attention.pooling)"
            )
    if isinstance(config, DetrConfig) and "detector" in parts:
        pairs["detector.heads"] = (saved["detector"]["heads"], config.decoder.heads)
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise CheckpointError(f"{directory}: found {theirs} heads, expected {ours} (config.model.{name})")

"""Weights of text towers on disk."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from rice_jax.config import TEXT_MODEL, TOKENIZER_FOLDER, ConfigError, ModelConfig, TextTowerConfig, TextTowerSettings
from rice_jax.models.weights import (
    CHECKPOINTS,
    CheckpointError,
    digest_params,
    find_weights,
    load_weights,
    read_config,
    read_data,
)


def load_text(source: Path) -> tuple[PyTree, TextTowerConfig]:
    """Reads a converted text tower.

    Args:
        source: what `rice convert text` wrote, or a run that has trained a tower.

    Raises:
        CheckpointError: there are no weights, they are damaged, or they are of no text tower.
    """
    params, saved = load_weights(source)
    sizes = saved["text"] if "text" in saved else saved.get("model", {}).get("text_tower")
    if not sizes or "text" not in params:
        raise CheckpointError(f"{source}: holds no text tower; make one: rice convert text SOURCE OUT")
    return params["text"], TextTowerConfig(**sizes)


def tokenizer_folder(source: Path) -> Path:
    """The files of a text tower's tokenizer, which a run has kept, or else where its tower started.

    Args:
        source: what `rice convert text` wrote, a run, or one of its checkpoints.

    Raises:
        CheckpointError: there are no weights.
    """
    directory = source.absolute()
    saved = read_config(find_weights(directory))
    kept = directory.parent.parent if directory.parent.name == CHECKPOINTS else directory
    if "text" in saved or (kept / TOKENIZER_FOLDER).is_dir():
        return kept / TOKENIZER_FOLDER
    return Path(saved.get("model", {}).get("text_init_from") or source) / TOKENIZER_FOLDER


def keep_tokenizer(folder: Path, workdir: Path) -> None:
    """Copies the files of a tokenizer into a run, unless it has them, so that the run may be moved.

    Args:
        folder: of the tokenizer.
        workdir: of the run. Only one process may call this.
    """
    kept = workdir / TOKENIZER_FOLDER
    if not kept.exists():
        partial = kept.with_name(f"{kept.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        partial.rename(kept)


def start_text(source: Path, params: PyTree) -> PyTree:
    """Replaces the fresh parameters of a model's text tower by those of a converted one, or of a run's.

    Raises:
        CheckpointError: as `load_text`; or the parameters have other names or shapes.
    """
    loaded, _ = load_text(source)
    found, expected = (jax.tree.map(jnp.shape, flatten_dict(text, sep="/")) for text in (loaded, params["text"]))
    if wrong := sorted(name for name in found | expected if found.get(name) != expected.get(name)):
        raise CheckpointError(
            f"{source}: does not fit config.model.text_tower: {wrong[0]}: found {found.get(wrong[0])}, expected "
            f"{expected.get(wrong[0])}; leave the group out"
        )
    return params | {"text": jax.tree.map(lambda x, fresh: jax.device_put(x, fresh.sharding), loaded, params["text"])}


def with_saved_tower(model: ModelConfig) -> ModelConfig:
    """Settings of the model, those of its text tower as in the weights that it starts from.

    A setting at its default takes the weights' value.

    Raises:
        ConfigError: a setting is not at its default and not the weights' value.
    """
    if model.text != "tower" or not model.text_init_from:
        return model
    try:
        config: dict[str, Any] = read_config(find_weights(Path(model.text_init_from).absolute()))
    except CheckpointError:
        return model  # without weights there is no tokenizer either, and `Tokenizer` raises the error
    saved, run_model = config.get("text"), config.get("model", {})
    if saved is None and run_model.get("text") == "tower":
        saved = run_model["text_tower"]
    own = TextTowerSettings(**saved) if saved else model.text_tower
    for field in dataclasses.fields(TextTowerSettings):
        found, expected = getattr(model.text_tower, field.name), getattr(own, field.name)
        if found not in (field.default, expected):
            raise ConfigError(
                f"config.model.text_tower.{field.name}: found {found!r}, expected {expected!r} as in "
                f"{model.text_init_from}; leave it out"
            )
    return dataclasses.replace(model, text_tower=own)


def require_same_texts(source: Path, fingerprint: str) -> None:
    """Refuses embeddings of texts of another model than those that a run was trained with, if both are known.

    Args:
        source: a run's workdir, one of its checkpoints, or a converted model.
        fingerprint: of the model that made the embeddings; "" = unknown.

    Raises:
        CheckpointError: they are of another model, or there is no checkpoint.
    """
    trained = read_data(find_weights(source.absolute())).get(TEXT_MODEL, "")
    if trained and fingerprint and trained != fingerprint:
        raise CheckpointError(
            f"{source}: was trained with texts that another model embedded ({trained[:12]}), found {fingerprint[:12]} "
            "in config.data.texts; embed them with that model (rice embed-text)"
        )


def text_fingerprint(params: PyTree, config: TextTowerConfig, tokenizer: bytes) -> str:
    """Identifies what embeds texts.

    Args:
        params: of the tower.
        config: of the tower; the compute type does not count.
        tokenizer: what tells tokenizers apart.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    return digest_params(json.dumps(config.own).encode() + tokenizer, params)

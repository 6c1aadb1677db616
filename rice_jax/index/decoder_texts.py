"""The texts that a decoder reads: the titles of an index's pictures, and later what is said in clips.

A title is a part of what the index keeps of its picture for a match (`Index.queries`). So the tower that embeds texts
is chosen when the index is made, and the index names it (`About.text_model`, `About.text_fingerprint`). It is the one
that was trained with the decoder, or that made the embeddings with which the decoder was trained.
"""

import dataclasses
import logging
import os
from pathlib import Path

from rice_jax.config import TEXT_MODEL
from rice_jax.files import absolute
from rice_jax.index.about import About
from rice_jax.index.model import Model
from rice_jax.index.text import BATCH_SIZE, Texts
from rice_jax.input.text_embeddings import known_model
from rice_jax.models.weights import CheckpointError, find_weights, missing, read_config, read_data

logger = logging.getLogger(__name__)


def load_decoder_texts(
    model: Model, old: About | None, text_model: str | os.PathLike | None, loaded: Texts | None
) -> tuple[Model, Texts | None]:
    """Loads what embeds the texts that the decoder reads.

    Without it the decoder reads none, which a warning says: if nothing tells where it is, or if the index was made
    without it, since the pictures in it would stay as they are.

    Args:
        model: what embeds the pictures.
        old: of the index that is updated; None = a new one.
        text_model: a converted text tower; None = that of the index, or of the embeddings of the run's training.
        loaded: a tower that is shared if it is the same one.

    Returns:
        The model, whose `about` names the tower, and the tower; None = the decoder reads no texts.

    Raises:
        CheckpointError: the tower of the index is not there anymore, or a tower is another one than the decoder's.
        DataError: there is no tokenizer, or it is not that of the tower.
        ConfigError: the package `tokenizers` is not installed.
    """
    about, reads = model.about, model.about.decoder_text
    if reads is None or _is_untrained(model):
        return model, None
    if old and not old.text_fingerprint:
        logger.warning(
            "the index was made without titles for its decoder, so re-ranking reads no texts; to change that, index "
            "all pictures into another directory"
        )
        return model, None
    source = about.checkpoint if reads.tower else _find(about, old, text_model)
    if not source:
        logger.warning(
            "%s: was trained with texts that another model embedded, and that model is not found, so re-ranking reads "
            "no texts; to change that, tell where it is (--text_model)",
            about.checkpoint,
        )
        return model, None
    expected = old.text_fingerprint if old else _trained_with(about)
    texts = loaded if loaded and loaded.source == source else Texts(source, batch_size=BATCH_SIZE)
    if texts.fingerprint != (expected or texts.fingerprint) or texts.dimensions != reads.embed_dim:
        raise CheckpointError(
            f"{source}: is not the text tower that embedded the texts of the decoder (found {texts.fingerprint[:12]} "
            f"with {texts.dimensions} numbers, expected {expected[:12]} with {reads.embed_dim}), which cannot read "
            "those of another one; use that tower"
        )
    about = dataclasses.replace(about, text_model=source, text_fingerprint=texts.fingerprint)
    return dataclasses.replace(model, about=about), texts


def _find(about: About, old: About | None, text_model: str | os.PathLike | None) -> str:
    """Where the tower is that embedded the texts of training; "" = unknown."""
    if text_model is not None:
        return absolute(text_model)
    if old is None:
        data = read_config(find_weights(Path(about.checkpoint))).get("data", {})
        made = known_model(data["texts"]) if data.get("texts") else ""
        return made if Path(made).exists() else ""
    if not Path(old.text_model).exists():
        raise CheckpointError(
            f"{old.text_model}: has embedded the titles of the index, and is not there any more; tell where it is now "
            "(--text_model)"
        )
    return old.text_model


def _trained_with(about: About) -> str:
    """Fingerprint of what embedded the texts of training; "" = unknown, or the run's own tower."""
    return read_data(find_weights(Path(about.checkpoint))).get(TEXT_MODEL, "")


def _is_untrained(model: Model) -> bool:
    """Whether the checkpoint lacks a part that reads texts, which has fresh weights then."""
    parts = [part for part in ("pmd", "text") if part in model.params]
    return any(missing(Path(model.about.checkpoint), model.params, part) for part in parts)

"""How what is said counts in the scores of an index that holds titles as vectors (`index.text`)."""

import os
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int

from rice_jax.index.store import Index
from rice_jax.index.text import IndexText, Texts, warn_of_weight
from rice_jax.models.weights import CheckpointError
from rice_jax.recognition.programs import compare_texts, compiled


class Said(NamedTuple):
    """What a clip's speech adds to the scores of all images, and to the mean of a gallery's."""

    scores: Float32[np.ndarray, " G"]
    mean: float


class Titles:
    """Compares what is said with the titles of an index.

    Attributes:
        texts: embeds what is said as the titles are embedded.
    """

    def __init__(self, text: IndexText, texts: Texts):
        """Compiles the comparison for the default device.

        Args:
            text: the titles.
            texts: what embedded them.
        """
        self.texts, self._text = texts, text
        self._vectors, self._weight = jax.device_put(text.vectors), np.float32(text.weight)
        speech = np.zeros(texts.dimensions, np.float32)
        self._compare = compiled(compare_texts, self._vectors, speech, self._weight)

    def compare(self, speech: str, rows: Int[np.ndarray, " g"], gallery: str | None) -> Said | None:
        """What speech adds to the scores; None = nothing is said.

        Args:
            speech: "" = nothing, or unknown.
            rows: of the gallery in the index.
            gallery: its id; None = all products.
        """
        if not speech:
            return None
        [vector] = self.texts([speech])
        if not vector.any():
            return None
        scores, centers = np.asarray(self._compare(self._vectors, vector, self._weight)), self._text.centers
        return Said(scores, float(self._weight * centers[gallery] @ vector if centers else scores[rows].mean()))


def load_titles(
    index: Index, model: str | os.PathLike | None, text_model: str | os.PathLike | None, known: Iterable[Texts]
) -> Titles | None:
    """Loads what embedded the titles of an index, and warns if its calibration has another weight of them.

    Args:
        index: to search.
        model: the run that made it, if it has moved.
        text_model: what embedded the titles, if it has moved and is not that run.
        known: loaded for other indexes; shared if they are the same.

    Returns:
        None = the index has no titles as vectors.

    Raises:
        CheckpointError: the text tower is missing, or another one.
        DataError: there is no tokenizer, or it is not that of the tower.
    """
    text = index.text
    if text is None:
        return None
    warn_of_weight(text.weight, index.about.calibration)
    own = text.model == index.about.checkpoint
    return Titles(text, load_texts(text.model, text.fingerprint, own, model, text_model, known))


def load_texts(
    named: str,
    fingerprint: str,
    own: bool,
    model: str | os.PathLike | None,
    text_model: str | os.PathLike | None,
    known: Iterable[Texts],
) -> Texts:
    """Loads what embedded texts of an index.

    Args:
        named: where it was then.
        fingerprint: of it.
        own: whether it is the tower of the run that made the index, and has moved with that.
        model, text_model, known: as in `load_titles`.

    Raises:
        CheckpointError, DataError: as `load_titles`.
    """
    shared = next((texts for texts in known if texts.fingerprint == fingerprint), None)
    moved, flag = (model, "--checkpoint, model=") if own else (text_model, "--text_model, text_model=")
    if not (shared or moved or os.path.exists(named)):
        raise CheckpointError(
            f"{named}: has embedded the titles of the index, and is not there any more; tell where it is now ({flag})"
        )
    return shared or Texts(moved or named, fingerprint)

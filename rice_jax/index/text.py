"""The titles of an index as vectors, whose cosines with what is said count beside those of pictures.

    score = cosine of picture and clip + weight · cosine of title and speech

This is one inner product: of a picture's row [picture; √weight · title] and a clip's [clip; √weight · speech]. A text
that is missing is 0, so a picture without a title, and a clip without speech, have the score of the pictures alone.
"""

import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int

from rice_jax.config import ConfigError, MeshConfig
from rice_jax.eval.calibration import Calibration
from rice_jax.eval.texts import TextEmbedder, load_text_model
from rice_jax.files import absolute
from rice_jax.index.about import About
from rice_jax.index.columns import from_int8, to_int8
from rice_jax.input.texts import clean
from rice_jax.models.weights import CheckpointError
from rice_jax.parallel.mesh import create_mesh

BATCH_SIZE = 64  # titles that are embedded together
NUM_KEPT = 256  # texts whose embeddings an embedder keeps

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class IndexText:
    """The titles of an index as vectors.

    Attributes:
        model: what embeds texts: a converted text tower, or a run that has trained one.
        fingerprint: tells text towers apart (`models.text_weights.text_fingerprint`).
        weight: of the cosine of title and speech, above 0; that of picture and clip has weight 1.
        vectors: of the titles, unit length; 0 = there is no title.
        centers: {gallery: the mean of its vectors}, under None that of all; only as those of `Index`.
    """

    model: str
    fingerprint: str
    weight: float
    vectors: Float32[np.ndarray, "G D"]
    centers: Mapping[str | None, Float32[np.ndarray, " D"]] | None = None

    @property
    def scaled(self) -> Float32[np.ndarray, "G D"]:
        """The titles' part of the rows whose inner product with a clip's is the score."""
        return self.vectors * np.float32(np.sqrt(self.weight))

    @property
    def about(self) -> bytes:
        """All but the vectors, as JSON."""
        return json.dumps({"model": self.model, "fingerprint": self.fingerprint, "weight": self.weight}).encode()

    def stored(self, dtype: str) -> np.ndarray:
        """The vectors as they are on disk, of one of `columns.DTYPES`."""
        return to_int8(self.vectors) if dtype == "int8" else self.vectors

    @classmethod
    def restore(cls, about: bytes, stored: np.ndarray) -> "IndexText":
        """The inverse of `about` and `stored`.

        Raises:
            ValueError: a vector is neither of unit length nor 0, or the weight is not above 0.
        """
        vectors = from_int8(stored) if stored.dtype == np.int8 else stored
        text = cls(**json.loads(about), vectors=vectors)
        lengths = np.linalg.norm(vectors, axis=1)
        if not (np.isclose(lengths, 1, atol=1e-3) | (lengths == 0)).all() or not text.weight > 0:
            raise ValueError("a title's vector is neither of unit length nor 0, or its weight is not above 0")
        return text

    @classmethod
    def unscale(cls, about: bytes, scaled: Float32[np.ndarray, "G D"]) -> "IndexText":
        """The inverse of `about` and `scaled`."""
        text = cls(**json.loads(about), vectors=scaled)
        return dataclasses.replace(text, vectors=text.unscaled(scaled))

    def unscaled(self, scaled: Float32[np.ndarray, "*G D"]) -> Float32[np.ndarray, "*G D"]:
        """Vectors without the weight that `scaled` gives them."""
        return scaled / np.float32(np.sqrt(self.weight))

    def take(self, rows: Int[np.ndarray, " n"]) -> "IndexText":
        """Selects some of the titles."""
        return dataclasses.replace(self, vectors=self.vectors[rows])


class TextSettings(NamedTuple):
    """How the titles of an index are embedded, as far as it is asked for.

    Attributes:
        model: a converted text tower, or a run that has trained one; None = as in the index, or in the calibration.
        weight: of the cosine of title and speech; 0 = titles are not embedded; None = as in the index, or in the
            calibration.
    """

    model: str | os.PathLike | None = None
    weight: float | None = None

    def load(self, old: IndexText | None, about: About, *, is_new: bool = True) -> "tuple[Texts, float] | None":
        """Loads what embeds titles, and their weight; None = they are not embedded.

        Args:
            old: titles of the index that is updated; None = it has none, or is new.
            about: the model that embeds the pictures.
            is_new: whether the index is new, and so takes the calibration's weight.

        Raises:
            ConfigError: the weight is below 0, or one of model and weight is unknown.
            CheckpointError, DataError: as `Texts`.
        """
        calibration, weight = about.calibration, self.weight
        calibrated = calibration.text_weight if calibration else 0.0
        if weight is None:
            weight = old.weight if old else calibrated if is_new else 0.0
        if not 0 <= weight < math.inf:
            raise ConfigError(f"text_weight: found {weight}, expected 0 or more")
        if not weight:
            if self.model is not None and self.weight is None and not about.decoder_text:
                raise ConfigError(
                    f"text_model: found {self.model}, but neither the index nor the model's calibration has a weight "
                    "of texts; set text_weight, too, or fit one (rice eval with config.eval.text_weight='fit')"
                )
            return None
        warn_of_weight(weight, calibration)
        source, fingerprint = self.model, old.fingerprint if old else None
        if old is None and calibration and calibration.text_fingerprint and calibrated:
            source, fingerprint = source or calibration.text_model or about.checkpoint, calibration.text_fingerprint
        elif old and source is None:
            source = old.model
        if source is None:
            raise ConfigError(
                f"text_weight: found {weight:g} without a text tower; set text_model to a converted one (rice convert "
                "text), or to a run with config.model.text='tower'"
            )
        return Texts(source, fingerprint, BATCH_SIZE), weight


AS_BEFORE = TextSettings()


def warn_of_weight(weight: float, calibration: Calibration | None) -> None:
    """Warns if confidences were fitted to scores in which texts have another weight.

    Args:
        weight: of the cosine of title and speech in an index.
        calibration: of the index; None = there are no confidences.
    """
    if calibration and weight != calibration.text_weight:
        logger.warning(
            "titles and speech have weight %g in this index and %g in the calibration, whose confidences may not "
            "hold for clips with speech",
            weight,
            calibration.text_weight,
        )


class Texts:
    """Embeds titles and speech with one text tower, on this process's first device."""

    def __init__(self, source: str | os.PathLike, fingerprint: str | None = None, batch_size: int = 1):
        """Loads and compiles the tower.

        Args:
            source: a converted text tower, or a run that has trained one.
            fingerprint: of the tower that is expected; None = any.
            batch_size: texts that are embedded together.

        Raises:
            CheckpointError: there are no weights, they are damaged, of no text tower, or of another one.
            DataError: there is no tokenizer, or it is not that of the tower.
            ConfigError: the package `tokenizers` is not installed.
        """
        model = load_text_model(Path(source))
        if fingerprint is not None and model.fingerprint != fingerprint:
            raise CheckpointError(
                f"{source}: is not the text tower that embedded the titles of the index (found "
                f"{model.fingerprint[:12]}, expected {fingerprint[:12]}), and texts of different towers cannot be "
                "compared. Use that tower, or make another index with this one"
            )
        self.source = absolute(source)
        self.fingerprint, self.dimensions = model.fingerprint, model.config.embed_dim
        self.is_clip = model.config.head == "projection"  # its texts have a place among its CLIP's pictures
        self._embedder = TextEmbedder(model, batch_size, create_mesh(MeshConfig(1, 1), jax.local_devices()[:1]))
        self._kept = functools.lru_cache(NUM_KEPT)(lambda text: self._embed([text])[0])
        self._embed(["a"])  # compiles

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "N D"]:
        """The embeddings of texts, unit length; 0 for a text that is missing. What is too long is cut."""
        if len(texts) == 1:  # a stream asks for the same text again with every frame
            return self._kept(texts[0])[None].copy()
        return self._embed(texts)

    def _embed(self, texts: Sequence[str]) -> Float32[np.ndarray, "N D"]:
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        cleaned = {place: text for place, text in enumerate(map(clean, texts)) if text.strip()}
        if cleaned:
            vectors[list(cleaned)], num_cut = self._embedder(list(cleaned.values()))
            if num_cut and len(texts) > 1:
                logger.info(
                    "%d of %d texts are longer than the text tower reads; their ends are cut off", num_cut, len(cleaned)
                )
        return vectors


def embed_titles(
    texts: Texts, weight: float, titles: Sequence[str], known: Mapping[str, Float32[np.ndarray, " D"]]
) -> IndexText:
    """The titles of an index as vectors.

    Args:
        texts: embeds them.
        weight: see `IndexText`.
        titles: of all pictures; "" = unknown.
        known: {title: its vector}, by the same tower, which are not embedded again.
    """
    fresh = [title for title in dict.fromkeys(titles) if title not in known]
    found = embed_distinct(texts, fresh)
    vectors = np.zeros((len(titles), texts.dimensions), np.float32)
    for row, title in enumerate(titles):
        vectors[row] = found[title] if title in found else known[title]
    logger.info(
        "%d of %d pictures have a title; %d titles are embedded", sum(map(bool, titles)), len(titles), len(fresh)
    )
    return IndexText(texts.source, texts.fingerprint, weight, vectors)


def embed_distinct(texts: Texts, titles: Iterable[str]) -> dict[str, Float32[np.ndarray, " D"]]:
    """{title: its vector}, each embedded once."""
    distinct = list(dict.fromkeys(titles))
    return dict(zip(distinct, texts(distinct), strict=True)) if distinct else {}

"""The titles of an index as vectors, whose cosines with what is said count beside those of pictures.

    score = cosine of picture and clip + weight · cosine of title and speech

This is one inner product: of a picture's row [picture; √weight · title] and a clip's [clip; √weight · speech]. A text
that is missing is 0, so a picture without a title, and a clip without speech, have the score of the pictures alone.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, Int

from rice_jax.config import MeshConfig
from rice_jax.eval.texts import TextEmbedder, load_text_model
from rice_jax.input.texts import clean
from rice_jax.models.weights import CheckpointError
from rice_jax.parallel.mesh import create_mesh

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
    """

    model: str
    fingerprint: str
    weight: float
    vectors: Float32[np.ndarray, "G D"]

    @property
    def scaled(self) -> Float32[np.ndarray, "G D"]:
        """The titles' part of the rows whose inner product with a clip's is the score."""
        return self.vectors * np.float32(np.sqrt(self.weight))

    def take(self, rows: Int[np.ndarray, " n"]) -> "IndexText":
        """Selects some of the titles."""
        return dataclasses.replace(self, vectors=self.vectors[rows])


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
                "compared. Use that tower, or index the pictures again without titles (--text_weight=0), and then with "
                "this one"
            )
        self.source, self.fingerprint, self.dimensions = str(source), model.fingerprint, model.config.embed_dim
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
    found = dict(zip(fresh, texts(fresh), strict=True)) if fresh else {}
    vectors = np.zeros((len(titles), texts.dimensions), np.float32)
    for row, title in enumerate(titles):
        vectors[row] = found[title] if title in found else known[title]
    logger.info(
        "%d of %d pictures have a title; %d titles are embedded", sum(map(bool, titles)), len(titles), len(fresh)
    )
    return IndexText(texts.source, texts.fingerprint, weight, vectors)

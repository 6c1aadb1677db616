"""How an engine re-ranks: by score + weight · match, as an evaluation does (`eval.rerank`)."""

import logging
import os
from collections.abc import Iterable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int

from rice_jax.index.about import About
from rice_jax.index.model import Model
from rice_jax.index.store import Index
from rice_jax.index.text import Texts
from rice_jax.models.contract import SupportsMatching, require
from rice_jax.models.weights import CheckpointError
from rice_jax.recognition.frames import Frames, fill
from rice_jax.recognition.programs import compiled, matching
from rice_jax.recognition.titles import load_texts

logger = logging.getLogger(__name__)


class Reranker:
    """Re-orders the first products of a clip with the decoder, which matches the most similar image of each.

    Attributes:
        num_matched: number of products that are re-ordered.
        texts: what embeds the speech that the decoder reads; None = it reads none.
    """

    def __init__(
        self, index: Index, model: Model, num_matched: int, frames: Frames, *, by_frames: bool, texts: Texts | None
    ):
        """Compiles the decoder.

        Args:
            index: to search, with `queries`.
            model: that made it.
            num_matched: number of first products to re-order, at least 1; an index may have fewer.
            frames: of any clip, encoded.
            by_frames: whether products are ranked by frames, and otherwise by the mean.
            texts: what embeds the speech that the decoder reads (`load_speech`); None = it reads none.

        Raises:
            ConfigError: the model has no decoder.
        """
        require(nnx.merge(model.graphdef, model.params), SupportsMatching, "re-ranking")
        self.num_matched, self.texts = min(num_matched, index.num_products), texts
        self._params, self._num_frames = model.params, index.about.num_frames
        self._weight = match_weight(index.about, by_frames=by_frames)
        [device] = jax.tree.leaves(model.params)[0].devices()
        self._queries = jax.device_put(index.queries, device)
        assert frames.tokens is not None
        rows, filled = np.zeros(self.num_matched, np.int32), fill(frames.tokens, self._num_frames)
        self._matcher = compiled(matching(model), self._params, self._queries, rows, *filled, self._said(""))

    def reorder(
        self, frames: Frames, rows: Int[np.ndarray, " k"], scores: Float32[np.ndarray, " k"], speech: str
    ) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """The new order of the first products, and the scores that they have in it.

        Args:
            frames: the clip's frames, at most as many as the model takes.
            rows: the most similar image of each product, best product first.
            scores: of the products.
            speech: what is said in the clip; "" = nothing, or unknown.
        """
        matched = self.match(frames, rows[: self.num_matched], speech)
        return reorder(scores[: len(matched)], matched, self._weight)

    def match(self, frames: Frames, rows: Int[np.ndarray, " n"], speech: str = "") -> Float32[np.ndarray, " n"]:
        """The decoder's cosines of a clip and at most `num_matched` images; arguments as in `reorder`."""
        candidates = np.resize(rows, self.num_matched).astype(np.int32)  # rows of a small gallery repeat
        assert frames.tokens is not None
        filled = fill(frames.tokens, self._num_frames)
        found = self._matcher(self._params, self._queries, candidates, *filled, self._said(speech))
        return np.asarray(found)[: len(rows)]

    def _said(self, speech: str) -> dict[str, np.ndarray]:
        if self.texts is None:
            return {}
        vectors = self.texts([speech])
        return {"speech": vectors, "speech_mask": np.asarray(vectors.any(axis=1))}


def load_speech(
    about: About, model: str | os.PathLike | None, text_model: str | os.PathLike | None, known: Iterable[Texts]
) -> Texts | None:
    """Loads what embeds the speech that a decoder reads, and warns if it was trained with texts and can read none.

    Args:
        about: the index.
        model, text_model, known: as in `titles.load_titles`, which also tells what is raised.

    Returns:
        None = the decoder reads no texts.
    """
    if about.decoder_text is None:
        return None
    if not about.text_fingerprint:
        logger.warning(
            "The decoder was trained with titles and speech, and the index was made without titles for it, so "
            "re-ranking reads no texts and may be worse than in the run's evaluation. To change that, index all "
            "pictures into another directory (rice index)."
        )
        return None
    own = about.text_model == about.checkpoint
    return load_texts(about.text_model, about.text_fingerprint, own, model, text_model, known)


def require_queries(index: Index, name: str | os.PathLike) -> None:
    """Refuses an index that holds nothing to re-rank with.

    Args:
        index: to search.
        name: of it, for the error.

    Raises:
        CheckpointError: its model has no trained decoder.
    """
    if index.queries is None:
        raise CheckpointError(
            f"{name}: holds nothing to re-rank with, since its model has no trained decoder; leave --rerank out, "
            "or index the images with a run that was trained with config.loss.pmd_weight above 0"
        )


def match_weight(about: About, *, by_frames: bool) -> float | None:
    """The weight of the decoder's cosine in the calibration of an index.

    Warns if it is missing or 0.

    Args:
        about: the index.
        by_frames: whether products are ranked by frames, and otherwise by the mean.

    Returns:
        0 or more; None = the calibration has none of this decoder, so the first products are ordered by it alone.
    """
    calibration, weight = about.calibration, None
    if calibration and calibration.match_fingerprint == about.match_fingerprint:
        weight = calibration.match_weight_by_frames if by_frames else calibration.match_weight
    if weight is None:
        logger.warning(
            "The index has no calibrated weight of its decoder, so re-ranking orders the first products by the decoder "
            "alone. To fit one, evaluate the run with config.eval.rerank (rice eval), and index its images again (rice "
            "index)."
        )
    elif weight == 0:
        logger.warning("The calibration gives the decoder no weight, so re-ranking changes nothing; leave it out.")
    return weight


def reorder(
    scores: Float32[np.ndarray, " k"], matched: Float32[np.ndarray, " k"], weight: float | None
) -> tuple[Int[np.ndarray, " k"], Float32[np.ndarray, " k"]]:
    """The new order of some products, and the scores that they have in it; ties stay in the order before.

    Args:
        scores: that the products were ranked by before.
        matched: the decoder's cosines.
        weight: of these; None = they alone count.
    """
    by = matched if weight is None else scores + weight * matched.astype(np.float64)
    order = np.argsort(-by, kind="stable")
    return order, by[order].astype(np.float32)

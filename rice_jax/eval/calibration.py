"""From similarities to confidences: the probability of each product of a gallery, and of none of them.

For a clip with cosines s_g to the products g of its gallery, the largest of which is s,

    P(none) = 1 / (1 + exp(slope · (s - threshold))),    P(g) = (1 - P(none)) · exp(scale · s_g) / Σ exp(scale · s_g').

Which product a clip shows, and whether it shows any at all, are modeled separately. In one softmax with an extra entry
for "none", a weak encoder's small scale would spread probability over the whole gallery, and a picture with a small
similarity to every product (a set without a product) would be taken for a product. The cosine of a product of several
images is pooled from theirs (`eval.pooling`), when a calibration is fitted as well as when it is used.

The three numbers are maximum-likelihood estimates over the clips of an evaluation: the scale over the truths (summed if
there are several); slope and threshold over every clip twice, once with its gallery, which holds a truth, and once with
its truths removed from the gallery. The estimate thus assumes that clips of products outside the shop are as frequent
as clips of the shop's products.

By frames (`eval.scores`), the shares are exp(scale by frames · score) instead. Whether any product is shown is
decided by the largest cosine, which is better evidence of it than the largest score by frames (docs/results.md).
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rice_jax.eval.ranking import GalleryImages, Queries
from rice_jax.eval.scores import scores_by_frames
from rice_jax.files import write_lines
from rice_jax.types import DataError

FILE = "calibration.json"
FAR = 1000.0  # from the threshold to a score that no clip has, also with texts of some weight
CERTAIN = 1e6  # log-odds
NONE_PRIOR = 0.5  # probability of "none" before a clip is seen, unless a user knows better
MAX_SCALE = 1000.0  # of scale and slope, which would grow without bound if all of a few clips are ranked correctly


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Parameters that turn cosines into probabilities.

    Attributes:
        scale: of the cosines, for which product is shown; 0 = cosines carry no information.
        slope: of the largest cosine, for whether any product is shown; 0 = it carries no information.
        threshold: largest cosine at which a product is shown with probability 1/2.
        num_clips: number of clips of the fit.
        num_frames: largest number of frames of these clips.
        fingerprint: of the encoder (`models.weights.embedding_fingerprint`).
        scale_by_frames: of the scores by frames, for which product is shown; None = not fitted, as in version 0.2.
        source: file with the labels of the clips; "" = they are those of the run's evaluation.
        text_weight: of the cosine of title and speech in the scores (`config.eval.text_weight`); 0 = it has no part.
        text_fingerprint: of the text tower; "" = unknown, or `text_weight` is 0.
        text_model: directory of the text tower; "" = the run has trained it, or it is unknown.
        match_weight: of the decoder's cosine where it is added to the cosine of a clip (`eval.rerank`); None = not
            fitted.
        match_weight_by_frames: the same where it is added to the score by frames.
        match_fingerprint: of the decoder (`models.weights.match_fingerprint`); None = no weight was fitted.
    """

    scale: float
    slope: float
    threshold: float
    num_clips: int
    num_frames: int
    fingerprint: str
    scale_by_frames: float | None = None
    source: str = ""
    text_weight: float = 0.0
    text_fingerprint: str = ""
    text_model: str = ""
    match_weight: float | None = None
    match_weight_by_frames: float | None = None
    match_fingerprint: str | None = None

    def probabilities(
        self,
        cosines: Float[np.ndarray, "*B G"],
        by_frames: Float[np.ndarray, "*B G"] | None = None,
        none_prior: float = NONE_PRIOR,
    ) -> Float[np.ndarray, "*B C"]:
        """The probability of each product of a gallery and, in the last place, of none of them; C = G + 1.

        Args:
            cosines: of clips and all products of a gallery, of any size.
            by_frames: their scores by frames; None = the cosines tell which product is shown.
            none_prior: probability of "none" before a clip is seen, 0 to 1.
        """
        if not cosines.shape[-1]:
            return np.ones((*cosines.shape[:-1], 1))
        best = cosines.max(axis=-1, keepdims=True)
        shown = self.slope * (best - self.threshold) - _logit(none_prior)
        none = 0.5 - 0.5 * np.tanh(shown / 2)  # the logistic function, never overflowing
        scale, scores = (self.scale, cosines) if by_frames is None else (self.scale_by_frames, by_frames)
        shares = np.exp(scale * (scores - scores.max(axis=-1, keepdims=True)))
        return np.concatenate([(1 - none) * shares / shares.sum(axis=-1, keepdims=True), none], axis=-1)

    def with_match(self, other: "Calibration | None") -> "Calibration":
        """This calibration with the weights of the decoder of another one, if that has any."""
        if other is None or other.match_fingerprint is None:
            return self
        names = "match_weight", "match_weight_by_frames", "match_fingerprint"
        return dataclasses.replace(self, **{name: getattr(other, name) for name in names})

    def cosine_at(self, confidence: float = 0.5, none_prior: float = NONE_PRIOR) -> float:
        """The cosine at which any product is shown with probability `confidence`, at most `FAR` from the threshold."""
        shift = _logit(confidence) + _logit(none_prior)
        if not shift:
            return self.threshold
        with np.errstate(divide="ignore"):
            return self.threshold + float(np.clip(np.float64(shift) / self.slope, -FAR, FAR))


def fit_calibration(
    queries: Queries,
    images: GalleryImages,
    *,
    num_frames: int,
    fingerprint: str,
    by_frames: Queries | None = None,
    max_scores: int = 2**22,
) -> Calibration | None:
    """Fits a calibration to clips whose products are known.

    Args:
        queries: the clips, to compare by the mean.
        images: of all galleries.
        num_frames: largest number of frames of a clip, for the result.
        fingerprint: of the encoder, for the result.
        by_frames: the same clips, to compare by frames; None = the result has no scale for it.
        max_scores: bounds the memory; if there are more scores, the fit uses clips at equal distances.

    Returns:
        The calibration; None if no clip has a truth in its gallery.
    """
    names = {gallery_id: np.array(images.names(own), object) for gallery_id, own in images.products.items()}
    known = {
        query: np.isin(names[gallery_id], images.true_products(gallery_id, truths))
        for query, (gallery_id, truths) in enumerate(zip(queries.gallery_ids, queries.truths, strict=True))
        if gallery_id in names
    }
    clips = [query for query, own in known.items() if own.any()]
    if not clips:
        return None
    clips = clips[:: -(-sum(len(known[query]) for query in clips) // max_scores)]
    cosines, scores = [], []
    for query in clips:
        products = images.products[queries.gallery_ids[query]]
        vectors, pooling = images.embeddings[products.rows], images.pooling(products)
        cosines.append(pooling.cosines(vectors @ queries.embeddings[query]))
        if by_frames:
            scores.append(pooling.scores(scores_by_frames(by_frames.rows(query) @ vectors.T)))
    is_truth = [known[query] for query in clips]
    return fit_scores(cosines, is_truth, scores or None, num_frames=num_frames, fingerprint=fingerprint)


def fit_scores(
    cosines: Sequence[np.ndarray],
    is_truth: Sequence[np.ndarray],
    by_frames: Sequence[np.ndarray] | None = None,
    *,
    num_frames: int,
    fingerprint: str,
    without: Sequence[np.ndarray] = (),
    source: str = "",
) -> Calibration:
    """Fits a calibration to the scores of clips.

    Args:
        cosines: of each clip, at least one, and all products of its gallery.
        is_truth: whether each of these is what the clip shows, as at least one is.
        by_frames: their scores by frames; None = the result has no scale for them.
        num_frames: largest number of frames of a clip, for the result.
        fingerprint: of the encoder, for the result.
        without: cosines of clips that show nothing of their gallery.
        source: of the clips, for the result.
    """
    return Calibration(
        _fit_scale(cosines, is_truth),
        *_fit_threshold(cosines, is_truth, without),
        len(cosines),
        num_frames,
        fingerprint,
        _fit_scale(by_frames, is_truth) if by_frames is not None else None,
        source,
    )


def write_calibration(workdir: str | os.PathLike, calibration: Calibration) -> None:
    """Writes `calibration.json`, whole or not at all."""
    write_lines(Path(workdir) / FILE, [json.dumps(dataclasses.asdict(calibration), indent=2, allow_nan=False)])


def read_calibration(workdir: str | os.PathLike) -> Calibration | None:
    """Reads the calibration that an evaluation wrote into a run's workdir; None if there is none.

    Raises:
        DataError: the file cannot be read.
    """
    path = Path(workdir) / FILE
    try:
        return Calibration(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); evaluate the run again (rice eval)") from error


def _logit(probability: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.clip(np.log(probability) - np.log1p(-probability), -CERTAIN, CERTAIN))


def _fit_scale(cosines: Sequence[np.ndarray], is_truth: Sequence[np.ndarray]) -> float:
    """Fits the scale to the cosines, or scores by frames, of each clip, of which at least one is of a truth."""
    from scipy.optimize import minimize_scalar  # slow to import, and most runs only need it at their end

    starts = np.cumsum([0, *map(len, cosines[:-1])])
    behind = np.concatenate([own - own.max() for own in cosines]).astype(
        np.float64
    )  # 0 or less, so that exp cannot overflow
    right = np.concatenate(is_truth)
    least = np.finfo(np.float64).tiny  # avoids log 0

    def loss(scale: float) -> float:
        shares = np.exp(scale * behind)
        true = np.add.reduceat(shares * right, starts)
        return float((np.log(np.add.reduceat(shares, starts)) - np.log(np.maximum(true, least))).mean())

    # If all of a few clips are ranked correctly, the best scale is infinite; the search over its logarithm is bounded.
    fitted = minimize_scalar(lambda power: loss(np.exp(power)), bounds=(np.log(1e-3), np.log(MAX_SCALE)))
    return float(np.exp(fitted.x)) if fitted.fun < loss(0.0) else 0.0


def _fit_threshold(
    cosines: Sequence[np.ndarray], is_truth: Sequence[np.ndarray], without: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Fits slope and threshold: a logistic regression on the largest cosine of whether a truth is in the gallery."""
    from scipy.optimize import minimize

    present = np.array([own.max() for own in cosines], np.float64)
    others = [own[~right].max() for own, right in zip(cosines, is_truth, strict=True) if not right.all()]
    absent = np.array([*others, *(own.max() for own in without)], np.float64)
    if not len(absent):  # a gallery of truths alone has no example of "none"
        return 0.0, float(present.mean())

    def loss(values: np.ndarray) -> float:
        slope, threshold = values
        there, missing = slope * (present - threshold), slope * (absent - threshold)
        return float(np.logaddexp(0, -there).mean() + np.logaddexp(0, missing).mean())

    start = [10.0, float((present.mean() + absent.mean()) / 2)]
    scores = np.concatenate([present, absent])
    ends = min(-1.0, scores.min()), max(1.0, scores.max())  # those of cosines, or further with texts of some weight
    slope, threshold = minimize(loss, start, method="L-BFGS-B", bounds=[(0.0, MAX_SCALE), ends]).x
    return float(slope), float(threshold)

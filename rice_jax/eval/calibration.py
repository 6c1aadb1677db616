"""How sure a similarity is: the probability of each image of a gallery, and that the product is none of them.

Of a clip with cosines s_g to the images g of its gallery, the largest of them s,

    P(none) = 1 / (1 + exp(slope · (s - threshold))),    P(g) = (1 - P(none)) · exp(scale · s_g) / Σ exp(scale · s_g').

Which image it is and whether it is one of them are two questions. With a common softmax, a further entry of which is
none, a weak encoder's small scale sums over the whole gallery, and what is like every image a little, a set on which
nothing is shown, passes for a product.

All three numbers are of maximum likelihood over the clips of an evaluation: the scale over the truths (of several their
sum), slope and threshold over every clip twice, with its gallery, where one of them is shown, and with its truths taken
out of the gallery, where none is. So a clip of a product that the shop does not have is taken to be as frequent as one
of a product that it has.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from rice_jax.eval.ranking import group_rows
from rice_jax.files import write_lines
from rice_jax.types import DataError

FILE = "calibration.json"
MAX_SCALE = 1000.0  # and slope; where few clips are all right they would grow for ever


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What turns cosines into probabilities.

    Attributes:
        scale: of the cosines, to tell images apart; 0 = they tell nothing.
        slope: of the largest cosine, to tell whether one of them is shown; 0 = it tells nothing.
        threshold: the largest cosine at which that is as likely as not.
        num_clips: that they were fitted to.
        num_frames: of these clips at most.
        fingerprint: of the encoder (`models.weights.embedding_fingerprint`).
    """

    scale: float
    slope: float
    threshold: float
    num_clips: int
    num_frames: int
    fingerprint: str

    def probabilities(self, cosines: Float[np.ndarray, "*B G"]) -> Float[np.ndarray, "*B C"]:
        """The probability of each image of a gallery and, in the last place, of none; C = G + 1.

        Args:
            cosines: of clips and all images of a gallery, no matter how many.
        """
        if not cosines.shape[-1]:
            return np.ones((*cosines.shape[:-1], 1))
        best = cosines.max(axis=-1, keepdims=True)
        none = 0.5 - 0.5 * np.tanh(self.slope * (best - self.threshold) / 2)  # the logistic function, never overflowing
        shares = np.exp(self.scale * (cosines - best))
        return np.concatenate([(1 - none) * shares / shares.sum(axis=-1, keepdims=True), none], axis=-1)


def fit_calibration(
    video_embeddings: Float32[np.ndarray, "Q E"],
    query_gallery_ids: Sequence[str],
    truths: Sequence[Sequence[str]],
    image_embeddings: Float32[np.ndarray, "G E"],
    gallery_ids: Sequence[str],
    image_ids: Sequence[str],
    *,
    num_frames: int,
    fingerprint: str,
    max_scores: int = 2**22,
) -> Calibration | None:
    """Fits a calibration to clips whose products are known.

    Args:
        video_embeddings: of the clips, unit length, finite.
        query_gallery_ids: the gallery of each clip.
        truths: the ids of the images that are right for each clip.
        image_embeddings: unit length, finite.
        gallery_ids, image_ids: of the images.
        num_frames, fingerprint: what the result shall say of the clips and the encoder.
        max_scores: bounds the memory: of more, only clips at even distances are looked at.

    Returns:
        The calibration; None if no clip has a truth in its gallery.
    """
    columns = {gallery_id: np.array(rows) for gallery_id, rows in group_rows(gallery_ids).items()}
    names = np.array(image_ids, object)
    is_truth = {
        query: np.isin(names[columns[gallery_id]], list(own))
        for query, (gallery_id, own) in enumerate(zip(query_gallery_ids, truths, strict=True))
        if gallery_id in columns
    }
    clips = [query for query, own in is_truth.items() if own.any()]
    if not clips:
        return None
    clips = clips[:: -(-sum(len(is_truth[query]) for query in clips) // max_scores)]
    cosines = [image_embeddings[columns[query_gallery_ids[query]]] @ video_embeddings[query] for query in clips]
    is_truth = [is_truth[query] for query in clips]
    return Calibration(
        _fit_scale(cosines, is_truth), *_fit_threshold(cosines, is_truth), len(clips), num_frames, fingerprint
    )


def write_calibration(workdir: str | os.PathLike, calibration: Calibration) -> None:
    """Writes `calibration.json`, whole or not at all."""
    write_lines(Path(workdir) / FILE, [json.dumps(dataclasses.asdict(calibration), indent=2, allow_nan=False)])


def read_calibration(workdir: str | os.PathLike) -> Calibration | None:
    """What an evaluation wrote into a run's workdir; None if there is nothing.

    Raises:
        DataError: it cannot be read.
    """
    path = Path(workdir) / FILE
    try:
        return Calibration(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); evaluate the run again (--mode=eval)") from error


def _fit_scale(cosines: Sequence[np.ndarray], is_truth: Sequence[np.ndarray]) -> float:
    """The scale for the cosines of each clip and which of them are of a truth, at least one."""
    from scipy.optimize import minimize_scalar  # here, as it takes long to import and most runs fit at their end

    starts = np.cumsum([0, *map(len, cosines[:-1])])
    behind = np.concatenate([own - own.max() for own in cosines]).astype(np.float64)  # 0 or less: no exp is too large
    right = np.concatenate(is_truth)
    least = np.finfo(np.float64).tiny  # never log 0

    def loss(scale: float) -> float:
        shares = np.exp(scale * behind)
        true = np.add.reduceat(shares * right, starts)
        return float((np.log(np.add.reduceat(shares, starts)) - np.log(np.maximum(true, least))).mean())

    # Few clips that are all right want a scale without end: along its logarithm, its bounds are near.
    fitted = minimize_scalar(lambda power: loss(np.exp(power)), bounds=(np.log(1e-3), np.log(MAX_SCALE)))
    return float(np.exp(fitted.x)) if fitted.fun < loss(0.0) else 0.0


def _fit_threshold(cosines: Sequence[np.ndarray], is_truth: Sequence[np.ndarray]) -> tuple[float, float]:
    """Slope and threshold for the same: a logistic regression of whether a truth is there on the largest cosine."""
    from scipy.optimize import minimize

    present = np.array([own.max() for own in cosines], np.float64)
    absent = np.array(
        [own[~right].max() for own, right in zip(cosines, is_truth, strict=True) if not right.all()], np.float64
    )
    if not len(absent):  # in a gallery of truths alone nobody can see what is none
        return 0.0, float(present.mean())

    def loss(values: np.ndarray) -> float:
        slope, threshold = values
        there, missing = slope * (present - threshold), slope * (absent - threshold)
        return float(np.logaddexp(0, -there).mean() + np.logaddexp(0, missing).mean())

    start = [10.0, float((present.mean() + absent.mean()) / 2)]
    slope, threshold = minimize(loss, start, method="L-BFGS-B", bounds=[(0.0, MAX_SCALE), (-1.0, 1.0)]).x
    return float(slope), float(threshold)

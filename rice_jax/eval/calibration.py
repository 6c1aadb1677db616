"""How sure a similarity is: the probability of each image of a gallery, and that the product is none of them.

Of a clip with cosines s_g to the images g of its gallery

    P(g) = exp(scale · s_g) / Z,    P(none) = exp(none) / Z,    Z = Σ_g exp(scale · s_g) + exp(none).

Both numbers are of maximum likelihood over the clips of an evaluation, each counted twice: with its gallery, where its
truth is right (of several their sum), and with its truths taken out of the gallery, where none is. So a clip of a
product that the shop does not have is taken to be as frequent as one of a product that it has.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from rice_jax.eval.report import replace_file
from rice_jax.types import DataError

FILE = "calibration.json"
MAX_SCALE = 1000.0  # where few clips are all right it would grow for ever


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What turns cosines into probabilities.

    Attributes:
        scale: of the cosines; 0 = they tell nothing.
        none: what stands for no image beside `scale` times a cosine: as likely as an image of cosine none / scale.
        num_clips: that they were fitted to.
        num_frames: of these clips at most.
        fingerprint: of the encoder (`checkpoint.fingerprint`).
    """

    scale: float
    none: float
    num_clips: int
    num_frames: int
    fingerprint: str

    def probabilities(self, cosines: Float[np.ndarray, "*B G"]) -> Float[np.ndarray, "*B C"]:
        """The probability of each image of a gallery and, in the last place, of none; C = G + 1.

        Args:
            cosines: of clips and all images of a gallery, no matter how many.
        """
        none = np.full((*cosines.shape[:-1], 1), self.none)
        logits = np.concatenate([self.scale * cosines, none], axis=-1)
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return shares / shares.sum(axis=-1, keepdims=True)


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
    rows: dict[str, list[int]] = {}
    for row, gallery_id in enumerate(gallery_ids):
        rows.setdefault(gallery_id, []).append(row)
    columns = {gallery_id: np.array(own) for gallery_id, own in rows.items()}
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
    scale, none = _most_likely(cosines, [is_truth[query] for query in clips])
    return Calibration(scale, none, len(clips), num_frames, fingerprint)


def write_calibration(workdir: str | os.PathLike, calibration: Calibration) -> None:
    """Writes `calibration.json`, whole or not at all."""
    replace_file(Path(workdir) / FILE, [json.dumps(dataclasses.asdict(calibration), indent=2, allow_nan=False)])


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


def _most_likely(cosines: Sequence[np.ndarray], is_truth: Sequence[np.ndarray]) -> tuple[float, float]:
    """Scale and none for the cosines of each clip and which of them are of a truth, at least one."""
    from scipy.optimize import minimize  # here, as it takes long to import and most runs fit at their end

    starts = np.cumsum([0, *map(len, cosines[:-1])])
    best = np.array([own.max() for own in cosines], np.float64)
    behind = np.concatenate(cosines) - np.repeat(best, list(map(len, cosines)))  # 0 or less: no exp is too large
    right = np.concatenate(is_truth)

    def loss(values: np.ndarray) -> float:
        scale, none = values
        shares = np.exp(scale * behind)
        # Never log 0: a gallery may have nothing but truths.
        true, others = (
            scale * best + np.log(np.maximum(np.add.reduceat(shares * chosen, starts), np.finfo(np.float64).tiny))
            for chosen in (right, ~right)
        )
        found = np.logaddexp(np.logaddexp(true, others), none) - true
        missed = np.logaddexp(others, none) - none
        return float((found + missed).mean())

    # Both terms are convex but for a sum over several truths. The threshold none / scale hardly depends on the scale.
    fitted = minimize(
        lambda values: loss(np.array([values[0], values[0] * values[1]])),
        [10.0, float(best.mean())],
        method="L-BFGS-B",
        bounds=[(0.0, MAX_SCALE), (None, None)],
    )
    scale, threshold = fitted.x
    return float(scale), float(scale * threshold)

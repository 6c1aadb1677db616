"""Evaluates recognition on labeled clips: ranks and names by product, and a calibration."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from rice_jax.clips.labels import Clip
from rice_jax.eval import metrics
from rice_jax.eval.calibration import Calibration, fit_scores
from rice_jax.eval.decisions import Counts, Decisions
from rice_jax.eval.ranking import Ranking
from rice_jax.recognition.engine import Engine, Frames, Scores
from rice_jax.recognition.naming import Naming
from rice_jax.types import DataError

MIN_CLIPS = 20  # that show a product; a calibration of fewer would mostly fit their noise


@dataclasses.dataclass(frozen=True)
class Measured:
    """The scores of clips for the products of an index.

    Attributes:
        clips: Q of them.
        scores: of each clip and all P products.
        truths: whether each product is the clip's own; none is if the clip shows no product.
        products: gallery and id of the products.
    """

    clips: Sequence[Clip]
    scores: Sequence[Scores]
    truths: Sequence[Bool[np.ndarray, " P"]]
    products: Sequence[tuple[str, str]]

    @property
    def shows(self) -> Bool[np.ndarray, " Q"]:
        """Whether each clip shows a product of the shop."""
        return np.array([bool(clip.product) for clip in self.clips])


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a calibration makes of measured clips.

    Attributes:
        calibration: None = there are no confidences.
        ranks: places of each clip's product among all products, from 1, ascending: one in each gallery that has it; ()
            if the clip shows none.
        best: place of each clip's best product in `Measured.products`.
        named: whether it is named.
        by_frames: whether products are ranked by frames.
        decisions: what is known about it.
        score: rank-k of the clips that show a product.
    """

    calibration: Calibration | None
    ranks: list[tuple[int, ...]]
    best: Int[np.ndarray, " Q"]
    named: Bool[np.ndarray, " Q"]
    by_frames: bool
    decisions: Decisions
    score: metrics.Score


def require_shown(clips: Sequence[Clip]) -> None:
    """Checks that some clip shows a product.

    Raises:
        DataError: none does.
    """
    if not any(clip.product for clip in clips):
        raise DataError(f"found no clip with a product among {len(clips)}, expected some: nothing can be ranked")


def measure(engine: Engine, encoded: Sequence[tuple[Clip, Frames]], gallery: str | None = None) -> Measured:
    """Scores clips for the products of a gallery; None = of all galleries.

    Raises:
        DataError: there is no such gallery, no clip shows a product, or a cosine is not finite.
    """
    require_shown([clip for clip, _ in encoded])
    index, searched = engine.index, engine.products(gallery)
    rows = searched.rows[searched.edges[:-1]].tolist()  # the first image of each product
    ids = np.array([index.product_ids[row] for row in rows], object)
    return Measured(
        clips=[clip for clip, _ in encoded],
        scores=[engine.scores(frames, gallery) for _, frames in encoded],
        truths=[ids == clip.product for clip, _ in encoded],
        products=[(index.gallery_ids[row], index.product_ids[row]) for row in rows],
    )


def calibrate(measured: Measured, engine: Engine, source: str) -> Calibration | None:
    """Fits a calibration to clips; None if fewer than `MIN_CLIPS` show a product.

    Clips are not matched: the weights of the decoder are those of the index's calibration.
    """
    shows = measured.shows
    if shows.sum() < MIN_CLIPS:
        return None
    own = [place for place, shown in enumerate(shows) if shown]
    fitted = fit_scores(
        [measured.scores[place].mean for place in own],
        [measured.truths[place] for place in own],
        [measured.scores[place].frames for place in own],
        num_frames=engine.num_frames,
        fingerprint=engine.index.about.fingerprint,
        without=[scores.mean for scores, shown in zip(measured.scores, shows, strict=True) if not shown],
        source=source,
    )
    return fitted.with_match(engine.calibration)


def judge(measured: Measured, calibration: Calibration | None, naming: Naming) -> Judged:
    """Ranks the products of each clip, and decides which clips are named."""
    by_frames = naming.by_frames(calibration)
    ranks, best, named, confidence = [], [], [], []
    for scores, truth in zip(measured.scores, measured.truths, strict=True):
        ranked = scores.frames if by_frames else scores.mean
        ranks.append(_ranks(ranked, truth))
        best.append(int(ranked.argmax()))
        if calibration is None:
            sure, none = None, None
        else:
            shares = calibration.probabilities(scores.mean, ranked if by_frames else None, naming.none_prior)
            sure, none = float(shares[best[-1]]), float(shares[-1])
        named.append(naming.names(sure, none))
        confidence.append(1.0 if sure is None else sure)
    right = np.array([bool(truth[place]) for truth, place in zip(measured.truths, best, strict=True)])
    decisions = Decisions(right, measured.shows, np.array(confidence))
    return Judged(calibration, ranks, np.array(best), np.array(named), by_frames, decisions, _score(measured, ranks))


def document(
    measured: Measured, judged: dict[str, Judged], about: dict[str, Any], max_wrong: float, max_curve: int = 1000
) -> dict[str, Any]:
    """What an evaluation found, ready for JSON.

    Args:
        measured: the clips.
        judged: {name: what a calibration makes of them}, at least one; the last is that which stays.
        about: more about the evaluation.
        max_wrong: largest acceptable share of wrong names.
        max_curve: largest number of points of the curve; of more, some at equal distances are kept.
    """
    last = list(judged.values())[-1]
    suggested = last.decisions.suggest(max_wrong) if last.calibration else None
    curve = last.decisions.curve() if last.calibration else []
    films = {clip.film for clip in measured.clips}
    counts = {
        "num_clips": len(measured.clips),
        "num_none": int((~measured.shows).sum()),
        "num_films": len(films),
        "num_products": len(measured.products),
        "max_wrong": max_wrong,
    }
    return {
        "about": about | counts,
        "results": [
            {
                "name": name,
                "ranked_by": "frames" if own.by_frames else "mean",
                "calibration": own.calibration and dataclasses.asdict(own.calibration),
                "score": dataclasses.asdict(own.score),
                "naming": _naming(own.decisions.count(own.named)),
            }
            for name, own in judged.items()
        ],
        "suggested": suggested and _naming(suggested),
        "curve": [dataclasses.asdict(point) for point in curve[:: -(-len(curve) // max_curve) or 1]],
        "clips": [_clip(measured, last, place) for place in range(len(measured.clips))],
    }


def _naming(counts: Counts) -> dict[str, Any]:
    more = {"wrong_share": counts.wrong_share, "wrong_interval": counts.wrong_interval}
    return dataclasses.asdict(counts) | more


def _clip(measured: Measured, judged: Judged, place: int) -> dict[str, Any]:
    clip = measured.clips[place]
    gallery, best = measured.products[int(judged.best[place])]
    return {
        "clip": str(clip.path),
        "start": clip.start,
        "end": clip.end,
        "film": clip.film,
        "product": clip.product,
        "rank": min(judged.ranks[place], default=0),
        "best": best,
        "gallery": gallery,
        "named": bool(judged.named[place]),
        "confidence": float(judged.decisions.confidence[place]) if judged.calibration else None,
        "place": clip.place,
    }


def _ranks(scores: np.ndarray, truth: np.ndarray) -> tuple[int, ...]:
    """Places of the truths, from 1, ascending; other products with the score of one come before it."""
    own = -np.sort(-scores[truth])
    before = (scores[~truth, None] >= own).sum(axis=0)
    return tuple((before + np.arange(1, len(own) + 1)).tolist())


def _score(measured: Measured, ranks: Sequence[tuple[int, ...]]) -> metrics.Score:
    """Rank-k of the clips that show a product; intervals are drawn over films."""
    own = np.flatnonzero(measured.shows).tolist()
    clips = [measured.clips[place] for place in own]
    ranking = Ranking(
        query_ids=tuple(clip.place for clip in clips),
        gallery_ids=tuple(clip.film for clip in clips),
        truth_ranks=tuple(ranks[place] for place in own),
        gallery_size=np.full(len(own), len(measured.products)),
        truths=tuple((clip.product,) * len(ranks[place]) for place, clip in zip(own, clips, strict=True)),
        top=((),) * len(own),
        images=((),) * len(own),
    )
    score = metrics.evaluate(ranking).score
    return dataclasses.replace(score, interval_over="films" if score.interval_over == "livestreams" else "clips")

"""What an evaluation of clips finds is what recognition answers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rice_jax.clips.evaluation import MIN_CLIPS, calibrate, document, judge, measure
from rice_jax.clips.labels import Clip
from rice_jax.index.store import write_index
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.naming import Naming
from rice_jax.types import DataError
from tests.shop import SCALE

PRODUCTS = ["mug", "p1", "sofa", "mug", "sofa", "sofa", "lamp", "lamp"]  # of the index's pictures


@pytest.fixture(scope="module", params=["mean", "frames"])
def engine(request, live_shop, tmp_path_factory):
    """An engine of an index of products with several pictures each, which ranks by one of the scores."""
    directory, index = tmp_path_factory.mktemp("several"), live_shop.index
    calibration = dataclasses.replace(index.about.calibration, scale_by_frames=SCALE / 9, slope=900.0)
    about = dataclasses.replace(index.about, calibration=calibration)
    write_index(directory, dataclasses.replace(index, product_ids=PRODUCTS, about=about))
    return Engine(directory, naming=Naming(score=request.param, none_prior=0.3))


@pytest.fixture(scope="module")
def encoded(engine, live_shop):
    """Clips of two pictures each: of a product, or of none."""
    clips = []
    for number in range(24):
        product = PRODUCTS[number % 8] if number % 6 else ""
        rows = [number % 8 if product else 10, (5 * number) % 12]
        frames = engine.encode(np.stack([engine.prepare(live_shop.pictures[row]) for row in rows]))
        clips.append((Clip(Path("x.mp4"), product, 0.0, None, f"film {number % 3}", f"clips.csv:{number}"), frames))
    return clips


@pytest.mark.parametrize("least", [None, 0.0, 0.3])
def test_it_is_what_recognition_answers(engine, encoded, least, monkeypatch):
    monkeypatch.setattr(engine, "naming", dataclasses.replace(engine.naming, min_confidence=least))
    measured = measure(engine, encoded)
    judged = judge(measured, engine.calibration, engine.naming)
    found = document(measured, {"present": judged}, {}, 0.1)
    for (clip, frames), told, named in zip(encoded, found["clips"], judged.named, strict=True):
        ranked = engine.rank(frames, top=8)
        first = ranked.products[0]
        assert (told["best"], told["gallery"], bool(named)) == (first.id, first.gallery, ranked.product is not None)
        assert told["confidence"] == pytest.approx(first.confidence, abs=2e-3)
        ids = [match.id for match in ranked.products]
        assert told["rank"] == (ids.index(clip.product) + 1 if clip.product else 0)
    ranks = np.array([told["rank"] for told in found["clips"] if told["rank"]])
    [result] = found["results"]
    assert result["score"]["rank"]["rank-1"] == pytest.approx((ranks == 1).mean())
    assert result["ranked_by"] == ("frames" if engine.by_frames else "mean")
    counts = result["naming"]
    right = sum(
        told["best"] == told["product"] for told, named in zip(found["clips"], judged.named, strict=True) if named
    )
    assert (counts["right"], counts["right"] + counts["wrong"]) == (right, judged.named.sum())
    assert found["about"]["num_none"] == 4 and found["about"]["num_films"] == 3 and found["about"]["num_products"] == 4


def test_a_calibration_needs_clips_and_is_likelier_on_them(engine, encoded, monkeypatch):
    measured = measure(engine, encoded)
    assert measured.shows.sum() == MIN_CLIPS
    own = calibrate(measured, engine, "clips.csv")
    assert (own.num_clips, own.source, own.fingerprint) == (20, "clips.csv", engine.index.about.fingerprint)

    def loss(calibration):
        """Of which product is shown, as the fit minimizes it."""
        shown = [(s.mean, truth) for s, truth in zip(measured.scores, measured.truths, strict=True) if truth.any()]
        shares = [calibration.probabilities(scores, none_prior=0.0)[:-1][truth].sum() for scores, truth in shown]
        return -np.log(shares).mean()

    others = [dataclasses.replace(own, scale=own.scale * factor) for factor in (0.8, 1.25)]
    assert loss(own) < min(map(loss, others))
    few = dataclasses.replace(
        measured, clips=measured.clips[:9], scores=measured.scores[:9], truths=measured.truths[:9]
    )
    assert calibrate(few, engine, "") is None
    before = dataclasses.replace(own, match_weight=0.3, match_fingerprint="of the decoder")
    monkeypatch.setattr(engine, "calibration", before)
    assert calibrate(measured, engine, "clips.csv") == before, "clips are not matched"


def test_an_index_without_a_calibration_names_all_and_suggests_nothing(engine, encoded):
    measured = measure(engine, encoded)
    judged = judge(measured, None, Naming())
    found = document(measured, {"present": judged}, {}, 0.1)
    assert judged.named.all() and not judged.by_frames
    assert found["suggested"] is None and found["curve"] == [] and found["clips"][0]["confidence"] is None


def test_clips_without_products_rank_nothing(engine, encoded):
    none = [(clip, frames) for clip, frames in encoded if not clip.product]
    with pytest.raises(DataError, match="found no clip with a product among 4, expected some"):
        measure(engine, none)

"""When a product is named, in clips and over time."""

import argparse
import dataclasses
import math
from itertools import groupby

import numpy as np
import pytest

from rice_jax.commands.naming_flags import add_naming_flags, naming_of
from rice_jax.eval.calibration import Calibration
from rice_jax.index.store import read_index, write_index
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.naming import Naming
from rice_jax.recognition.recognizer import Recognizer, encode_video, products_over_time
from rice_jax.recognition.video import Frame
from rice_jax.types import DataError

CALIBRATION = Calibration(30.0, 20.0, 0.6, 9, 10, "f")


def logistic(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("prior", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_prior_of_none_is_that_of_bayes(prior):
    cosines = np.array([0.55, 0.62])
    found = CALIBRATION.probabilities(cosines, none_prior=prior)
    none = logistic(-20 * (0.62 - 0.6))  # if both cases are as frequent
    expected = prior * none / (prior * none + (1 - prior) * (1 - none))
    assert found[-1] == pytest.approx(expected) and found.sum() == pytest.approx(1)
    even = CALIBRATION.probabilities(cosines)
    if prior < 1:
        np.testing.assert_allclose(found[:2] / found[:2].sum(), even[:2] / even[:2].sum())
    blind = dataclasses.replace(CALIBRATION, slope=0.0)
    assert blind.probabilities(cosines, none_prior=prior)[-1] == pytest.approx(prior)


@pytest.mark.parametrize("prior", [0.2, 0.5, 0.9])
def test_the_best_cosine_is_that_of_the_probability(prior):
    naming = Naming(none_prior=prior)
    for best in (0.3, 0.62, 0.9):
        none = CALIBRATION.probabilities(np.array([0.1, best]), none_prior=prior)[-1]
        assert naming.best_cosine(CALIBRATION, none) == pytest.approx(best)
    assert naming.best_cosine(CALIBRATION, 0.5) == pytest.approx(naming.none_cosine(CALIBRATION)), "named from there on"
    blind = dataclasses.replace(CALIBRATION, slope=0.0)
    assert (
        naming.best_cosine(blind, 0.5) is naming.best_cosine(None, None) is naming.best_cosine(CALIBRATION, 1.0) is None
    )


@pytest.mark.parametrize("confidence, prior", [(0.5, 0.5), (0.8, 0.5), (0.3, 0.9), (0.01, 0.01)])
def test_a_cosine_has_the_confidence_that_it_was_asked_for(confidence, prior):
    cosine = CALIBRATION.cosine_at(confidence, prior)
    assert 1 - CALIBRATION.probabilities(np.array([cosine]), none_prior=prior)[-1] == pytest.approx(confidence)
    assert CALIBRATION.cosine_at() == CALIBRATION.threshold


def test_a_cosine_is_finite_where_none_has_the_confidence():
    blind = dataclasses.replace(CALIBRATION, slope=0.0)
    assert (blind.cosine_at(0.5), blind.cosine_at(0.6), blind.cosine_at(0.4)) == (0.6, 1000.6, -999.4)
    assert (CALIBRATION.cosine_at(1.0), CALIBRATION.cosine_at(0.7, 0.0)) == (1000.6, -999.4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"min_confidence": 1.1}, "min_confidence: found 1.1, expected 0 to 1"),
        ({"none_prior": math.nan}, "none_prior: found nan, expected 0 to 1"),
        ({"score": "best"}, "score: found 'best', expected one of 'mean', 'frames'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Naming(**settings)


def test_an_index_without_a_calibration_names_always(live_shop, tmp_path):
    about = dataclasses.replace(live_shop.index.about, calibration=None)
    write_index(tmp_path, dataclasses.replace(live_shop.index, about=about))
    for settings in ({"min_confidence": 0.3}, {"none_prior": 0.2}):
        with pytest.raises(DataError, match=r"has no calibration, .*; label some clips and run rice eval CLIPS\.csv"):
            Engine(tmp_path, naming=Naming(**settings))
    engine = Engine(tmp_path, naming=Naming(min_confidence=0.0, score="frames"))
    assert engine.by_frames
    found = engine.rank(engine.encode(engine.prepare(live_shop.pictures[2])[None]))
    assert found.product == found.products[0] and found.product.confidence is None and found.product.id == "p2"


def test_a_calibration_without_a_scale_cannot_rank_by_frames(live_shop):
    with pytest.raises(DataError, match="its calibration has no scale for score='frames'"):
        Engine(live_shop.directory, naming=Naming(score="frames"))


def test_the_score_is_a_choice(live_shop, tmp_path):
    index = read_index(live_shop.directory)
    calibration = dataclasses.replace(index.about.calibration, scale_by_frames=9.0)
    write_index(tmp_path, dataclasses.replace(index, about=dataclasses.replace(index.about, calibration=calibration)))
    engines = [Engine(path, naming=Naming(score=score)) for path, score in (
        (tmp_path, None), (tmp_path, "mean"), (live_shop.directory, None)
    )]  # fmt: skip
    assert [engine.by_frames for engine in engines] == [True, False, False]
    clip = engines[0].encode(np.stack([engines[0].prepare(live_shop.pictures[row]) for row in (1, 9)]))
    by_frames, by_mean, before = [engine.rank(clip, top=8) for engine in engines]
    assert by_mean == before and by_frames.products != by_mean.products


@pytest.fixture(scope="module")
def engine(live_shop):
    return Engine(live_shop.directory)


def test_a_clip_is_named_by_its_confidence(engine, live_shop, monkeypatch):
    clip = engine.encode(np.stack([engine.prepare(live_shop.pictures[row]) for row in (1, 9)]))
    engine.naming = Naming()
    least = engine.rank(clip).products[0].score - 0.01
    softer = dataclasses.replace(engine.calibration, scale=200.0, slope=50.0, threshold=least)
    monkeypatch.setattr(engine, "calibration", softer)
    before = engine.rank(clip, top=3)
    first = before.products[0]
    assert 0.1 < first.confidence < 0.9 and before.none < 0.5 and before.product == first

    def named(**settings):
        engine.naming = Naming(**settings)
        found = engine.rank(clip, top=3)
        assert [match.id for match in found.products] == [match.id for match in before.products]
        return found.product and found.product.id

    for least, expected in [
        (0.0, first.id), (first.confidence - 1e-6, first.id), (first.confidence + 1e-6, None), (1.0, None)
    ]:  # fmt: skip
        assert named(min_confidence=least) == expected
    assert named(none_prior=0.9999) is None
    assert named(none_prior=0.0) == first.id


def test_over_time_too(engine, live_shop):
    frames = [Frame(float(time), live_shop.pictures[(1, 10, 5)[time // 9]]) for time in range(27)]
    engine.naming = Naming()
    times, encoded = encode_video(engine, frames)

    def names(naming):
        engine.naming = naming
        parts = products_over_time(engine, times, encoded)
        assert all(a.product != b.product for a, b in zip(parts, parts[1:], strict=False)), "neighbors are merged"
        assert (parts[0].start, parts[-1].end) == (0, 27)
        return [part.product and part.product.id for part in parts]

    assert names(Naming()) == ["p1", None, "p5"]
    always = names(Naming(min_confidence=0.0))
    assert (always[0], always[-1]) == ("p1", "p5") and None not in always and len(always) > 2
    assert names(Naming(none_prior=0.0)) == always
    assert names(Naming(min_confidence=1.0)) == [None] == names(Naming(none_prior=1.0))
    # A part whose product is too uncertain joins the gap beside it.
    engine.naming = Naming()
    first, _, last = products_over_time(engine, times, encoded)
    # JAX's versions differ in whether both are equally certain; then both join it.
    least = float(np.nextafter(min(first.confidence, last.confidence), 1))
    first_id, last_id = (part.product.id if part.confidence >= least else None for part in (first, last))
    assert None in (first_id, last_id)
    assert names(Naming(min_confidence=least)) == [name for name, _ in groupby([first_id, None, last_id])]


def test_a_stream_tells_what_it_names(live_shop):
    recognizer = Recognizer(live_shop.directory, naming=Naming(min_confidence=0.0))
    assert recognizer.push(live_shop.pictures[10], 0.0).product is not None
    recognizer.engine.naming = Naming(min_confidence=1.0)
    assert recognizer.push(live_shop.pictures[10], 1.0).product is None


def test_flags(capsys):
    parser = argparse.ArgumentParser()
    add_naming_flags(parser)
    parse = lambda *arguments: naming_of(parser.parse_args(arguments))  # noqa: E731
    assert parse() == Naming()
    assert parse("--min_confidence=0.7", "--none_prior=0.1", "--score=mean") == Naming(0.7, 0.1, "mean")
    assert parse("--name_always") == Naming(0.0) and parse("--name_always").always
    for wrong in (
        ["--min_confidence=2"],
        ["--none_prior=x"],
        ["--score=best"],
        ["--name_always", "--min_confidence=1"],
    ):
        with pytest.raises(SystemExit):
            parse(*wrong)
    assert "found '2', expected a number, 0 to 1" in capsys.readouterr().err

"""Calibration, compared with scipy's general minimizer on a plain likelihood and with the share of correct answers."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp, softmax

from rice_jax.eval.calibration import (
    MAX_SCALE,
    Calibration,
    fit_calibration,
    fit_scores,
    read_calibration,
    write_calibration,
)
from rice_jax.eval.ranking import GalleryImages, Queries
from rice_jax.types import DataError


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_shop(num_clips=300, noise=0.5, seed=0):
    """Two galleries of 12 and 5 images, and clips that look like one of theirs; of some two images are right."""
    rng = np.random.default_rng(seed)
    images = unit(rng.normal(size=(17, 8)))
    gallery_ids, image_ids = ["a"] * 12 + ["b"] * 5, [f"p{i % 12}" for i in range(17)]
    rows = rng.integers(0, 17, num_clips)
    videos = unit(images[rows] + noise * rng.normal(size=(num_clips, 8)))
    truths = [[image_ids[row], "p3"] if row % 5 == 0 else [image_ids[row]] for row in rows]
    return videos, [gallery_ids[row] for row in rows], truths, images, gallery_ids, image_ids


def negative_log_likelihoods(values, videos, query_gallery_ids, truths, images, gallery_ids, image_ids):
    """Of which image it is, and of whether it is one of them."""
    scale, slope, threshold = values
    which = whether = 0.0
    for video, gallery_id, own in zip(videos, query_gallery_ids, truths, strict=True):
        here = [row for row in range(len(images)) if gallery_ids[row] == gallery_id]
        cosines = images[here].astype(np.float64) @ video.astype(np.float64)
        right = np.array([image_ids[row] in own for row in here])
        which += logsumexp(scale * cosines) - logsumexp(scale * cosines[right])
        whether -= log_expit(slope * (cosines.max() - threshold))
        whether -= log_expit(-slope * (cosines[~right].max() - threshold))
    return np.array([which, whether]) / len(videos)


def fit(*shop, **changes):
    videos, query_gallery_ids, truths, *images = shop
    queries = Queries(videos, [f"q{i}" for i in range(len(videos))], query_gallery_ids, truths)
    return fit_calibration(queries, GalleryImages(*images), **{"num_frames": 10, "fingerprint": "f"} | changes)


@pytest.mark.slow
def test_is_the_likeliest():
    shop = make_shop(num_clips=40)
    found = fit(*shop)
    loss = lambda values: negative_log_likelihoods(values, *shop).sum()  # noqa: E731
    best = minimize(loss, [1.0, 1.0, 0.5], method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-9})
    values = [found.scale, found.slope, found.threshold]
    assert values == pytest.approx(best.x, rel=5e-3)
    assert loss(values) < best.fun + 1e-6
    assert (found.num_clips, found.num_frames, found.fingerprint) == (40, 10, "f")


def test_probabilities_are_what_they_say():
    found = fit(*make_shop(num_clips=2000))
    videos, galleries, truths, images, gallery_ids, image_ids = make_shop(num_clips=2000, seed=0)
    # Other clips of the same shop, half of them of a product that is taken out of it.
    rng, sure, right = np.random.default_rng(5), [], []
    for video, gallery_id, own in zip(videos, galleries, truths, strict=True):
        there = rng.random() < 0.5
        here = [
            row for row, name in enumerate(image_ids) if gallery_ids[row] == gallery_id and (there or name not in own)
        ]
        shares = found.probabilities(images[here] @ video)
        best = int(shares.argmax())
        sure.append(shares[best])
        right.append(image_ids[here[best]] in own if best < len(here) else not there)
    sure, right = np.array(sure), np.array(right)
    for low, high in [(0.3, 0.5), (0.5, 0.7), (0.7, 1.0)]:
        chosen = (sure > low) & (sure <= high)
        assert chosen.sum() > 100
        assert right[chosen].mean() == pytest.approx(sure[chosen].mean(), abs=0.06)


def test_weights_of_the_decoder_stay_if_another_calibration_has_none(tmp_path):
    calibration = Calibration(30.0, 20.0, 0.5, 100, 10, "f", match_weight=0.25, match_fingerprint="d")
    own = Calibration(20.0, 10.0, 0.4, 25, 10, "f", source="clips.csv")
    assert own.with_match(calibration) == dataclasses.replace(own, match_weight=0.25, match_fingerprint="d")
    for other in (None, own):
        assert calibration.with_match(other) == calibration
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration
    values = json.loads((tmp_path / "calibration.json").read_text())
    old = {name: value for name, value in values.items() if not name.startswith("match_")}
    (tmp_path / "calibration.json").write_text(json.dumps(old))
    assert read_calibration(tmp_path) == Calibration(30.0, 20.0, 0.5, 100, 10, "f"), "as before there were such weights"


def test_probabilities_by_hand():
    calibration = Calibration(scale=30.0, slope=9.0, threshold=0.6, num_clips=1, num_frames=1, fingerprint="")
    cosines = np.random.default_rng(0).uniform(-1, 1, (3, 4, 6))
    none = expit(9 * (0.6 - cosines.max(-1, keepdims=True)))
    expected = np.concatenate([(1 - none) * softmax(30 * cosines, axis=-1), none], -1)
    np.testing.assert_allclose(calibration.probabilities(cosines), expected, rtol=1e-12)
    assert calibration.probabilities(np.empty(0)) == [1.0], "nothing is in an empty gallery"
    sharp = dataclasses.replace(calibration, scale=MAX_SCALE, slope=MAX_SCALE)
    np.testing.assert_allclose(sharp.probabilities(np.array([1.0, -1.0])), [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(sharp.probabilities(np.array([-1.0, -0.9])), [0, 0, 1], atol=1e-12)


def test_what_is_like_every_image_a_little_is_none():
    """A set without a product, beside a clip of one: by a common softmax the first would be the likelier product."""
    found = fit(*make_shop(noise=1.0))
    nothing, product = np.full(200, 0.4), np.array([0.9, *np.full(199, -0.5)])
    assert found.probabilities(nothing)[-1] > 0.5 > found.probabilities(product)[-1]
    assert np.exp(found.scale * nothing).sum() > np.exp(found.scale * product).sum()


def test_clips_that_are_all_right_or_all_wrong():
    images = np.eye(4, dtype=np.float32)
    shop = (images, ["a"] * 4, [[name] for name in "0123"], images, ["a"] * 4, list("0123"))
    sure = fit(*shop)
    assert sure.scale <= MAX_SCALE and sure.slope <= MAX_SCALE and 0 < sure.threshold < 1
    assert sure.probabilities(images[0])[0] > 0.99 and sure.probabilities(np.zeros(3))[3] > 0.99
    wrong = fit(-images, *shop[1:])
    assert wrong.scale == 0, "similarity that tells the opposite tells nothing"
    np.testing.assert_allclose(wrong.probabilities(np.array([0.0, -1, 0, 0])), [0.125] * 4 + [0.5])


def test_a_gallery_of_nothing_but_truths_and_clips_without():
    videos, galleries, truths, images, gallery_ids, image_ids = make_shop(num_clips=50)
    known = fit(videos, galleries, truths, images, gallery_ids, image_ids)
    # A clip whose truth was skipped, and one of an unknown gallery, are left out.
    more = (np.concatenate([videos, videos[:2]]), [*galleries, "a", "c"], [*truths, ["skipped"], ["p1"]])
    assert fit(*more, images, gallery_ids, image_ids) == known
    assert fit(videos[:1], ["a"], [["skipped"]], images, gallery_ids, image_ids) is None
    alone = fit(videos, ["only"] * 50, [["p"]] * 50, images[:1], ["only"], ["p"])
    assert np.isfinite(dataclasses.astuple(alone)[:3]).all() and alone.slope == 0


@pytest.mark.parametrize("offset", [0.6, 40.0])
def test_a_fit_moves_with_the_scores_as_texts_of_some_weight_move_them(offset):
    rng = np.random.default_rng(0)
    others, own = rng.normal(0.4, 0.03, (300, 20)), rng.normal(0.6, 0.03, (300, 1))
    cosines, is_truth = np.concatenate([own, others], axis=1), [np.arange(21) == 0] * 300
    plain, moved = (
        fit_scores(list(scores), is_truth, num_frames=10, fingerprint="f") for scores in (cosines, cosines + offset)
    )
    assert moved.threshold == pytest.approx(plain.threshold + offset, abs=1e-3)
    assert moved.slope == pytest.approx(plain.slope, rel=1e-2) and plain.slope > 50
    assert moved.cosine_at(0.9) - offset == pytest.approx(plain.cosine_at(0.9), abs=1e-3)


def test_of_very_many_scores_some_are_enough():
    shop = make_shop(num_clips=2000)
    all_clips, some = fit(*shop), fit(*shop, max_scores=6000)
    assert 400 < some.num_clips < 800 and all_clips.num_clips == 2000
    for name in ("scale", "slope", "threshold"):
        assert getattr(some, name) == pytest.approx(getattr(all_clips, name), rel=0.15)


def test_its_file(tmp_path):
    assert read_calibration(tmp_path) is None
    calibration = Calibration(30.5, 20.25, 0.5, 100, 10, "f" * 64)
    write_calibration(tmp_path / "run", calibration)
    assert read_calibration(tmp_path / "run") == calibration
    assert json.loads((tmp_path / "run" / "calibration.json").read_text())["scale"] == 30.5
    for text in ("{", '{"scale": 1}', "[]"):
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(DataError, match="calibration.json: cannot be read .* evaluate the run again"):
            read_calibration(tmp_path)

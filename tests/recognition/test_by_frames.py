"""Recognition ranks by frames if the index has a calibration for it."""

import dataclasses

import numpy as np
import pytest

from rice_jax.eval.pooling import SHARPNESS
from rice_jax.eval.ranking import GalleryImages, Queries, rank
from rice_jax.index.store import write_index
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.recognizer import Recognizer, products_over_time
from tests.recognition.test_engine import added_by_images, pooled
from tests.shop import SCALE, write_products

CLIPS = [[2, 9, 2], [3], [10, 0], [4, 11, 5, 0]]
PRODUCTS = {("a", "mug"): [0, 3], ("a", "p1"): [1], ("a", "sofa"): [2, 4, 5], ("b", "mug"): [6, 7]}


@pytest.fixture(scope="module")
def directory(live_shop, tmp_path_factory):
    """An index of products with several images, calibrated by frames."""
    directory, index = tmp_path_factory.mktemp("by_frames"), live_shop.index
    calibration = dataclasses.replace(index.about.calibration, scale_by_frames=2 * SCALE)
    names = {row: name for (_, name), rows in PRODUCTS.items() for row in rows}
    about = dataclasses.replace(index.about, calibration=calibration)
    write_index(directory, dataclasses.replace(index, about=about, product_ids=[names[row] for row in range(8)]))
    return directory


@pytest.fixture(scope="module")
def engines(directory):
    """Without, and with re-ranking of the first two."""
    return Engine(directory), Engine(directory, rerank=2)


@pytest.fixture(scope="module")
def by_mean(live_shop, tmp_path_factory):
    """The same products, calibrated by version 0.2."""
    names = {row: name for (_, name), rows in PRODUCTS.items() for row in rows}
    return Engine(write_products(live_shop, tmp_path_factory.mktemp("by_mean"), [names[row] for row in range(8)]))


def encode(engine, shop, rows):
    return engine.encode(np.stack([engine.prepare(shop.pictures[row]) for row in rows]))


def scores_of(engine, frames, gallery):
    """{product: (score by frames, row of its best image, cosine)}, from float64 and the definition."""
    own = {name: rows for name, rows in PRODUCTS.items() if gallery in (None, name[0])}
    vectors = engine.index.vectors.astype(np.float64)
    everything = [row for rows in own.values() for row in rows]
    unit = frames.features / np.linalg.norm(frames.features.astype(np.float64), axis=1, keepdims=True)
    scores = (unit @ vectors.T - (unit @ vectors[everything].T).mean(axis=1, keepdims=True)).max(axis=0)
    cosines, added = engine._cosines(frames).astype(np.float64), added_by_images(engine, PRODUCTS)
    return {
        name: (
            pooled(engine, scores[rows]),
            rows[int(scores[rows].argmax())],
            pooled(engine, cosines[rows]) - added[name],
        )
        for name, rows in own.items()
    }


def test_an_index_made_before_ranks_by_the_mean(by_mean, engines):
    assert not by_mean.by_frames and by_mean.calibration.scale_by_frames is None
    assert all(engine.by_frames for engine in engines)


@pytest.mark.parametrize("rows", CLIPS)
@pytest.mark.parametrize("gallery", [None, "a", "b"])
def test_products_rank_by_their_images_in_the_best_frame(engines, by_mean, live_shop, rows, gallery):
    engine, _ = engines
    frames = encode(engine, live_shop, rows)
    expected = scores_of(engine, frames, gallery)
    order = sorted(expected, key=lambda name: -expected[name][0])
    found = engine.rank(frames, gallery, top=8)
    assert [(match.gallery, match.id) for match in found.products] == order
    np.testing.assert_allclose([match.score for match in found.products], [expected[n][0] for n in order], atol=1e-6)
    assert [match.image_id for match in found.products] == [f"p{expected[name][1]}" for name in order]
    # Whether any is shown is told by the cosines, as without frames; a share by the score.
    cosines = np.array([expected[name][2] for name in order])
    scores = np.array([match.score for match in found.products], np.float32)
    shares = engine.calibration.probabilities(cosines, scores)
    np.testing.assert_allclose([*(match.confidence for match in found.products), found.none], shares, rtol=2e-3)
    assert found.none == pytest.approx(by_mean.rank(frames, gallery).none, rel=1e-6)


def test_padding_does_not_count(engines, by_mean, live_shop):
    """A clip of one frame has the order of its cosines, however many frames are filled up with zeros."""
    engine, _ = engines
    for row in range(12):
        frames = encode(engine, live_shop, [row])
        scores, cosines = engine._scores_by_frames(frames, None), engine._cosines(frames)
        assert np.argsort(-scores).tolist() == np.argsort(-cosines).tolist()


def test_the_decoder_gets_the_first_by_frames(engines, live_shop):
    plain, matching = engines
    for rows in CLIPS:
        frames = encode(matching, live_shop, rows)
        first, matched = plain.rank(frames, top=4).products, matching.rank(frames, top=4).products
        assert {match.image_id for match in matched[:2]} == {match.image_id for match in first[:2]}
        assert [match.image_id for match in matched[2:]] == [match.image_id for match in first[2:]]
        assert [match.confidence for match in sorted(matched, key=lambda match: match.image_id)] == pytest.approx(
            [match.confidence for match in sorted(first, key=lambda match: match.image_id)], rel=1e-4
        )


def test_streams_and_videos_follow(directory, engines, live_shop, programs):
    recognizer, rows = Recognizer(directory, top=3), [2, 2, 9, 6, 7, 6, 6, 6]
    programs.clear()
    engine = engines[0]
    frames = encode(engine, live_shop, rows)
    for time, row in enumerate(rows[:4]):
        found = recognizer.push(live_shop.pictures[row], float(time))
    expected = engine.rank(frames.take(slice(4)), top=3)
    assert [match.image_id for match in found.products] == [match.image_id for match in expected.products]
    segments = products_over_time(engine, [float(time) for time in range(len(rows))], frames)
    for segment in segments:
        clip = engine.rank(frames.take(segment.frames))
        assert segment.products == clip.products and segment.product in (None, clip.products[0])
    assert not programs, "nothing is compiled after the constructor"


def test_evaluation_ranks_products_as_recognition_does(engines, by_mean, live_shop):
    """The same clips, gallery images, and products give the same order, scores, and most similar images."""
    index = engines[0].index
    images = GalleryImages(
        index.vectors, index.gallery_ids, index.image_ids, (), index.product_ids, SHARPNESS * engines[0].logit_scale
    )
    encoded = [encode(engines[0], live_shop, rows) for rows in CLIPS for _ in "ab"]
    mask = np.arange(4) < np.array([len(frames.features) for frames in encoded])[:, None]
    units = np.zeros((len(encoded), 4, index.vectors.shape[1]), np.float32)
    for place, frames in enumerate(encoded):
        units[place, : mask[place].sum()] = frames.features
    means = np.stack([own[kept].mean(axis=0) for own, kept in zip(units, mask, strict=True)])
    units /= np.maximum(np.linalg.norm(units, axis=-1, keepdims=True), 1e-9)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    galleries = [*"ab"] * len(CLIPS)
    truths = [["p0"] if gallery == "a" else ["p6"] for gallery in galleries]
    names = [f"q{place}" for place in range(len(encoded))]
    for engine, queries in (
        (engines[0], Queries(units, names, galleries, truths, mask)),
        (by_mean, Queries(means, names, galleries, truths)),
    ):
        found = rank(queries, images)
        for place, (frames, gallery) in enumerate(zip(encoded, galleries, strict=True)):
            expected = engine.rank(frames, gallery, top=8).products
            assert [name for name, _ in found.top[place]] == [match.id for match in expected]
            assert found.images[place] == tuple(match.image_id for match in expected)
            scores = [match.score for match in expected]
            np.testing.assert_allclose([score for _, score in found.top[place]], scores, atol=1e-6)

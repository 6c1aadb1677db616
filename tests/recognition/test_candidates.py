"""Recognition with an index in Milvus; skipped without pymilvus and milvus-lite."""

import dataclasses
import json

import numpy as np
import pytest

from rice_jax import recognize
from rice_jax.index.milvus_copy import write_milvus
from rice_jax.index.store import write_index
from rice_jax.recognition.candidates import find_candidates
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.recognizer import Recognizer
from rice_jax.types import DataError
from tests.index.test_milvus import needs_milvus
from tests.shop import SCALE, png

pytestmark = needs_milvus
PRODUCTS = ["mug", "p1", "sofa", "mug", "sofa", "sofa", "mug", "mug"]  # in galleries "a" (six) and "b"
CLIPS = [[2, 9, 2], [3], [10, 0], [4, 11, 5, 0], [1, 1, 6, 7, 2, 2, 0]]


@pytest.fixture(scope="module", params=["mean", "frames"])
def made(request, live_shop, tmp_path_factory):
    """The directory of an index, calibrated for either score, the same in Milvus, and an engine.

    Products have several pictures only by frames: the mean's estimate of what several add depends on the candidates.
    """
    directory = tmp_path_factory.mktemp(f"candidates_{request.param}")
    scale = 2 * SCALE if request.param == "frames" else None
    calibration = dataclasses.replace(live_shop.index.about.calibration, scale_by_frames=scale)
    index = dataclasses.replace(
        live_shop.index,
        about=dataclasses.replace(live_shop.index.about, calibration=calibration),
        product_ids=PRODUCTS if request.param == "frames" else live_shop.index.image_ids,
        fields=[{"Category": name} for name in PRODUCTS],
    )
    write_index(directory, index)
    return directory, write_milvus(index, str(directory / "shop.db")), Engine(directory)


def encode(engine, shop, rows):
    return engine.encode(np.stack([engine.prepare(shop.pictures[row]) for row in rows]))


@pytest.mark.parametrize("rows", CLIPS)
@pytest.mark.parametrize("gallery", [None, "a", "b"])
def test_all_pictures_as_candidates_give_what_the_index_gives(made, live_shop, rows, gallery):
    _, stored, engine = made
    frames = encode(engine, live_shop, rows)
    found = Engine(find_candidates(engine, frames, stored, gallery=gallery), others=[engine])
    expected, got = engine.rank(frames, gallery), found.rank(frames, gallery)
    assert [match._replace(score=0, confidence=0) for match in got.products] == [
        match._replace(score=0, confidence=0) for match in expected.products
    ]
    np.testing.assert_allclose(
        [match.score for match in got.products], [match.score for match in expected.products], atol=1e-6
    )
    if gallery is None:  # of one gallery, the pictures of others have no part in the confidences
        assert got.none == pytest.approx(expected.none, rel=1e-3)
        np.testing.assert_allclose(
            [match.confidence for match in got.products], [match.confidence for match in expected.products], rtol=2e-2
        )


@pytest.mark.parametrize("rows", CLIPS)
def test_few_candidates_have_the_scores_that_they_have_among_all(made, live_shop, rows):
    _, stored, engine = made
    frames = encode(engine, live_shop, rows)
    index = find_candidates(engine, frames, stored, limit=1)
    scores = {(match.gallery, match.id): match.score for match in engine.rank(frames, top=8).products}
    found = Engine(index, others=[engine]).rank(frames, top=8).products
    assert 1 <= len(found) <= len(scores)
    for match in found:
        assert match.score == pytest.approx(scores[match.gallery, match.id], abs=1e-6)


def test_conditions_are_those_of_the_index(made, live_shop):
    _, stored, engine = made
    frames = encode(engine, live_shop, [1])
    index = find_candidates(engine, frames, stored, where={"category": ["sofa", "p1"]})
    assert sorted(fields["Category"] for fields in index.fields) == ["p1", "sofa", "sofa", "sofa"]
    with pytest.raises(DataError, match="found no product in gallery 'b' that meets the conditions"):
        find_candidates(engine, frames, stored, gallery="b", where={"category": "sofa"})


def test_a_stream_searches_one_gallery_of_milvus(made, live_shop):
    directory, stored, _ = made
    rankings = []
    for index in (directory, stored.read("a")):
        recognizer = Recognizer(index, gallery="a")
        rankings.append([recognizer.push(live_shop.pictures[row], float(row)).products for row in (2, 4)])
    for expected, got in zip(*rankings, strict=True):
        assert [match.image_id for match in got] == [match.image_id for match in expected]
        np.testing.assert_allclose([match.score for match in got], [match.score for match in expected], atol=1e-6)


def test_the_command_prints_what_it_prints_of_an_index(made, live_shop, tmp_path, capsys, monkeypatch):
    directory, stored, _ = made
    monkeypatch.setattr(recognize, "keep_compiled", lambda: None)
    for number, row in enumerate([2, 2, 2, 2, 10, 10, 10, 1, 1, 1, 1]):
        (tmp_path / f"{number}.png").write_bytes(png(live_shop.pictures[row]))
    lines = []
    for place in ([f"--index={directory}"], ["--store=milvus", f"--uri={directory / 'shop.db'}"]):
        recognize.main([str(tmp_path), *place])
        lines.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    expected, got = lines
    assert len(got) == len(expected) > 1
    for one, other in zip(got, expected, strict=True):
        assert (one["start"], one["end"], one["product"] and one["product"]["id"]) == (
            other["start"],
            other["end"],
            other["product"] and other["product"]["id"],
        )
        assert [match["image_id"] for match in one["products"]] == [match["image_id"] for match in other["products"]]


@pytest.mark.parametrize("gallery", [None, "a"])
def test_the_command_follows_a_stream_as_with_an_index(made, live_shop, tmp_path, capsys, monkeypatch, gallery):
    directory = made[0]
    monkeypatch.setattr(recognize, "keep_compiled", lambda: None)
    events = []

    def follow_live(options, load):
        engine = load()
        frames = engine.encode(np.stack([engine.prepare(live_shop.pictures[row]) for row in (2, 4)]))
        events.append(engine.rank(frames, options.gallery))

    monkeypatch.setattr("rice_jax.commands.follow.follow_live", follow_live)
    for place in ([f"--index={directory}"], ["--store=milvus", f"--uri={directory / 'shop.db'}"]):
        recognize.main(["--follow=rtmp://localhost/live", *place, *[f"--gallery={gallery}"] * bool(gallery)])
    expected, got = events
    assert [match.image_id for match in got.products] == [match.image_id for match in expected.products]
    np.testing.assert_allclose(
        [match.score for match in got.products], [match.score for match in expected.products], atol=1e-6
    )

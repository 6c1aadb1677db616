"""Runs, converted models, and indexes of version 0.1; README.md says how they were made."""

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import rice_jax
from rice_jax.eval.results import PIXELS, Row, ranked_row, read_results
from tests.fixtures import command, losses, run

OLD = Path(__file__).with_name("version-0.1.tar.gz")
CLIP = ("mug.png", "sofa.png")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    directory = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD) as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.mark.parametrize(
    ("index", "model", "rerank"),
    [("with_decoder", "step_4", 0), ("with_decoder", "step_4", 2), ("without_decoder", "converted", 0)],
)
def test_an_index_is_searched_with_the_same_result(old, index, model, rerank):
    expected = json.loads((old / "found.json").read_text())[f"{index} {rerank}"]
    recognizer = rice_jax.Recognizer(old / index, model=old / model, rerank=rerank)
    for second, name in enumerate(CLIP):
        found = recognizer.push(old / "pictures" / name, float(second))
    for match, (name, score, confidence) in zip(found.products, expected["products"], strict=True):
        assert match.id == name and match.score == pytest.approx(score, abs=1e-5)
        assert match.confidence == (confidence and pytest.approx(confidence, rel=0.02))  # the scale is 1000
    assert found.none == (expected["none"] and pytest.approx(expected["none"], rel=0.02))


def test_an_index_is_updated_without_embedding_anything_again(old, tmp_path, monkeypatch):
    before = rice_jax.read_index(shutil.copytree(old / "with_decoder", tmp_path / "index"))
    monkeypatch.setattr("rice_jax.index.update.embed_pictures", None)
    after = rice_jax.build_index(old / "pictures", model=old / "step_4", out=tmp_path / "index")
    assert after.image_ids == before.image_ids == ["mug", "sofa"]
    np.testing.assert_array_equal(after.vectors, before.vectors)
    assert after.about.calibration == before.about.calibration is not None


def test_weights_are_loaded(old):
    model = rice_jax.load(old / "step_4")
    index = rice_jax.read_index(old / "with_decoder")
    pictures = [old / "pictures" / f"{name}.png" for name in index.image_ids]
    np.testing.assert_allclose(model.embed_images(pictures), index.vectors, atol=1e-5)
    assert model.num_frames == 10


def test_a_converted_model_is_loaded(old):
    model = rice_jax.load(old / "converted")
    index = rice_jax.read_index(old / "without_decoder")  # its pictures are resized to 18 pixels, 8/7 of 16
    pictures = [old / "pictures" / f"{name}.png" for name in index.image_ids]
    np.testing.assert_allclose(model.embed_images(pictures), index.vectors, atol=1e-5)


def test_a_run_is_resumed_with_the_same_losses(old, shop, tmp_path):
    workdir = shutil.copytree(old / "run", tmp_path / "run")
    before, scores = losses(workdir), read_results(workdir / "results.json")
    result = run(command(shop, workdir, config="tests/compat/config.py", tiny={}))
    assert result.returncode == 0, result.stderr
    assert f"resuming {workdir} from step 2" in result.stderr
    assert losses(workdir).keys() == before.keys() == {1, 2, 3, 4}
    np.testing.assert_allclose(list(losses(workdir).values()), list(before.values()), rtol=1e-5)
    after = read_results(workdir / "results.json")
    assert after.keys() == {*scores, Row(4, "weighted_match", 2)}, "version 0.1 re-ranked by the decoder alone"
    for row, score in scores.items():
        # Version 0.1 drew livestreams however few there were.
        now, then = (dataclasses.replace(result.score, interval=None, order={}) for result in (after[row], score))
        assert dataclasses.replace(now, interval_over=then.interval_over) == then, row


def test_results_are_read(old):
    results = read_results(old / "run" / "results.json")
    assert set(results) == {PIXELS, Row(0), Row(4), Row(4, "match", 2)}
    assert all(result.score.order == {} for result in results.values()), "which it did not measure"
    about = json.loads((old / "run" / "results.json").read_text())["about"]
    assert ranked_row(about) == Row(4, "match", 2)

"""An index for FAISS."""

import json
import os

import numpy as np
import pytest

from rice_jax import cli
from rice_jax.index.export import KINDS, export_faiss, nearest, recall
from rice_jax.index.store import write_index
from rice_jax.index.update import UnusablePictures
from rice_jax.types import DataError
from tests.index.test_store import make_index


def test_faiss_finds_the_nearest(tmp_path):
    faiss = pytest.importorskip("faiss")
    index = make_index(30)
    path = export_faiss(tmp_path, index)
    rows = json.loads((tmp_path / "index.faiss.json").read_text(encoding="utf-8"))
    clip = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
    scores, found = faiss.read_index(str(path)).search(clip, 30)
    np.testing.assert_array_equal(found, np.argsort(-clip @ index.vectors.T))
    np.testing.assert_allclose(scores, -np.sort(-clip @ index.vectors.T), atol=1e-6)
    assert rows["id"] == index.image_ids and rows["gallery"] == index.gallery_ids
    assert rows["product"] == index.product_ids
    assert rows["fingerprint"] == index.about.fingerprint
    assert sorted(os.listdir(tmp_path)) == ["index.faiss", "index.faiss.json"]


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"flat"}))
def test_an_approximate_index_tells_its_recall(tmp_path, caplog, kind):
    faiss = pytest.importorskip("faiss")
    index = make_index(2000, with_queries=False)
    with caplog.at_level("INFO"):
        path = export_faiss(tmp_path, index, kind)
    told = float(caplog.text.partition(f"index.faiss: {kind} finds ")[2].partition("%")[0])
    queries = index.vectors[::8]
    found = faiss.read_index(str(path)).search(queries, 10)[1]
    exact = np.argsort(-queries @ index.vectors.T, axis=1)[:, :10]
    shares = [len({*own} & {*other}) / 10 for own, other in zip(found.tolist(), exact.tolist(), strict=True)]
    assert told == pytest.approx(100 * np.mean(shares), abs=0.06) and told > 80
    assert "with 250 pictures as queries" in caplog.text


def test_a_missing_package_is_told_before_pictures_are_embedded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    monkeypatch.setattr("rice_jax.index.update.build_index", lambda *_, **__: pytest.fail("pictures are embedded"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["index", str(tmp_path), f"--model={tmp_path}", f"--out={tmp_path / 'out'}", "--export=faiss"])
    assert "faiss is not installed; pip install 'rice-jax[faiss]'" in str(ended.value) + capsys.readouterr().err


def test_a_copy_is_made_of_all_pictures_that_can_be_used(tmp_path, monkeypatch):
    def build(*_, **__):
        write_index(tmp_path, make_index(3))
        raise UnusablePictures("1 of 4 pictures cannot be used")

    exported = []
    monkeypatch.setattr("rice_jax.index.update.build_index", build)
    monkeypatch.setattr("rice_jax.index.export.require_faiss", lambda: None)
    monkeypatch.setattr("rice_jax.index.export.export_faiss", lambda _, index, kind: exported.extend(index.image_ids))
    with pytest.raises(SystemExit, match="UnusablePictures: 1 of 4 pictures cannot be used"):
        cli.main(["index", "pictures", f"--out={tmp_path}", "--export=faiss"])
    assert exported == make_index(3).image_ids


def test_an_approximate_index_needs_pictures(tmp_path):
    pytest.importorskip("faiss")
    with pytest.raises(DataError, match="found no pictures in the index, expected at least one for --kind=hnsw"):
        export_faiss(tmp_path, make_index(0), "hnsw")
    assert os.listdir(tmp_path) == []


def test_recall_counts_what_is_found():
    exact = nearest(np.eye(12, dtype=np.float32), np.arange(12, dtype=np.float32)[None])
    assert exact.tolist() == [list(range(11, 1, -1))]
    assert recall(exact[:, ::-1], exact) == 1
    assert recall(np.where(exact > 9, exact - 10, exact), exact) == 0.8

"""The titles of an index as vectors: built, kept, read again, and copied."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest

from rice_jax.config import ConfigError
from rice_jax.eval.calibration import Calibration, write_calibration
from rice_jax.eval.texts import TextEmbedder, load_text_model
from rice_jax.index import shards, text
from rice_jax.index.export import export_faiss
from rice_jax.index.milvus_copy import write_milvus
from rice_jax.index.shards import build_shards, merge_shards
from rice_jax.index.smaller import make_smaller
from rice_jax.index.store import read_index, write_index
from rice_jax.index.text import IndexText, TextSettings
from rice_jax.index.update import build_index, remove_pictures, update_index
from rice_jax.models.weights import CheckpointError
from rice_jax.types import DataError
from tests.index.test_store import assert_equal, make_index
from tests.index.updates import load
from tests.text_model import EMBED_DIM, write_text_model

TITLES = {"a": "红色西装", "b": "", "c": "🪑" * 10, "d": "简约外套" * 2500}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def other_tower(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("other"), shift=0.5)


@pytest.fixture
def titles(monkeypatch):
    """The texts that are embedded."""
    found, embed = [], text.Texts._embed

    def record(self, texts):
        found.extend(texts)
        return embed(self, texts)

    monkeypatch.setattr(text.Texts, "_embed", record)
    return found


def write_csv(made, **titles):
    made.write(d=4)
    path = made.pictures.parent / "shop.csv"
    lines = [f"{name},pictures/{name}.jpg,{title}" for name, title in titles.items()]
    path.write_text("\n".join(["id,path,title", *lines]), encoding="utf-8")
    return path


def update(made, images, model=None, weight=None, num_devices=1, **how):
    loaded = load(made.weights, num_devices, workdir=made.workdir)
    texts = TextSettings(model, weight)
    return update_index(made.directory, images, loaded, texts=texts, batch_size=8, num_threads=1, **how)


def assert_same(found, expected, atol=0.0):
    assert_equal(dataclasses.replace(found, text=None), dataclasses.replace(expected, text=None))
    assert found.text.about == expected.text.about
    np.testing.assert_allclose(found.text.vectors, expected.text.vectors, rtol=0, atol=atol)


def with_text(index, weight=0.3, seed=0):
    """Random titles, of which some are missing."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(index.image_ids), 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[::3] = 0
    return dataclasses.replace(index, text=IndexText("a tower", "f" * 64, weight, vectors))


def test_titles_are_embedded_as_by_the_tower(made, tower):
    index = update(made, write_csv(made, **TITLES), tower, 0.5)
    known = [title for title in TITLES.values() if title]
    expected, num_cut = TextEmbedder(load_text_model(tower), batch_size=8)(known)
    assert num_cut == 1
    np.testing.assert_allclose(index.text.vectors[[0, 2, 3]], expected, atol=1e-6)
    np.testing.assert_array_equal(index.text.vectors[1], 0)
    assert (index.text.model, index.text.weight) == (str(tower), 0.5)
    assert index.text.fingerprint == load_text_model(tower).fingerprint
    assert_same(read_index(made.directory), index)
    np.testing.assert_array_equal(index.rows[:, : index.vectors.shape[1]], index.vectors)
    np.testing.assert_allclose(index.rows[:, -EMBED_DIM:], np.sqrt(0.5) * index.text.vectors, rtol=1e-6)


def test_only_new_titles_are_embedded(made, tower, titles):
    path = write_csv(made, **TITLES)
    first = update(made, path, tower, 0.5)
    titles.clear()
    path = write_csv(made, **TITLES | {"b": "女鞋"})
    second = update(made, path)
    assert titles == ["a", "女鞋"], "the first text compiles"
    np.testing.assert_array_equal(second.text.vectors[[0, 2, 3]], first.text.vectors[[0, 2, 3]])
    assert second.text.about == first.text.about
    titles.clear()
    assert update(made, path, weight=0.25).text.weight == 0.25 and titles == ["a"]
    path.write_text("id\nb\n")
    left = remove_pictures(made.directory, path)
    assert left.image_ids == ["a", "c", "d"]
    np.testing.assert_array_equal(left.text.vectors, first.text.vectors[[0, 2, 3]])
    assert_same(read_index(made.directory), left)


def test_without_a_weight_the_index_is_that_of_the_pictures_to_the_bit(made, tower):
    path = write_csv(made, **TITLES)
    update(made, path)
    alone = (made.directory / "index.parquet").read_bytes()
    update(made, path, tower, 0.5)
    assert (made.directory / "index.parquet").read_bytes() != alone
    assert update(made, path, weight=0.0).text is None
    assert (made.directory / "index.parquet").read_bytes() == alone
    shutil.rmtree(made.directory)
    update(made, path, tower, 0.0)
    assert (made.directory / "index.parquet").read_bytes() == alone


def test_the_weight_of_the_calibration_counts(made, tower, other_tower, caplog):
    path, fingerprint = write_csv(made, **TITLES), load(made.weights).about.fingerprint
    of_tower = load_text_model(tower).fingerprint
    calibration = Calibration(20.0, 10.0, 0.5, 9, 4, fingerprint, None, "", 0.4, of_tower, str(tower))
    made.workdir.mkdir(exist_ok=True)
    write_calibration(made.workdir, calibration)
    index = update(made, path)
    assert (index.text.weight, index.text.fingerprint) == (0.4, of_tower)
    assert "weight" not in caplog.text
    shutil.rmtree(made.directory)
    with pytest.raises(CheckpointError, match="is not the text tower"):
        update(made, path, other_tower)
    assert update(made, path, weight=0.2).text.weight == 0.2
    assert "weight 0.2 in this index and 0.4 in the calibration" in caplog.text
    assert update(made, path, weight=0.0).text is None and update(made, path).text is None, "not for a new index alone"


def test_what_is_wrong_is_said_in_a_line(made, tower, other_tower, tmp_path):
    path = write_csv(made, **TITLES)
    with pytest.raises(ConfigError, match="found 0.5 without a text tower; set text_model"):
        update(made, path, weight=0.5)
    with pytest.raises(ConfigError, match="text_weight: found -1.0, expected 0 or more"):
        update(made, path, tower, -1.0)
    with pytest.raises(ConfigError, match="neither the index nor the model's calibration has a weight"):
        update(made, path, tower)
    with pytest.raises(CheckpointError, match="holds no text tower"):
        update(made, path, made.weights, 0.5)
    assert not made.directory.exists()
    update(made, path, tower, 0.5)
    with pytest.raises(CheckpointError, match="is not the text tower that embedded the titles") as caught:
        update(made, path, other_tower)
    assert "\n" not in str(caught.value)
    (tower.rename(tmp_path / "moved"))
    with pytest.raises(CheckpointError, match="found no checkpoint"):
        update(made, path)
    (tmp_path / "moved").rename(tower)
    assert build_index(path, out=made.directory, text_weight=0.1).text.weight == 0.1


def test_eight_devices_make_the_index_of_one(made, tower):
    path = write_csv(made, **TITLES)
    one = update(made, path, tower, 0.5)
    shutil.rmtree(made.directory)
    eight = update(made, path, tower, 0.5, num_devices=8)
    np.testing.assert_allclose(eight.rows, one.rows, atol=1e-6)


def test_shards_with_titles_continue_after_being_killed(made, tower, other_tower, tmp_path, monkeypatch):
    path = write_csv(made, **TITLES)
    whole, out, write = update(made, path, tower, 0.5), tmp_path / "shards", shards.write_index

    def build(**how):
        return build_shards(path, out, load(made.weights), shard_size=2, batch_size=8, num_threads=1, **how)

    def killed(directory, index, shard):
        if shard.number == 1:
            raise KeyboardInterrupt
        write(directory, index, shard)

    texts = TextSettings(tower, 0.5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "write_index", killed)
        build(texts=texts)
    done = build(texts=texts)
    assert (done.num_shards, done.num_finished) == (1, 1)
    np.testing.assert_allclose(read_index(out).rows, whole.rows, atol=1e-6)
    merged = merge_shards(out, tmp_path / "merged", store_as="int8")
    assert_same(read_index(tmp_path / "merged"), merged)
    np.testing.assert_allclose(merged.text.vectors, whole.text.vectors, atol=0.02)
    (out / "part-00001.parquet").unlink()
    build(texts=TextSettings(other_tower, 0.5))
    assert build(texts=TextSettings(other_tower, 0.5)).num_finished == 2


@pytest.mark.parametrize("dimensions", [None, 4])
@pytest.mark.parametrize("store_as", [None, "int8"])
def test_smaller_vectors_keep_the_titles(tmp_path, dimensions, store_as):
    index = make_smaller(with_text(make_index(9)), dimensions, store_as)
    write_index(tmp_path, index)
    assert_same(read_index(tmp_path), index)
    assert read_index(tmp_path).checksum == index.checksum != dataclasses.replace(index, text=None).checksum
    assert index.rows.shape == (9, (dimensions or 16) + 6)
    np.testing.assert_allclose(np.linalg.norm(index.text.vectors, axis=1), [0, 1, 1] * 3, atol=1e-6)


def test_a_damaged_title_is_not_read(tmp_path):
    index = with_text(make_index(9))
    for changed in (index.text.vectors * 2, np.full_like(index.text.vectors, np.nan)):
        write_index(tmp_path, dataclasses.replace(index, text=dataclasses.replace(index.text, vectors=changed)))
        with pytest.raises(DataError, match="a title's vector is neither of unit length nor 0"):
            read_index(tmp_path)


@pytest.mark.parametrize("dimensions", [None, 4])
def test_faiss_takes_speech_behind_the_clip(tmp_path, dimensions):
    faiss = pytest.importorskip("faiss")
    index = make_smaller(with_text(make_index(30)), dimensions)
    path = export_faiss(tmp_path, index)
    told = json.loads((tmp_path / "index.faiss.json").read_text(encoding="utf-8"))["text"]
    assert told == {"model": "a tower", "fingerprint": "f" * 64, "weight": 0.3, "dimensions": 6}
    rng = np.random.default_rng(1)
    clip, speech = rng.normal(size=(2, 16)).astype(np.float32), rng.normal(size=(2, 6)).astype(np.float32)
    expected = clip @ index.embeddings(np.arange(30)).T + 0.3 * speech @ index.text.vectors.T
    scores, found = faiss.read_index(str(path)).search(np.concatenate([clip, np.sqrt(0.3) * speech], axis=1), 30)
    np.testing.assert_array_equal(found, np.argsort(-expected))
    np.testing.assert_allclose(scores, -np.sort(-expected), atol=1e-5)


@pytest.mark.skipif(
    not (importlib.util.find_spec("pymilvus") and importlib.util.find_spec("milvus_lite")),
    reason="pymilvus and milvus-lite are not installed",
)
@pytest.mark.parametrize("dimensions", [None, 4])
def test_milvus_keeps_the_titles(tmp_path, dimensions):
    index = make_smaller(with_text(make_index(30, with_queries=False)), dimensions)
    uri, index = str(tmp_path / "shop.db"), index.take(sorted(range(30), key=index.image_ids.__getitem__))
    written = write_milvus(index, uri)
    found = written.read()
    np.testing.assert_array_equal(found.vectors, index.vectors)
    np.testing.assert_allclose(found.text.vectors, index.text.vectors, atol=1e-6)
    assert found.text.about == index.text.about
    np.testing.assert_allclose(found.text.centers[None], index.text.vectors.mean(axis=0), atol=1e-6)
    if dimensions:
        np.testing.assert_allclose(found.projection, index.projection, atol=1e-7)
    queries = index.rows[:3]
    hits = written.search(queries, 5)
    np.testing.assert_allclose(
        [[hit.score for hit in own] for own in hits], -np.sort(-queries @ index.rows.T)[:, :5], atol=1e-5
    )
    lighter = dataclasses.replace(index, text=dataclasses.replace(index.text, weight=0.1))
    assert write_milvus(lighter, uri).read().text.weight == 0.1
    assert write_milvus(dataclasses.replace(index, text=None), uri).read().text is None

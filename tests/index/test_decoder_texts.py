"""The titles that a decoder reads: embedded with their pictures, by the tower that it was trained with."""

import contextlib
import dataclasses
import shutil

import jax
import numpy as np
import pytest

from rice_jax.config import MeshConfig
from rice_jax.index import text
from rice_jax.index.model import place_model, read_settings
from rice_jax.index.shards import build_shards, merge_shards
from rice_jax.index.store import Shard, read_index, write_index
from rice_jax.index.update import build_index, update_index
from rice_jax.models.weights import CheckpointError, load_weights, save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.types import DataError
from tests.text_model import write_text_model
from tests.text_shop import TITLES, make_text_shop

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def shop(tower, tmp_path_factory):
    return make_text_shop(tmp_path_factory.mktemp("shop"), tower, "embeddings")


@pytest.fixture(scope="module")
def index(shop, tmp_path_factory):
    return build_index(shop.csv, model=shop.weights, out=tmp_path_factory.mktemp("index"))


@contextlib.contextmanager
def away(tower):
    """For a while the tower is not where it was."""
    tower.rename(tower.with_name("away"))
    yield
    tower.with_name("away").rename(tower)


def assert_same_queries(found, expected):
    assert found.image_ids == expected.image_ids and found.about.fingerprints == expected.about.fingerprints
    np.testing.assert_allclose(np.float32(found.queries), np.float32(expected.queries), atol=0.02)  # as bfloat16


def update(shop, directory, num_devices=1, **how):
    mesh = create_mesh(MeshConfig(-1, 1), jax.devices()[:num_devices])
    return update_index(directory, shop.csv, place_model(shop.weights, read_settings(shop.weights), mesh), **how)


def write_csv(shop, name, titles):
    path = shop.csv.with_name(name)
    path.write_text("id,path,title\n" + "".join(f"{one},{one}.png,{own}\n" for one, own in titles.items()))
    return path


def test_the_index_names_the_tower(index, tower):
    assert index.about.text_model == str(tower)
    assert index.about.text_fingerprint == text.Texts(tower).fingerprint
    assert index.text is None, "titles do not count in the scores"


def test_a_new_title_is_embedded_with_its_picture(shop, index, tmp_path, embedded):
    build_index(shop.csv, model=shop.weights, out=tmp_path)
    embedded.clear()
    changed = build_index(write_csv(shop, "changed.csv", TITLES | {"b": "女鞋"}), out=tmp_path, mix=True)
    assert embedded == ["b"]
    assert read_index(tmp_path).about == changed.about == index.about
    different = [not np.array_equal(*rows) for rows in zip(changed.queries, index.queries, strict=True)]
    assert different == [False, True, False, False]


def test_a_title_that_counts_in_the_scores_too_is_embedded_once(shop, tower, index, tmp_path, monkeypatch):
    found, embed = [], text.Texts._embed
    monkeypatch.setattr(text.Texts, "_embed", lambda self, texts: found.extend(texts) or embed(self, texts))
    made = build_index(shop.csv, model=shop.weights, out=tmp_path, text_model=tower, text_weight=0.5)
    assert sorted(found) == sorted(["a", *TITLES.values()]), "the first text compiles"
    assert made.text.weight == 0.5
    assert_same_queries(made, index)


def test_where_the_tower_is_not_found_the_decoder_reads_no_texts(shop, index, tower, tmp_path, caplog):
    with away(tower):
        build_index(shop.csv, model=shop.weights, out=tmp_path)
    assert "that model is not found, so re-ranking reads no texts; to change that, tell where it is" in caplog.text
    plain = read_index(tmp_path)
    assert (plain.about.text_model, plain.about.text_fingerprint) == ("", "")
    assert [not np.array_equal(*rows) for rows in zip(plain.queries, index.queries, strict=True)] == [
        bool(title) for title in TITLES.values()
    ]
    caplog.clear()
    again = build_index(shop.csv, out=tmp_path, text_model=tower)
    assert "the index was made without titles for its decoder" in caplog.text
    np.testing.assert_array_equal(again.queries, plain.queries)


def test_a_tower_that_has_moved_is_named(shop, index, tower, tmp_path):
    moved = shutil.copytree(tower, tmp_path / "tower")
    found = build_index(shop.csv, model=shop.weights, out=tmp_path / "index", text_model=moved)
    assert found.about.text_model == str(moved)
    assert_same_queries(found, index)
    shutil.rmtree(moved)
    with pytest.raises(CheckpointError, match="is not there any more; tell where it is now") as caught:
        build_index(shop.csv, out=tmp_path / "index")
    assert "\n" not in str(caught.value)
    assert build_index(shop.csv, out=tmp_path / "index", text_model=tower).about.text_model == str(tower)


def test_another_tower_is_refused(shop, index, tower, tmp_path):
    write_index(tmp_path / "index", index)
    (params, config), small = load_weights(tower), tmp_path / "small"
    params["text"]["projection"]["kernel"] = params["text"]["projection"]["kernel"][:, :8]
    save_weights(small, params, config | {"text": config["text"] | {"embed_dim": 8}})
    shutil.copytree(tower / "tokenizer", small / "tokenizer")
    other = write_text_model(tmp_path / "other", shift=0.5)
    for directory, source in (("index", other), ("new", small)):
        with pytest.raises(CheckpointError, match="is not the text tower that embedded the texts of the dec") as caught:
            build_index(shop.csv, model=shop.weights, out=tmp_path / directory, text_model=source)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_missing_tokenizer_is_told(tower, tmp_path):
    start = shutil.copytree(tower, tmp_path / "tower")
    shop = make_text_shop(tmp_path / "shop", start, "tower")
    shutil.rmtree(start / "tokenizer")
    with pytest.raises(DataError, match="found no file of a tokenizer") as caught:
        build_index(shop.csv, model=shop.weights, out=tmp_path / "index")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["text", "decoder"])
def test_weights_without_a_decoder_of_texts_read_none(shop, tmp_path, part):
    params, config = load_weights(shop.weights)
    del (params["pmd"] if part == "text" else params)["text" if part == "text" else "pmd"]
    save_weights(tmp_path / "weights", params, config)
    index = build_index(shop.csv, model=tmp_path / "weights", out=tmp_path / "index")
    assert index.about.text_fingerprint == "" and (index.queries is None) == (part == "decoder")


def test_eight_devices_make_the_index_of_one(shop, index, tmp_path):
    assert_same_queries(update(shop, tmp_path, num_devices=8, batch_size=8), index)


def test_shards_make_the_index(shop, index, tower, tmp_path):
    model = place_model(shop.weights, read_settings(shop.weights), create_mesh(MeshConfig(1, 1), jax.devices()[:1]))
    how = dict(shard_size=2, batch_size=2, num_threads=1)
    with away(tower):
        build_shards(shop.csv, tmp_path / "shards", model, **how)
    assert build_shards(shop.csv, tmp_path / "shards", model, **how).num_finished == 0, "those lack titles"
    assert build_shards(shop.csv, tmp_path / "shards", model, **how).num_finished == 2
    assert_same_queries(merge_shards(tmp_path / "shards", tmp_path / "merged"), index)
    plain = dataclasses.replace(index.take([0, 1]), about=model.about)
    write_index(tmp_path / "shards", plain, Shard(0, 2))
    with pytest.raises(DataError, match="found shards of 2 models"):
        read_index(tmp_path / "shards")

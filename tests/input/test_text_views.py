import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rice_jax.input.pipeline import eval_batches, train_batches
from rice_jax.input.text_embeddings import METADATA
from rice_jax.input.tokenizer import Tokenizer
from rice_jax.types import DataError
from tests.golden.cases import HERE
from tests.input import tiny_shop
from tests.settings import small_config

TEXT_OF = {"clip-1": "这件衣服", "clip-4": "新款\x01null\x01女鞋", "clip-7": "null", "query-2": "红色"}
SETTINGS = {"data__train": "shop/train", "data__query": "shop/query", "data__gallery": "shop/gallery"}
SETTINGS |= {"model__text_dim": 3, "data__batch_size": 4}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    for split, rows, key in (("train", tiny_shop.TRAIN, "clip_id"), ("query", tiny_shop.QUERIES, "clip_id")):
        rows = [row | {"asr": TEXT_OF.get(row[key], "")} for row in rows]
        rows = [row | {"title": f"标题 {row['image_id'][-1]}"} for row in rows] if split == "train" else rows
        tiny_shop.build(root / "shop" / split, split, rows, {})
    tiny_shop.build(root / "shop" / "gallery", "gallery", tiny_shop.GALLERY, {})  # without titles
    return root


def write(folder, kind, vectors: dict, fingerprint: str = "a"):
    folder.mkdir(exist_ok=True)
    table = pa.table({"id": list(vectors), "embedding": list(map(list, vectors.values()))})
    about = {METADATA: json.dumps({"fingerprint": fingerprint}).encode()}
    pq.write_table(table.replace_schema_metadata(about), folder / f"{kind}.parquet")


def vector(number: int) -> np.ndarray:
    x = np.array([1, number, number**2], np.float32)
    return x / np.linalg.norm(x)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    write(folder, "titles", {f"image-{number}": 2 * vector(number) for number in (0, 2, 4)} | {"shop-3": vector(9)})
    write(folder, "speech", {"clip-1": vector(1), "query-2": vector(2)})
    return folder


def settings(shop, texts, **further):
    return small_config(
        data__data_dir=str(shop), data__texts=str(texts), model__text="embeddings", **SETTINGS | further
    ).input


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_has_the_embeddings_of_its_images_and_clips(shop, embeddings, num_workers):
    batches = train_batches(settings(shop, embeddings, data__num_workers=num_workers))
    batch = next(batches)
    batches.close()
    for name in ("title", "speech"):
        assert batch[name].shape == (4, 3) and batch[name].dtype == np.float32
    for row, index in enumerate(batch["index"]):
        has_title, has_speech = index // 2 in (0, 2, 4), index == 1
        assert (batch["title_mask"][row], batch["speech_mask"][row]) == (has_title, has_speech)
        np.testing.assert_allclose(batch["title"][row], vector(index // 2) if has_title else 0, rtol=1e-6)
        np.testing.assert_allclose(batch["speech"][row], vector(1) if has_speech else 0, rtol=1e-6)


def test_queries_have_speech_and_images_titles(shop, embeddings):
    config = settings(shop, embeddings)
    (queries,) = eval_batches(config, "query", 8)
    assert queries["speech_mask"].tolist() == [row == 2 for row in range(8)] and "title" not in queries
    np.testing.assert_allclose(queries["speech"][2], vector(2), rtol=1e-6)
    assert not queries["speech"][5:].any() and not queries["mask"][5:].any()  # filling
    (images,) = eval_batches(config, "gallery", 8)
    assert images["title_mask"].tolist() == [row == 3 for row in range(8)] and "speech" not in images


def test_the_other_arrays_of_a_batch_stay_the_same(shop, embeddings):
    plain = small_config(data__data_dir=str(shop), **{k: v for k, v in SETTINGS.items() if "text" not in k}).input
    first, second = next(train_batches(plain)), next(train_batches(settings(shop, embeddings)))
    assert second.keys() - first.keys() == {"title", "title_mask", "speech", "speech_mask"}
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_without_a_file_a_kind_is_missing(shop, tmp_path):
    write(tmp_path, "titles", {"image-0": vector(1)})
    (queries,) = eval_batches(settings(shop, tmp_path), "query", 8)
    assert not queries["speech_mask"].any() and queries["speech"].shape == (8, 3)


@pytest.mark.parametrize(
    ("titles", "speech", "fingerprint", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], "a", r"found embeddings of 2 numbers, expected config.model.text_dim \(3\)"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "b", "titles and speech are of two models; embed both with one"),
    ],
)
def test_other_embeddings_are_refused(shop, tmp_path, titles, speech, fingerprint, message):
    write(tmp_path, "titles", {"x": titles})
    write(tmp_path, "speech", {"x": speech}, fingerprint)
    with pytest.raises(DataError, match=message):
        train_batches(settings(shop, tmp_path))


def test_a_tower_gets_tokens(shop, tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(HERE / "text" / "vocab.txt", tmp_path / "tokenizer")
    tower = {"model__text": "tower", "model__text_init_from": str(tmp_path), "model__text_tower__context": 7}
    config = small_config(data__data_dir=str(shop), **SETTINGS | tower).input
    tokenizer = Tokenizer(tmp_path / "tokenizer", 7)
    batches = train_batches(config)
    read = [next(batches) for _ in range(4)]
    rows = {int(index): (batch, row) for batch in read for row, index in enumerate(batch["index"])}
    batches.close()
    said = {1: "这件衣服", 4: "新款,女鞋", 7: "", 2: ""}
    for index, text in said.items():
        batch, row = rows[index]
        ids, mask, _ = tokenizer([text])
        np.testing.assert_array_equal(batch["speech_ids"][row], ids[0])
        np.testing.assert_array_equal(batch["speech_token_mask"][row], mask[0])
        assert batch["speech_mask"][row] == bool(text) and batch["title_mask"][row]
    (images,) = eval_batches(config, "gallery", 8)
    assert not images["title_mask"].any() and images["title_ids"].shape == (8, 7)


def test_a_tower_without_a_tokenizer_is_refused(shop, tmp_path):
    tower = {"model__text": "tower", "model__text_init_from": str(tmp_path)}
    with pytest.raises(DataError, match="found no file of a tokenizer"):
        train_batches(small_config(data__data_dir=str(shop), **SETTINGS | tower).input)

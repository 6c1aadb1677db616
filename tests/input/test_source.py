import dataclasses
import pickle
import shutil
from pathlib import Path

import pytest

from rice_jax.input.ground_truth import Gallery, Query, read_gallery_index, read_metadata, read_query_index
from rice_jax.input.pipeline import eval_batches, train_batches
from rice_jax.input.source import Source
from rice_jax.types import DataError
from tests.input import tiny_shop


def test_rows_are_as_stored_and_pictures_stay_encoded(data_dir):
    source = Source(data_dir, "shop/train")
    assert len(source) == len(tiny_shop.TRAIN)
    for index, stored in enumerate(tiny_shop.TRAIN):
        row = source[index]
        assert row["index"] == index
        assert row["clip_id"].decode() == stored["clip_id"]
        assert row["image"] == stored["image"]
        assert list(row["frames"]) == stored["frames"]


def test_only_the_chosen_features_are_read(data_dir):
    assert Source(data_dir, "shop/gallery", ["image_id"])[5] == {"image_id": b"shop-5", "index": 5}


def test_an_optional_feature_is_read_if_present(data_dir):
    source = Source(data_dir, "shop/gallery", ["image_id"], optional=("gallery_id", "source"))
    assert source[5] == {"image_id": b"shop-5", "gallery_id": b"live-1", "index": 5}


def test_a_source_can_be_sent_to_another_process(data_dir):
    source = Source(data_dir, "shop/query")
    assert list(pickle.loads(pickle.dumps(source))[1]["frames"]) == tiny_shop.QUERIES[1]["frames"]


def test_a_damaged_shard_is_named_with_the_record(data_dir, tmp_path):
    shutil.copytree(Path(data_dir) / "shop", tmp_path / "shop")
    (shard,) = (tmp_path / "shop" / "train" / "1.0.0").glob("*.array_record*")
    whole = shard.read_bytes()
    place = len(whole) // 2
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    source, errors = Source(str(tmp_path), "shop/train"), {}
    for row in range(len(source)):
        try:
            source[row]
        except DataError as error:
            errors[row] = str(error)
    ((row, error),) = errors.items()
    assert error.startswith(f"{shard}: record {row} (row {row} of shop/train) cannot be read, so the file is damaged")
    assert "rice build shop" in error and "\n" not in error
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{shard}: record 0 .*cannot be read"):
        Source(str(tmp_path), "shop/train")[0]


def test_the_newest_version_is_read(tmp_path):
    for version, rows in (("1.9.0", 1), ("1.10.0", 2)):
        tiny_shop.build(tmp_path / "shop" / "gallery", "test", tiny_shop.GALLERY[:rows], {}, version)
    (tmp_path / "shop" / "gallery" / "2.0.0.incompleteXYZ").mkdir()
    assert len(Source(str(tmp_path), "shop/gallery")) == 2


def test_missing_data_names_the_command_that_builds_it(config, tmp_path):
    missing = dataclasses.replace(config, data_dir=str(tmp_path), train="lpr4m/train", query="lpr4m/query")
    message = rf"{tmp_path}/lpr4m/train: found no .* rice build lpr4m --raw_dir RAW --data_dir {tmp_path}$"
    with pytest.raises(FileNotFoundError, match=message):
        train_batches(missing)
    with pytest.raises(FileNotFoundError, match="lpr4m/query"):
        eval_batches(missing, "query", 4)
    with pytest.raises(FileNotFoundError, match="lpr4m/query"):
        read_query_index(missing)


def test_a_missing_feature_is_an_error(data_dir):
    with pytest.raises(ValueError, match=r"no feature \['asr'\] among .*'clip_id'.*rice build shop"):
        Source(data_dir, "shop/train", ["clip_id", "asr"])


def test_query_index(config):
    queries = read_query_index(config)
    assert len(queries) == 5
    assert queries[3] == Query(
        clip_id="query-3",
        gallery_id="live-1",
        image_ids=("shop-3", "shop-5"),
        title="简约西装外套",
        category="女装",
        scale="small",
        duration="",
        number="few",
        source="",  # the data set lacks this feature
    )


def test_gallery_index(config):
    gallery_ids, image_ids, product_ids = read_gallery_index(config.data_dir, config.gallery)
    assert gallery_ids == ["live-0", "live-1"] * 3
    assert image_ids == [f"shop-{row}" for row in range(6)]
    assert product_ids == image_ids, "the data set lacks this feature"


def test_gallery_of_products(tmp_path):
    rows = [row | {"product_id": f"p{place % 3}"} for place, row in enumerate(tiny_shop.GALLERY)]
    tiny_shop.build(tmp_path / "shop" / "gallery", "test", rows[:5], {})
    found = read_gallery_index(str(tmp_path), "shop/gallery")
    assert found.product_ids == ["p0", "p1", "p2", "p0", "p1"]
    by_image = {(f"live-{row % 2}", f"shop-{row}"): row for row in range(5)}
    by_product = {
        ("live-0", "p0"): 0,
        ("live-1", "p1"): 1,
        ("live-0", "p2"): 2,
        ("live-1", "p0"): 3,
        ("live-0", "p1"): 4,
    }
    assert found.rows == by_image | by_product
    named = Gallery(["g"] * 3, ["a", "b", "c"], ["x", "a", "a"])
    assert named.rows == {("g", "a"): 0, ("g", "b"): 1, ("g", "c"): 2, ("g", "x"): 0}, "images come first"


def test_metadata(config):
    assert read_metadata(config, "query") == {"num_queries": 6, "skipped": {"query-9": "no frame could be read"}}
    assert read_metadata(config, "train") == {"num_rows": 11}

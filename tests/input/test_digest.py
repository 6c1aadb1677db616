"""Digests of data sets: what they notice, and what they do not depend on."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from rice_jax.input.digest import BLOCK, NUM_BLOCKS, data_digest, training_digests
from tests.input import tiny_shop


@pytest.fixture
def train(data_dir, tmp_path):
    """A copy of the training set's directory."""
    return shutil.copytree(Path(data_dir) / "shop" / "train", tmp_path / "shop" / "train") / "1.0.0"


def test_a_copy_has_the_digest_of_the_original(config, data_dir, train, tmp_path):
    for path in train.iterdir():
        os.utime(path, (0, 0))
    (train / "metadata.json").write_text("{}")
    copied = dataclasses.replace(config, data_dir=str(tmp_path))
    assert training_digests(copied) == training_digests(config) == {"shop/train": data_digest(data_dir, "shop/train")}


def test_other_examples_have_another_digest(data_dir, train, tmp_path):
    rows = tiny_shop.TRAIN
    found = {data_digest(data_dir, "shop/train")}
    changed = [{**rows[0], "clip_id": "clip-x"}, *rows[1:]]
    for number, other in enumerate([rows[:-1], [rows[1], rows[0], *rows[2:]], changed]):
        tiny_shop.build(tmp_path / str(number) / "shop" / "train", "train", other, {})
        found.add(data_digest(str(tmp_path / str(number)), "shop/train"))
    assert len(found) == 4


def test_exchanged_shards_and_changed_ends_of_large_files_are_noticed(train, tmp_path):
    (shard,) = train.glob("*.array_record*")
    shard.unlink()
    size = NUM_BLOCKS * BLOCK * 3
    shards = [train / f"shop-train.array_record-0000{number}-of-00002" for number in range(2)]
    for number, path in enumerate(shards):
        path.write_bytes(np.random.default_rng(number).bytes(size))
    before = data_digest(str(tmp_path), "shop/train")
    one, other = (path.read_bytes() for path in shards)
    shards[0].write_bytes(other)
    shards[1].write_bytes(one)
    assert data_digest(str(tmp_path), "shop/train") != before
    shards[1].write_bytes(other)
    for place in (0, size - 1):
        flipped = bytearray(one)
        flipped[place] ^= 1
        shards[0].write_bytes(flipped)
        assert data_digest(str(tmp_path), "shop/train") != before
    shards[0].write_bytes(one)
    assert data_digest(str(tmp_path), "shop/train") == before


def test_boxes_for_training_count(config, tmp_path):
    boxes = tmp_path / "boxes.jsonl"
    digests = []
    for text in "ab":
        boxes.write_text(text)
        digests.append(training_digests(dataclasses.replace(config, train_boxes=str(boxes))))
    assert digests[0].keys() == {"shop/train", "config.data.train_boxes"}
    assert digests[0] != digests[1]

"""An index on disk."""

import dataclasses
import io
import os
import random
import re
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import pytest

from rice_jax.eval.calibration import Calibration
from rice_jax.index.smaller import make_smaller
from rice_jax.index.store import (
    CHECKSUM,
    FILE,
    SETTINGS,
    TEXTS,
    About,
    Index,
    Shard,
    _checksum,
    read_index,
    write_index,
)
from rice_jax.index.text import IndexText
from rice_jax.models.rice import RiceConfig
from rice_jax.types import DataError
from tests.fixtures import ROOT
from tests.settings import small_config


def make_index(num=5, *, with_queries=True, several_rows=False) -> Index:
    rng, config = np.random.default_rng(0), small_config()
    model = RiceConfig(config.model.encoder, pmd=config.model.pmd if with_queries else None)
    vectors = rng.normal(size=(num, 16)).astype(np.float32)
    rows = model.encoder.num_tokens if several_rows else 1
    return Index(
        gallery_ids=["live"] * num,
        image_ids=[f"p{i}" for i in range(num)],
        product_ids=[f"p{i // 2}" for i in range(num)],
        titles=["简约 <b>"] * num,
        paths=["/a/b.jpg"] * num,
        digests=["0" * 64] * num,
        fields=[{"price": str(i), "preis €": ""} if i % 2 else {} for i in range(num)],
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        queries=rng.normal(size=(num, rows, 32)).astype(ml_dtypes.bfloat16) if with_queries else None,
        about=About(model, 20, 10, "f" * 64, "/run", Calibration(20.0, 9.0, 0.5, 4, 10, "f" * 64)),
    )


def assert_equal(one: Index, other: Index):
    for field in dataclasses.fields(Index):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


@pytest.mark.parametrize("changes", [{}, {"with_queries": False}, {"several_rows": True}, {"num": 0}])
def test_reads_what_it_wrote(tmp_path, changes):
    index = make_index(**changes)
    write_index(tmp_path / "new", index)
    assert_equal(read_index(tmp_path / "new"), index)
    assert os.listdir(tmp_path / "new") == ["index.parquet"]


def test_other_programs_can_read_it(tmp_path):
    index = make_index()
    write_index(tmp_path, index)
    table = pq.read_table(tmp_path / "index.parquet", columns=["gallery", "id", "title", "vector"])
    assert table["id"].to_pylist() == index.image_ids
    assert np.array_equal(np.float32(table["vector"].to_pylist()), index.vectors)


def test_rows_in_another_order(tmp_path):
    index = make_index()
    taken = index.take([3, 1])
    assert taken.image_ids == ["p3", "p1"] and taken.about == index.about
    assert np.array_equal(taken.vectors, index.vectors[[3, 1]])
    assert np.array_equal(taken.queries, index.queries[[3, 1]])


@pytest.mark.parametrize("place", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_index(tmp_path, monkeypatch, place):
    write_index(tmp_path, make_index(3))

    def fail(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(os, place, fail)
        write_index(tmp_path, make_index(5))
    assert_equal(read_index(tmp_path), make_index(3))
    write_index(tmp_path, make_index(4))  # what a failed write left does not matter
    assert_equal(read_index(tmp_path), make_index(4))
    assert os.listdir(tmp_path) == ["index.parquet"]


def test_reading_while_writing_gives_one_or_the_other(tmp_path):
    write_index(tmp_path, make_index(2000))
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [write_index(tmp_path, make_index(2000 + i % 2)) for i in range(30)])
        while not writing.done():
            index = read_index(tmp_path)
            assert len(index.vectors) == len(index.queries) == len(index.image_ids) in (2000, 2001)
        writing.result()


def test_no_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no index; make one: rice index .*--mode=index"):
        read_index(tmp_path)


def test_a_damaged_index(tmp_path):
    write_index(tmp_path, make_index())
    path = tmp_path / "index.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="index.parquet: is damaged, or of another version"):
        read_index(tmp_path)
    pq.write_table(pq.read_table(io.BytesIO(whole)).drop_columns(["vector"]), path)
    with pytest.raises(DataError, match="index.parquet: is damaged, or of another version"):
        read_index(tmp_path)


def test_an_index_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    (tmp_path / "index.parquet").mkdir()
    with pytest.raises(IsADirectoryError, match="index.parquet"):
        read_index(tmp_path)


def test_no_flipped_bit_is_read(tmp_path):
    write_index(tmp_path, make_index())
    path, rng, noticed = tmp_path / "index.parquet", random.Random(0), 0
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert_equal(read_index(tmp_path), make_index())  # some bits of a Parquet file mean nothing
        except DataError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
            noticed += 1
    assert noticed > 50


@pytest.mark.parametrize("factor", [np.nan, np.inf, 10.0, 0.0])
def test_vectors_that_cannot_be_compared(tmp_path, monkeypatch, factor):
    index = make_index()
    index.vectors[3] *= factor
    with pytest.raises(DataError, match="1 of 5 vectors are not of unit length, the first is that of 'p3'"):
        write_index(tmp_path, index)
    assert not (tmp_path / "index.parquet").exists()
    with monkeypatch.context() as patch:
        patch.setattr("rice_jax.index.store._require_unit_vectors", lambda *_: None)
        write_index(tmp_path, index)
    with pytest.raises(DataError, match="index.parquet: 1 of 5 vectors are not of unit length"):
        read_index(tmp_path)


def test_an_index_without_a_checksum(tmp_path):
    """As version 0.2 wrote it."""
    write_index(tmp_path, make_index())
    path = tmp_path / "index.parquet"
    table = pq.read_table(path)
    about = {SETTINGS: table.schema.metadata[SETTINGS]}
    pq.write_table(table.replace_schema_metadata(about), path, compression="none")
    assert_equal(read_index(tmp_path), make_index())


@pytest.mark.parametrize("with_checksum", [False, True])
def test_an_index_without_products(tmp_path, with_checksum):
    """As earlier versions wrote it: every picture is a product."""
    index = make_index()
    write_index(tmp_path, index)
    path = tmp_path / "index.parquet"
    table = pq.read_table(path).drop_columns(["product"])
    about = table.schema.metadata[SETTINGS]
    texts = {name: getattr(index, name) for name in TEXTS if name != "product_ids"}
    checksum = {CHECKSUM: _checksum(about, texts, index.vectors, index.queries)} if with_checksum else {}
    pq.write_table(table.replace_schema_metadata({SETTINGS: about} | checksum), path, compression="none")
    assert_equal(read_index(tmp_path), dataclasses.replace(index, product_ids=index.image_ids))
    write_index(tmp_path, index)
    pq.write_table(pq.read_table(path).drop_columns(["product"]), path, compression="none")
    with pytest.raises(DataError, match="index.parquet: is damaged"):
        read_index(tmp_path)


def test_products_of_two_galleries_are_two(tmp_path):
    assert make_index(5).num_products == 3
    assert dataclasses.replace(make_index(5), gallery_ids=[*"ababa"]).num_products == 5


def test_the_documentation_has_every_column_and_key(tmp_path):
    text = (ROOT / "docs/large-indexes.md").read_text(encoding="utf-8").partition("## The Parquet file")[2]
    rows = [line.strip("| ").split(" | ") for line in text.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    titles = np.eye(40, 3, dtype=np.float32)
    index = dataclasses.replace(make_index(40), text=IndexText("tower", "0", 0.5, titles))
    write_index(tmp_path, dataclasses.replace(make_smaller(index, 4), sources=("/shop.csv",)), Shard(0, 1))
    write_index(tmp_path / "small", make_smaller(index, store_as="int8"))
    schema, small = (pq.read_schema(path) for path in (tmp_path / "part-00000.parquet", tmp_path / "small" / FILE))

    def plain(kind):
        """A type as the documentation writes it, without lengths."""
        return re.sub(r"\w+: | not null|\[.*\]$| \('\w+'\)", "", str(kind)).replace("<float>", "<float32>")

    told = {(row[0].strip("`"), plain(row[1])) for row in rows if len(row) > 2}
    assert told == {(field.name, plain(field.type)) for field in [*schema, *small]}
    assert {row[0].strip("`") for row in rows if len(row) == 2} == {
        key.decode() for key in schema.metadata if key != b"ARROW:schema"
    }

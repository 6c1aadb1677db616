import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rice_jax.input.text_embeddings import METADATA, read_embeddings
from rice_jax.types import DataError


def write(path, vectors, keys=None, about=None, **columns):
    keys = [f"id-{row}" for row in range(len(vectors))] if keys is None else keys
    path.parent.mkdir(exist_ok=True)
    table = pa.table({"id": keys, "embedding": vectors} | columns)
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(about or {}).encode()}), path)


@pytest.mark.parametrize("dtype", [pa.float64(), pa.float32(), pa.float16()])
def test_a_file_made_elsewhere_is_read_at_unit_length(tmp_path, dtype):
    vectors = np.array([[3.0, 4.0], [0.0, 0.5]])
    rows = pa.array([np.float16(row) if dtype == pa.float16() else row for row in vectors], pa.list_(dtype))
    write(tmp_path / "titles.parquet", rows, price=[1, 2])
    found = read_embeddings(str(tmp_path), "titles")
    np.testing.assert_allclose(found.get("id-0"), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(found.get("id-1"), [0, 1])
    assert found.get("id-2") is None and found.vectors.dtype == np.float32 and found.fingerprint == ""
    assert read_embeddings(str(tmp_path), "speech") is None


def test_ids_are_texts_of_any_kind(tmp_path):
    keys = ["null", "a|b", "a\x01b", "😀", "中文 id, two", "NULL", " a", "None", "0", "00"]
    write(tmp_path / "titles.parquet", [[1.0, float(row)] for row in range(len(keys))], keys)
    found = read_embeddings(str(tmp_path), "titles")
    for row, key in enumerate(keys):
        assert found.get(key)[1] / found.get(key)[0] == pytest.approx(row), key
    assert found.get("a") is None


@pytest.mark.parametrize(
    ("vectors", "options", "message"),
    [
        ([[1.0, 0.0], [1.0]], {}, "embeddings have 1 to 2 numbers"),
        ([[1.0, 0.0, 0.0], [1.0, 2.0], [0.0, 1.0, 0.0, 0.0]], {}, "all of one length .*have 2 to 4 numbers"),
        ([[1.0, 0.0], [0.0, 0.0]], {}, "embedding 1 has no direction"),
        ([[np.inf, 0.0]], {}, "has no direction"),
        ([[np.nan, 0.0]], {}, "has no direction"),
        ([[1.0], None], {}, "a value is missing"),
        ([[1.0], [2.0]], {"keys": ["a", "a"]}, "found the id 'a' twice"),
        ([[1.0]], {"about": {"num_parts": 2}}, "found 1 parts, expected 2; run `rice embed-text` again"),
    ],
)
def test_other_content_is_refused_in_one_line(tmp_path, vectors, options, message):
    write(tmp_path / "titles.parquet", vectors, **options)
    with pytest.raises(DataError, match=message) as error:
        read_embeddings(str(tmp_path), "titles")
    assert "\n" not in str(error.value)


def test_a_part_without_rows_does_not_tell_the_size(tmp_path):
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 2)):
        write(tmp_path / "titles" / "a.parquet", pa.array([], kind), pa.array([], pa.string()))
        write(tmp_path / "titles" / "b.parquet", [[3.0, 4.0]], ["b"])
        found = read_embeddings(str(tmp_path), "titles")
        np.testing.assert_allclose(found.vectors, [[0.6, 0.8]], rtol=1e-6)
        read_embeddings.cache_clear()


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "speech" / "a.parquet"
    write(path, np.ones((500, 8)).tolist())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="a.parquet: is damaged, or no file of embeddings with the columns id and emb"):
        read_embeddings(str(tmp_path), "speech")


def test_columns_of_other_names_are_refused(tmp_path):
    pq.write_table(pa.table({"key": ["a"], "vector": [[1.0]]}), tmp_path / "titles.parquet")
    with pytest.raises(DataError, match="with the columns id and embedding"):
        read_embeddings(str(tmp_path), "titles")


def test_parts_of_two_models_are_refused(tmp_path):
    write(tmp_path / "titles" / "a.parquet", [[1.0, 2.0]], ["a"], {"fingerprint": "1" * 64})
    write(tmp_path / "titles" / "b.parquet", [[1.0, 2.0]], ["b"], {"fingerprint": "2" * 64})
    with pytest.raises(DataError, match="b.parquet: is of another model .222222222222. than a.parquet .111111111111."):
        read_embeddings(str(tmp_path), "titles")
    write(tmp_path / "titles" / "b.parquet", [[1.0]], ["b"], {"fingerprint": "1" * 64})
    with pytest.raises(DataError, match="b.parquet: found embeddings of 1 numbers, expected 2 as in a.parquet"):
        read_embeddings(str(tmp_path), "titles")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no embeddings of texts .*; write them: rice embed-text"):
        read_embeddings(str(tmp_path), "titles")

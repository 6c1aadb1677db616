"""Smaller vectors of an index."""

import base64
import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rice_jax.index.export import export_faiss
from rice_jax.index.smaller import fit_projection, make_smaller, project
from rice_jax.index.store import PROJECTION, read_index, write_index
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.recognizer import products_over_time
from rice_jax.types import DataError
from tests.index.test_store import assert_equal, make_index


def test_a_projection_keeps_as_much_of_the_vectors_as_any_can():
    vectors = make_index(40).vectors
    projection = fit_projection(vectors, 5)
    np.testing.assert_allclose(projection.T @ projection, np.eye(5), atol=1e-6)
    lost = np.square(vectors - vectors @ projection @ projection.T).sum()
    assert lost == pytest.approx(np.square(np.linalg.svd(vectors, compute_uv=False)[5:]).sum(), rel=1e-4)
    np.testing.assert_allclose(fit_projection(vectors[::-1], 5), projection, atol=1e-5, err_msg="signs are settled")


def test_scores_are_cosines_with_vectors_of_the_models_space():
    index = make_smaller(make_index(40), 5)
    assert index.vectors.shape == (40, 5) and index.projection.shape == (16, 5)
    query = make_index(41).vectors[40]
    stand_ins = index.embeddings(np.arange(40))
    np.testing.assert_allclose(np.linalg.norm(stand_ins, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(query @ index.projection @ index.vectors.T, query @ stand_ins.T, atol=1e-6)
    np.testing.assert_array_equal(make_index().embeddings(np.array([3, 1])), make_index().vectors[[3, 1]])


@pytest.mark.parametrize("dimensions", [None, 4])
@pytest.mark.parametrize("store_as", [None, "int8"])
def test_reads_what_it_wrote(tmp_path, dimensions, store_as):
    index = make_smaller(make_index(), dimensions, store_as)
    write_index(tmp_path, index)
    assert_equal(read_index(tmp_path), index)
    assert read_index(tmp_path).checksum == index.checksum
    kind = pa.int8() if store_as else pa.float32()
    assert pq.read_schema(tmp_path / "index.parquet").field("vector").type == pa.list_(kind, dimensions or 16)
    first = (tmp_path / "index.parquet").read_bytes()
    write_index(tmp_path, make_smaller(read_index(tmp_path), dimensions, store_as))
    assert (tmp_path / "index.parquet").read_bytes() == first, "nothing is lost by writing again"


def test_eight_bits_keep_the_directions():
    vectors = make_index(40).vectors
    cosines = np.einsum("ge,ge->g", make_smaller(make_index(40), store_as="int8").vectors, vectors)
    assert 0.9999 < cosines.min() < 1


def test_the_projection_is_a_part_of_the_index(tmp_path):
    index = make_smaller(make_index(), 4)
    other = dataclasses.replace(index, projection=index.projection[::-1].copy())
    assert index.checksum != other.checksum != make_index().checksum
    write_index(tmp_path, index)
    table = pq.read_table(tmp_path / "index.parquet")
    metadata = table.schema.metadata | {PROJECTION: base64.b64encode(other.projection.tobytes())}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "index.parquet")
    with pytest.raises(DataError, match="checksum"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    "dimensions, store_as, message",
    [
        (6, None, r"dimensions: found 5 pictures, expected at least as many as dimensions \(6\)"),
        (17, None, "dimensions: found 17, expected 1 to 16, the model's"),
        (0, None, "dimensions: found 0, expected 1 to 16, the model's"),
        (None, "int4", "store_as: found 'int4', expected one of 'float32', 'int8'"),
    ],
)
def test_what_cannot_be_done_is_said(dimensions, store_as, message):
    with pytest.raises(DataError, match=message):
        make_smaller(make_index(), dimensions, store_as)


def test_vectors_are_reduced_once():
    index = make_smaller(make_index(), 4)
    assert_equal(make_smaller(index, 4), index)
    assert_equal(make_smaller(make_index(), 16), make_index())
    with pytest.raises(DataError, match="found 3, but the vectors of the index have been reduced to 4 already"):
        make_smaller(index, 3)


def test_what_cannot_be_done_is_said_before_pictures_are_embedded(made, embedded):
    for dimensions, message in ((0, "found 0, expected 1 to 16"), (15, "found 3 pictures, expected at least as many")):
        with pytest.raises(DataError, match=message):
            made.update(dimensions=dimensions)
    assert not embedded and not made.directory.exists()


def test_new_pictures_get_the_projection_of_the_index(made, embedded):
    whole = made.update()
    embedded.clear()
    smaller = made.update(dimensions=2, store_as="int8")
    assert not embedded and smaller.vectors.shape == (3, 2) and smaller.dtype == "int8"
    made.write(d=4, b=5)
    index = made.update()
    assert embedded == ["b", "d"] and index.image_ids == ["a", "b", "c", "d"] and index.dtype == "int8"
    np.testing.assert_array_equal(index.projection, smaller.projection)
    np.testing.assert_array_equal(index.vectors[[0, 2]], smaller.vectors[[0, 2]])
    fresh = made._replace(workdir=made.workdir.parent / "fresh").update()
    np.testing.assert_array_equal(fresh.vectors[0], whole.vectors[0])
    np.testing.assert_allclose(index.vectors, project(fresh.vectors, smaller.projection), atol=0.01)
    assert_equal(read_index(made.directory), index)


@pytest.fixture(scope="module")
def engines(live_shop):
    """Of an index, and of one with as many dimensions as it has pictures, which lose nothing."""
    return Engine(live_shop.index), Engine(make_smaller(live_shop.index, 8))


@pytest.mark.parametrize("gallery", [None, "a"])
def test_recognition_searches_smaller_vectors(engines, live_shop, gallery):
    whole, smaller = engines
    assert smaller.index.vectors.shape == (8, 8)
    for rows in ([2, 9, 2], [4, 11, 5, 0]):
        frames = whole.encode(np.stack([whole.prepare(live_shop.pictures[row]) for row in rows]))
        expected, found = whole.rank(frames, gallery), smaller.rank(frames, gallery)
        assert [match.id for match in found.products] == [match.id for match in expected.products]
        np.testing.assert_allclose(
            [match.score for match in found.products], [match.score for match in expected.products], atol=2e-6
        )
        for score, other in zip(whole.scores(frames, gallery), smaller.scores(frames, gallery), strict=True):
            np.testing.assert_allclose(other, score, atol=2e-6)


def test_a_timeline_of_smaller_vectors(engines, live_shop):
    rows = [2, 2, 2, 2, 10, 10, 10, 1, 1, 1, 1]
    parts = []
    for engine in engines:
        frames = engine.encode(np.stack([engine.prepare(live_shop.pictures[row]) for row in rows]))
        segments = products_over_time(engine, list(map(float, range(len(rows)))), frames)
        parts.append([(part.start, part.end, part.product and part.product.id) for part in segments])
    assert parts[0] == parts[1] and len(parts[0]) > 1


def test_faiss_projects_queries(tmp_path):
    faiss = pytest.importorskip("faiss")
    index = make_smaller(make_index(30, with_queries=False), 6)
    path = export_faiss(tmp_path, index)
    query = make_index(31).vectors[30:]
    scores, rows = faiss.read_index(str(path)).search(query, 30)
    expected = query @ index.projection @ index.vectors.T
    np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, axis=1), atol=1e-6)
    np.testing.assert_array_equal(rows, np.argsort(-expected))
    assert json.loads((tmp_path / "index.faiss.json").read_text(encoding="utf-8"))["id"] == index.image_ids

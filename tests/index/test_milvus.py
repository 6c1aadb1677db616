"""An index in Milvus; needs pymilvus and milvus-lite (`pip install '.[milvus]'`) and is skipped without."""

import dataclasses
import importlib.util
import unicodedata

import numpy as np
import pytest

from rice_jax import cli
from rice_jax.config import ConfigError
from rice_jax.eval.scores import center
from rice_jax.index import milvus, milvus_copy, update
from rice_jax.index.milvus import MilvusIndex, key_of
from rice_jax.index.milvus_copy import keys_of, write_milvus
from rice_jax.index.smaller import make_smaller
from rice_jax.index.store import Index, write_index
from rice_jax.parallel import compilation
from rice_jax.types import DataError
from tests.index.test_store import make_index

needs_milvus = pytest.mark.skipif(
    not (importlib.util.find_spec("pymilvus") and importlib.util.find_spec("milvus_lite")),
    reason="pymilvus and milvus-lite are not installed",
)
GALLERIES = ["", 'a "quoted" \\ gallery', "直播"]
COLORS = ["rot", "blau", 'with "quotes" and ünicode', ""]


def shop(num=60, **changes) -> Index:
    """Pictures of three galleries, of which neighbors are of one product; only the first has fields."""
    index = make_index(num, with_queries=False)
    order = sorted(range(num), key=lambda row: (GALLERIES[row % 3], index.image_ids[row]))
    fields = [{"Color": COLORS[row % 4], "price": str(row)} if row % 3 else {} for row in range(num)]
    return dataclasses.replace(
        index,
        gallery_ids=[GALLERIES[row % 3] for row in range(num)],
        product_ids=[f"product {row // 6}" for row in range(num)],
        fields=fields,
        **changes,
    ).take(order)


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "shop.db")


def assert_same(found: Index, expected: Index):
    for name in ("gallery_ids", "image_ids", "product_ids", "titles", "paths", "fields", "about"):
        assert getattr(found, name) == getattr(expected, name), name
    np.testing.assert_array_equal(found.vectors, expected.vectors)


@needs_milvus
def test_reads_what_it_wrote(uri):
    index = shop()
    assert_same(write_milvus(index, uri).read(), index)
    stored = MilvusIndex(uri)
    assert stored.about == index.about and stored.kind == "flat" and stored.num_pictures == 60
    own = [row for row, gallery in enumerate(index.gallery_ids) if gallery == GALLERIES[1]]
    part = stored.read(GALLERIES[1])
    assert_same(part, index.take(own))
    assert set(part.centers) == {GALLERIES[1], None}
    np.testing.assert_allclose(part.centers[GALLERIES[1]], center(index.vectors, np.array(own)), atol=1e-7)
    np.testing.assert_allclose(part.centers[None], center(index.vectors, np.arange(60)), atol=1e-7)


@needs_milvus
@pytest.mark.parametrize("gallery", [None, *GALLERIES])
@pytest.mark.parametrize(
    "where", [None, {"COLOR": "rot"}, {"color": ["rot", COLORS[2]], "Color": "blau"}, {"color": "rot", "price": "44"}]
)
def test_finds_what_exact_search_finds(uri, gallery, where):
    index = shop()
    stored = write_milvus(index, uri)
    queries = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    products: dict = {}
    for row, names in enumerate(zip(index.gallery_ids, index.product_ids, strict=True)):
        products.setdefault(names, []).append(row)
    meets = np.zeros(60, bool)
    for (own, _), rows in products.items():
        merged: dict = {}
        for row in rows:
            for name, value in index.fields[row].items():
                merged[name.lower()] = merged.get(name.lower()) or value
        wanted: dict = {}
        for name, values in (where or {}).items():
            wanted.setdefault(name.lower(), []).extend([values] if isinstance(values, str) else values)
        meets[rows] = own == gallery or gallery is None
        meets[rows] &= all(merged.get(name) in values for name, values in wanted.items())
    keys = list(keys_of(index))
    scores = np.where(meets, queries @ index.vectors.T, -np.inf)
    for own, hits in zip(scores, stored.search(queries, 7, gallery=gallery, where=where), strict=True):
        best = np.argsort(-own)[: min(7, meets.sum())]
        assert [hit.key for hit in hits] == [keys[row] for row in best]
        np.testing.assert_allclose([hit.score for hit in hits], own[best], atol=1e-6)
        assert [hit.product for hit in hits] == [key_of(index.gallery_ids[r], index.product_ids[r]) for r in best]


@needs_milvus
def test_smaller_vectors_keep_their_projection(uri, caplog):
    caplog.set_level("INFO")
    index = make_smaller(shop(), 5)
    stored = write_milvus(index, uri)
    np.testing.assert_array_equal(stored.projection, index.projection)
    assert_same(stored.read(GALLERIES[0]), index.take([row for row in range(60) if not index.gallery_ids[row]]))
    np.testing.assert_array_equal(stored.read().projection, index.projection)
    write_milvus(index, uri)
    assert "60 pictures, of which 0 are written, and 0 removed" in caplog.text
    assert MilvusIndex(uri).projection is not None
    caplog.clear()
    assert write_milvus(shop(), uri).projection is None
    assert "60 pictures, of which 60 are written, and 0 removed" in caplog.text


@needs_milvus
def test_conditions_are_met_in_either_normal_form(uri):
    index = shop()
    fields = [{unicodedata.normalize("NFD", "Größe"): unicodedata.normalize("NFD", "groß, grün")}, *index.fields[1:]]
    stored = write_milvus(dataclasses.replace(index, fields=fields), uri)
    for form in ("NFC", "NFD"):
        where = {unicodedata.normalize(form, "größe"): unicodedata.normalize(form, "groß, grün")}
        [hits] = stored.search(index.vectors[:1], 60, where=where)
        assert hits[0].key == next(iter(keys_of(index)))
        assert {hit.product for hit in hits} == {key_of(index.gallery_ids[0], index.product_ids[0])}


@needs_milvus
def test_takes_products_with_all_their_pictures(uri):
    index = shop()
    product = index.gallery_ids[30], index.product_ids[30]
    rows = [row for row in range(60) if (index.gallery_ids[row], index.product_ids[row]) == product]
    assert len(rows) == 2
    stored = write_milvus(index, uri)
    assert_same(stored.take([key_of(*product), key_of(*product)]), index.take(rows))
    assert stored.take([]).vectors.shape == (0, 16)
    assert stored.first().num_products == 1


@needs_milvus
def test_only_what_has_changed_is_written(uri, caplog):
    caplog.set_level("INFO")
    index = shop()
    write_milvus(index, uri)
    assert "60 pictures, of which 60 are written, and 0 removed" in caplog.text
    write_milvus(index, uri)
    assert "60 pictures, of which 0 are written, and 0 removed" in caplog.text
    vectors = index.vectors.copy()
    vectors[3] = -vectors[3]
    titles = [*index.titles[:-1], "new"]
    changed = dataclasses.replace(index, vectors=vectors, titles=titles).take([row for row in range(60) if row != 9])
    stored = write_milvus(changed, uri)
    assert "59 pictures, of which 2 are written, and 1 removed" in caplog.text
    assert_same(stored.read(), changed)
    np.testing.assert_allclose(
        stored.read().centers[None], center(changed.vectors, np.arange(59)), atol=1e-7, err_msg="galleries follow"
    )
    without = changed.take([row for row in range(59) if changed.gallery_ids[row] != ""])
    with pytest.raises(DataError, match="found no gallery ''"):
        write_milvus(without, uri).read("")


@needs_milvus
def test_a_copy_that_was_stopped_has_the_mean_of_each_gallery_with_pictures(uri, monkeypatch):
    index = shop()
    write_milvus(index.take([row for row in range(60) if index.gallery_ids[row] != "直播"]), uri)
    written = []

    def stop(client, collection, rows):
        upsert(client, collection, rows)
        written.append(collection)
        if collection == "rice" and rows:
            raise KeyboardInterrupt

    upsert = milvus_copy._upsert
    monkeypatch.setattr(milvus_copy, "_upsert", stop)
    with pytest.raises(KeyboardInterrupt):
        write_milvus(index, uri)
    assert written == [milvus.galleries_of("rice"), "rice"]
    found = MilvusIndex(uri).read("直播")
    assert "直播" in found.gallery_ids
    np.testing.assert_allclose(
        found.centers["直播"],
        index.take([r for r in range(60) if index.gallery_ids[r] == "直播"]).vectors.mean(axis=0),
        atol=1e-6,
    )
    monkeypatch.setattr(milvus_copy, "_upsert", upsert)
    assert_same(write_milvus(index, uri).read(), index)


@needs_milvus
def test_another_model_or_kind_replaces_the_index(uri, caplog):
    caplog.set_level("INFO")
    index = shop()
    write_milvus(index, uri)
    other = dataclasses.replace(index.take([0, 1]), about=dataclasses.replace(index.about, fingerprint="e" * 64))
    stored = write_milvus(other, uri)
    assert "2 pictures, of which 2 are written, and 0 removed" in caplog.text
    assert_same(stored.read(), other)
    assert write_milvus(other, uri, kind="hnsw").kind == MilvusIndex(uri).kind == "hnsw"
    assert_same(MilvusIndex(uri).read(), other)


@needs_milvus
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_tells_its_recall(uri, caplog, kind):
    caplog.set_level("INFO")
    stored = write_milvus(shop(120), uri, kind=kind)
    assert f"{uri}: {kind} finds 100.0% of the first 10 of exact search, with 120 pictures as queries" in caplog.text
    assert len(stored.search(shop().vectors[:1], 20)[0]) == 20


@needs_milvus
def test_two_collections_do_not_mix(uri):
    one, other = shop(), shop().take([0, 1])
    write_milvus(one, uri, name="one")
    write_milvus(other, uri, name="other")
    assert_same(MilvusIndex(uri, "one").read(), one)
    assert_same(MilvusIndex(uri, "other").read(), other)


@needs_milvus
def test_what_is_wrong_is_said(uri):
    with pytest.raises(FileNotFoundError, match="found no index 'rice' in Milvus; make one: rice index PICTURES"):
        MilvusIndex(uri)
    with pytest.raises(DataError, match="found no pictures in the index, expected at least one"):
        write_milvus(shop().take([]), uri)
    stored = write_milvus(shop(), uri)
    query = shop().vectors[:1]
    with pytest.raises(DataError, match="found no gallery 'c'"):
        stored.search(query, 1, gallery="c")
    with pytest.raises(DataError, match="found no column 'size' in the index; its further columns are: 'Color', 'pri"):
        stored.search(query, 1, where={"size": "L"})
    with pytest.raises(DataError, match="limit: found 16385, expected 1 to 16384 pictures"):
        stored.search(query, 16385)
    assert stored.search(query, 1, where={"color": "pink"}) == [[]]


@needs_milvus
def test_errors_of_milvus_are_one_line(uri):
    stored = write_milvus(shop(), uri)
    with pytest.raises(OSError, match=r"shop.db: Milvus refuses: .+"):
        stored.search(np.zeros((1, 15), np.float32), 1)


@needs_milvus
def test_the_command_copies_an_index(uri, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(update, "build_index", lambda *_, **__: None)
    monkeypatch.setattr(compilation, "keep_compiled", lambda: None)
    write_index(tmp_path / "shop", shop())
    command = ["index", "pictures", f"--out={tmp_path / 'shop'}", "--store=milvus", f"--uri={uri}"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--kind=hnsw", "--collection=mine"])
    assert not stop.value.code
    assert capsys.readouterr().out == f"{tmp_path / 'shop' / 'index.parquet'}\n"
    stored = MilvusIndex(uri, "mine")
    assert stored.kind == "hnsw"
    assert_same(stored.read(), shop())


def test_milvus_is_optional(uri, monkeypatch):
    monkeypatch.setattr(milvus.importlib.util, "find_spec", lambda _: None)
    message = r"ConfigError: --store=milvus: pymilvus is not installed; pip install 'rice-jax\[milvus\]'"
    with pytest.raises(ConfigError, match=message.partition(" ")[2]):
        write_milvus(shop(), uri)
    monkeypatch.setattr(update, "build_index", lambda *_, **__: pytest.fail("pictures are embedded in vain"))
    monkeypatch.setattr(compilation, "keep_compiled", lambda: None)
    with pytest.raises(SystemExit, match=message):
        cli.main(["index", "pictures", "--out=shop", "--store=milvus", f"--uri={uri}"])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--store=milvus"], "expected --store=milvus and --uri together"),
        (["--uri=shop.db"], "expected --store=milvus and --uri together"),
        (["--kind=hnsw"], "expected --kind only with --export or --store"),
    ],
)
def test_flags_that_belong_together(flags, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["index", "pictures", "--out=shop", *flags])
    assert message in capsys.readouterr().err

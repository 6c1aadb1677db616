"""Products that look alike, and pictures that are near to everything."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from rice_jax.index import similar
from rice_jax.index.similar import Hub, Pair, alike, near_to_everything, report_similar
from tests.index.test_store import make_index

NUM = 40


def index_of(vectors, products=None, galleries=None, images=None):
    num = len(vectors)
    names = [f"p{row}" for row in range(num)]
    return dataclasses.replace(
        make_index(num, with_queries=False),
        vectors=np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)),
        image_ids=images or names,
        product_ids=products or names,
        gallery_ids=galleries or [""] * num,
    )


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(NUM, 64))


@pytest.mark.parametrize("block", [3, 1024])
def test_alike(vectors, monkeypatch, block):
    monkeypatch.setattr(similar, "BLOCK", block)
    assert alike(index_of(vectors)) == []
    vectors[7] = vectors[3] + 0.05 * vectors[20]
    vectors[9], vectors[11] = 2 * vectors[3], vectors[30]
    index = index_of(vectors)
    cosines = index.vectors @ index.vectors.T
    first, second, third = alike(index)
    assert {first[2:], second[2:]} == {("p11", "p30"), ("p3", "p9")} and first.cosine == pytest.approx(1, abs=1e-6)
    assert third.product == "p7" and third.other in ("p3", "p9") and third.cosine == pytest.approx(cosines[3, 7])
    assert 0.98 < third.cosine < 0.9999
    assert alike(index, least=0.9999) == [first, second]
    one = [f"p{3 if row in (7, 9) else row}" for row in range(NUM)]
    assert alike(index_of(vectors, products=one)) == [Pair(first.cosine, "", "p11", "p30")], "one product's pictures"
    halves = ["a" if row < 10 else "b" for row in range(NUM)]
    best = alike(index_of(vectors, galleries=["c", *halves[1:]]))[:2]  # of equal cosines, but for the last bits
    assert {pair[1:] for pair in best} == {("a", "p3", "p9"), ("b", "p11", "p30")}
    apart = ["a" if row % 2 else "b" for row in range(NUM)]
    assert all(pair.product != "p11" for pair in alike(index_of(vectors, galleries=apart))), "each gallery by itself"


def test_large_galleries_are_left_out_and_named(vectors, monkeypatch, caplog):
    monkeypatch.setattr(similar, "MOST_PICTURES", NUM - 1)
    vectors[1] = vectors[0]
    with caplog.at_level(logging.INFO, "rice_jax"):
        assert alike(index_of(vectors)) == []
    assert f"gallery '' has {NUM} pictures, too many" in caplog.text


def test_near_to_everything(vectors):
    assert near_to_everything(index_of(vectors)) == []
    vectors[5] = vectors.sum(axis=0)
    index = index_of(vectors, products=[f"p{row // 2}" for row in range(NUM)])
    others = np.delete(np.arange(NUM), [4, 5])
    [hub] = near_to_everything(index)
    assert hub == Hub(pytest.approx((index.vectors[others] @ index.vectors[5]).mean(), abs=1e-6), "", "p5")
    few = [str(row // 10) for row in range(NUM)]
    assert near_to_everything(index_of(vectors, galleries=few)) == [], "too few pictures to tell"
    same = np.ones((NUM, 64))
    assert near_to_everything(index_of(same)) == [] and near_to_everything(index_of(same, products=["p"] * NUM)) == []


def test_what_the_log_says(vectors, caplog):
    report_similar(Path("shop"), index_of(vectors))
    assert not caplog.text
    vectors[10:22] = np.repeat(vectors[0:6], 2, axis=0) + 1e-3 * vectors[10:22]
    vectors[39] = vectors.sum(axis=0)
    index = index_of(vectors, galleries=["x"] * NUM)
    report_similar(Path("shop"), index)
    pairs = alike(index)
    alike_line, hub_line = (record.getMessage() for record in caplog.records)
    assert alike_line.startswith("shop: 18 products look like another one, and may be taken for it: 'p")
    assert f"{pairs[0].product!r} of gallery 'x' and {pairs[0].other!r} to 1.00, " in alike_line
    assert f", and {len(pairs) - 5} more. If they are one product" in alike_line
    assert hub_line.startswith(
        "shop: 1 picture is near to all others, and their products may be named too often: 'p39'"
    )
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_an_index_reports_it(made, caplog):
    path = made.pictures.parent / "shop.csv"
    path.write_text("id,path\na,pictures/a.jpg\nagain,pictures/a.jpg\n")
    made.update(path)
    assert "2 products look like another one, and may be taken for it: 'a' and 'again' to 1.00. If" in caplog.text

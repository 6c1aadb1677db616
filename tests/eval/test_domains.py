"""Comparing domains: against loops over all pairs of items, on random embeddings."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from rice_jax.eval import metrics
from rice_jax.eval.domains import DomainResult, exemplars, rank_domains
from rice_jax.eval.results import Row, read_results, write_results
from rice_jax.input.items import Items
from rice_jax.pages import tables

NAMES = ("rope/pages", "rope/videos", "rope/lives")
PAIRS = ["pages to videos", "pages to lives", "videos to pages", "videos to lives", "lives to pages", "lives to videos"]


def make(seed: int = 0, num_products: int = 12) -> tuple[dict[str, Items], dict[str, np.ndarray]]:
    """Three domains of 17, 23 and 20 items; every domain lacks products that the others have."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_products, 8))
    items, embeddings = {}, {}
    for place, (name, count) in enumerate(zip(NAMES, (17, 23, 20), strict=True)):
        products = np.delete(np.arange(num_products), [place, place + 3])
        drawn = [*products, *rng.choice(products, count - len(products))]
        numbers = rng.permutation(np.arange(90, 90 + count))  # of two digits and of three
        items[name] = Items([str(n) for n in numbers], [f"p{product}" for product in drawn], [])
        vectors = centers[drawn] + rng.normal(size=(count, 8))
        embeddings[name] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return items, embeddings


def _one_gallery(size: int) -> metrics.Galleries:
    return metrics.Galleries(num=1, min_size=size, mean_size=float(size), max_size=size)


def test_retrieval_is_that_of_a_loop():
    items, embeddings = make()
    result = rank_domains(items, embeddings).score()
    assert list(result.retrieval) == list(result.one_shot) == PAIRS
    for (a, b), pair in zip(itertools.permutations(NAMES, 2), PAIRS, strict=True):
        hits, asked = np.zeros(3), 0
        for row, product in enumerate(items[a].product_ids):
            if product not in items[b].product_ids:
                continue
            asked += 1
            order = np.argsort(-(embeddings[b] @ embeddings[a][row]))
            found = [items[b].product_ids[place] == product for place in order]
            hits += [any(found[:k]) for k in (1, 5, 10)]
        score = result.retrieval[pair].score
        assert score.num_queries == asked < len(items[a].item_ids)
        np.testing.assert_allclose([score.rank[f"rank-{k}"] for k in (1, 5, 10)], hits / asked)
        assert result.retrieval[pair].num_without_truth == len(items[a].item_ids) - asked
        assert result.retrieval[pair].galleries == _one_gallery(len(items[b].item_ids))
        assert result.retrieval[pair].num_missing == 0


def test_classification_takes_the_product_of_the_nearest_exemplar():
    items, embeddings = make(1)
    result = rank_domains(items, embeddings).score()
    for (a, b), pair in zip(itertools.permutations(NAMES, 2), PAIRS, strict=True):
        labeled = {}
        for row, (item, product) in enumerate(zip(items[b].item_ids, items[b].product_ids, strict=True)):
            if product not in labeled or int(item) < int(items[b].item_ids[labeled[product]]):
                labeled[product] = row
        known = [row for row, product in enumerate(items[a].product_ids) if product in labeled]
        right = 0
        for row in known:
            scores = {product: embeddings[b][other] @ embeddings[a][row] for product, other in labeled.items()}
            right += max(scores, key=scores.get) == items[a].product_ids[row]
        score = result.one_shot[pair].score
        assert score.rank == {"rank-1": pytest.approx(right / len(known))}
        assert score.chance == {"rank-1": pytest.approx(1 / len(labeled))}
        assert score.num_queries == len(known)
        assert result.one_shot[pair].galleries.max_size == len(labeled)


def test_an_exemplar_is_the_lowest_item_by_number():
    assert exemplars(Items(["100", "99", "7", "20", "3"], ["a", "a", "b", "c", "c"], [])) == [1, 2, 4]


def test_what_the_builder_left_out_is_a_miss():
    items, embeddings = make(2)
    a, b = NAMES[:2]
    whole = rank_domains(items, embeddings).score()
    # An item of the first domain that cannot be read, one whose product the second lacks, and the second's only items
    # of a product that the first has.
    common = next(product for product in items[a].product_ids if product in items[b].product_ids)
    alone = next(product for product in items[a].product_ids if product not in items[b].product_ids)
    lost = next(p for p in items[a].product_ids if p in items[b].product_ids and p != common)
    kept = [row for row, product in enumerate(items[b].product_ids) if product != lost]
    items[a] = items[a]._replace(skipped=[common, alone])
    items[b] = Items([items[b].item_ids[r] for r in kept], [items[b].product_ids[r] for r in kept], [lost])
    embeddings[b] = embeddings[b][kept]
    result = rank_domains(items, embeddings).score()
    seekers = items[a].product_ids.count(lost)
    for before, after in (
        (whole.retrieval[PAIRS[0]], result.retrieval[PAIRS[0]]),
        (whole.one_shot[PAIRS[0]], result.one_shot[PAIRS[0]]),
    ):
        assert after.score.num_queries == before.score.num_queries + 1
        assert after.num_missing == 1 + seekers
        assert after.num_without_truth == before.num_without_truth + 1


def test_equal_embeddings_never_help():
    items = {name: Items(["1", "2"], ["a", "b"], []) for name in NAMES}
    same = {name: np.full((2, 4), 0.5, np.float32) for name in NAMES}
    result = rank_domains(items, same).score()
    assert all(of.score.rank["rank-1"] == 0 for of in (*result.retrieval.values(), *result.one_shot.values()))


def test_domains_that_share_no_product():
    items, embeddings = make()
    items[NAMES[1]] = items[NAMES[1]]._replace(product_ids=[f"other {p}" for p in items[NAMES[1]].product_ids])
    with pytest.raises(
        ValueError,
        match="found no item of the pages whose product is among the videos, expected domains that share products",
    ):
        rank_domains(items, embeddings).score()


def test_names_that_would_be_alike_stay_whole():
    items, embeddings = make()
    named = [{"a/pages": of[NAMES[0]], "b/pages": of[NAMES[1]]} for of in (items, embeddings)]
    assert list(rank_domains(*named).retrieval) == ["a/pages to b/pages", "b/pages to a/pages"]


def test_results_are_written_read_and_shown(tmp_path):
    result = rank_domains(*make()).score()
    path = tmp_path / "results.json"
    write_results(path, {Row(0): result}, {"step": 0})
    [row] = json.loads(path.read_text())["results"]
    assert row["step"] == 0 and row["one_shot"].keys() == set(PAIRS)
    assert read_results(path, DomainResult) == {Row(0): result}
    lines = tables.domain_tables(result).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert " ".join(lines[2].split()) == "queries gallery rank-1 rank-5 rank-10 rank-1 / chance without truth"
    first = result.retrieval[PAIRS[0]]
    queries, size, *_, without = lines[4].removeprefix("pages to videos").split()
    assert [int(queries), int(size), int(without)] == [first.score.num_queries, 23, first.num_without_truth]
    assert len([line for line in lines if line.startswith("lives to pages ")]) == 3
    missing = dataclasses.replace(first, num_missing=1234, num_without_truth=0)
    assert tables.gallery_table({"x": missing}).splitlines()[0].endswith("rank-1 / chance  not ranked")
    assert tables.gallery_table({"x": missing}).endswith("1,234")

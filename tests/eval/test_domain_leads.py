"""Differences between runs on the same items of domains."""

import json

import numpy as np
import pytest

from rice_jax.eval import domain_leads
from rice_jax.eval.domain_leads import Asked, mean_lead, read_domain_run, require_same_queries
from rice_jax.input.items import Items
from rice_jax.types import DataError
from tests.eval.test_domains import NAMES, PAIRS, make
from tests.pages.items import rank, write_run


def asked(hits, products, share=1.0):
    return Asked(tuple(map(str, range(len(hits)))), tuple(products), np.array(hits, float), share)


def test_the_lead_is_the_mean_over_pairs_of_unequal_size():
    products = [f"p{number % 30}" for number in range(90)]
    rng = np.random.default_rng(0)
    first, second = ([rng.integers(0, 2, num) for num in (90, 45)] for _ in range(2))
    runs, others = ([asked(hits, products[: len(hits)]) for hits in own] for own in (first, second))
    lead = mean_lead(runs, others)
    expected = np.mean([np.mean(a) - np.mean(b) for a, b in zip(first, second, strict=True)])
    assert lead.mean == pytest.approx(expected) and lead.low < lead.mean < lead.high and lead.over == "products"
    swapped = mean_lead(others, runs)
    assert (swapped.mean, swapped.low, swapped.high) == pytest.approx((-lead.mean, -lead.high, -lead.low), abs=0.02)
    assert mean_lead(runs, runs)[:3] == (0, 0, 0)


def test_queries_of_a_product_are_drawn_together():
    products = np.repeat([f"p{number}" for number in range(25)], 20)
    right = np.repeat(np.arange(25) % 2, 20)  # all of a product are right or wrong
    run, other = asked(right, products), asked(np.zeros(500), products)
    lead = mean_lead([run], [other])
    assert lead.mean == pytest.approx(12 / 25)
    # The standard error of 25 products, not of 500 queries.
    error = np.sqrt(0.48 * 0.52 / 25)
    assert lead.high - lead.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    alone = asked(right, [str(number) for number in range(500)])
    narrow = mean_lead([alone], [other])
    assert narrow.high - narrow.low < 0.3 * (lead.high - lead.low)


def test_queries_that_were_not_ranked_are_misses_in_both_runs():
    products = [str(number) for number in range(40)]
    whole = mean_lead([asked([1] * 40, products)], [asked([0] * 40, products)])
    half = mean_lead([asked([1] * 40, products, 0.5)], [asked([0] * 40, products, 0.5)])
    assert (whole.mean, half.mean) == (1, 0.5)


def test_a_run_is_read_back(tmp_path):
    items, _ = make()
    items = {name: Items(own.item_ids, [product[1:] for product in own.product_ids], []) for name, own in items.items()}
    ranked = rank(items)
    run = read_domain_run(write_run(tmp_path, ranked))
    found = run.asked()
    assert list(found) == [(task, pair) for task in ("retrieval", "one_shot") for pair in PAIRS]
    for (task, pair), of_pair in found.items():
        score = getattr(run.results[run.row], task)[pair].score
        assert of_pair.hits.mean() * of_pair.share == pytest.approx(score.rank["rank-1"])
        own = getattr(ranked, task)[pair]
        assert (of_pair.queries, of_pair.products) == (own.ranking.query_ids, own.products)
    require_same_queries({"first": found, "second": found})
    other = {pair: of_pair._replace(queries=of_pair.queries[::-1]) for pair, of_pair in found.items()}
    with pytest.raises(DataError, match="^second: found other queries than in first, expected the same"):
        require_same_queries({"first": found, "second": other})


def test_what_is_no_run_between_domains(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results.json: not found; expected a run that has been evaluated"):
        read_domain_run(tmp_path)
    items, _ = make()
    items = {name: own._replace(product_ids=[p[1:] for p in own.product_ids]) for name, own in items.items()}
    write_run(tmp_path, rank(items))
    path = tmp_path / domain_leads.RANKINGS
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "pair"}) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"found no results between domains \(KeyError\('pair'\) is missing\)"):
        read_domain_run(tmp_path)


@pytest.mark.parametrize(("num_products", "over"), [(19, "queries"), (20, "products")])
def test_intervals_of_results_are_over_products_unless_they_are_few(num_products, over):
    numbers = [str(number) for number in range(2 * num_products)]
    items = {name: Items(numbers, [str(int(number) // 2) for number in numbers], []) for name in NAMES}
    result = rank(items).score()
    for of_pair in (*result.retrieval.values(), *result.one_shot.values()):
        assert of_pair.score.interval_over == over

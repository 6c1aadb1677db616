import dataclasses
import unicodedata

import pytest

from rice_jax.eval import metrics
from rice_jax.pages import tables
from tests.eval.evaluations import evaluation


def _columns(line):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def test_table_says_who_was_asked_and_what_chance_gets():
    galleries = metrics.Galleries(num=2, min_size=20, mean_size=30.0, max_size=40)
    chance = {"rank-1": 0.0375, "rank-5": 0.1875}
    before, after = (
        metrics.Result(metrics.Score(1200, {"rank-1": r1, "rank-5": r5}, chance), 0, galleries, {}, {})
        for r1, r5 in [(0.1, 0.4), (0.45, 1.0)]
    )
    assert tables.table({"before training": before, "after 300 steps": after}).splitlines() == [
        "1,200 queries; 2 galleries of 20-40 products (mean 30.0)",
        "",
        "                 rank-1   rank-5  rank-1 / chance",
        "-------------------------------------------------",
        "chance            3.8 %   18.8 %",
        "before training  10.0 %   40.0 %            2.7 x",
        "after 300 steps  45.0 %  100.0 %           12.0 x",
    ]


def test_table_shows_the_seconds_that_were_measured():
    _, result = evaluation()
    timed = dataclasses.replace(result, seconds=1234.56)
    header, _, *rows = tables.table({"before": result, "after": timed}).splitlines()[2:7]
    assert header.endswith("rank-1 / chance  seconds") and rows[-1].endswith(" x  1,234.6")
    assert all(len(row) < len(rows[-1]) - 7 for row in rows[:-1]), "chance and what was not measured have none"


def test_table_has_a_block_for_the_order():
    _, result = evaluation()
    old = dataclasses.replace(result, score=dataclasses.replace(result.score, order={}))
    title, _, rank, _, *_, blank, order, rule, chance, first, second = tables.table({"a": old, "b": result}).split("\n")
    assert rank.split()[0] == "rank-1" and blank == "" and set(rule) == {"-"} and first == "a"
    assert order.split() == ["mAP", "MRR", "nDCG@10"]
    means = result.score.order.values()
    assert chance.split() == ["chance", *(part for mean in means for part in (f"{100 * mean.chance:.1f}", "%"))]
    assert second.split() == ["b", *(part for mean in means for part in (f"{100 * mean.mean:.1f}", "%"))]


def test_tables_are_narrow_and_aligned():
    _, result = evaluation()
    results = {"before": result, "名" * 60: result}
    assert max(map(_columns, tables.order_table(results).splitlines())) <= 100
    for text in (tables.table(results), tables.subset_table(result)):
        lines = text.splitlines()
        assert max(map(_columns, lines)) <= 100
        ends = [_columns(line) for line in lines if line.endswith(" x")]
        assert len(ends) > 1 and len(set(ends)) == 1
        assert not any(line != line.rstrip() for line in lines)


def test_table_tells_missing_queries():
    _, result = evaluation()
    assert tables.table({"a": result}).startswith("62 queries, 2 not ranked: misses; 3 galleries of 22-38 products")


def test_table_refuses_rows_of_other_queries():
    with pytest.raises(ValueError, match="Row 'other' is of 42 queries.*row 'mine' of 62 queries"):
        tables.table({"mine": evaluation()[1], "other": evaluation(num_queries=40)[1]})


def test_subset_table_counts_queries():
    _, result = evaluation()
    lines = tables.subset_table(result).splitlines()
    small = result.subsets["scale"]["small"]
    [row] = [line.split() for line in lines if line.startswith("  small")]
    assert row[:4] == ["small", str(small.num_queries), f"{100 * small.rank['rank-1']:.1f}", "%"]
    [unknown] = [line for line in lines if "unknown" in line]
    assert unknown.split()[-1] == str(result.num_unknown["scale"])
    assert tables.subset_table(evaluation(labels=False)[1]) == ""

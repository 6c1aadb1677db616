import dataclasses
import json
import unicodedata

import numpy as np
import pytest

from rice_jax.eval import metrics, ranking
from rice_jax.eval.results import read_results, write_rankings, write_results
from rice_jax.pages import tables


def _evaluate(seed=0, num_queries=60, labels=True):
    rng = np.random.default_rng(seed)
    sizes = rng.choice([22, 30, 38], num_queries) if num_queries == 60 else np.full(num_queries, 30)
    ranked = ranking.Ranking(
        query_ids=tuple(f"q{i}" for i in range(num_queries)),
        gallery_ids=tuple(f"g{size}" for size in sizes),
        rank=rng.integers(1, 23, num_queries),
        gallery_size=sizes,
        num_truths=np.ones(num_queries, np.int64),
        truths=(("皮带",),) * num_queries,
        top=((("皮带", 0.5), ("b", 0.25)),) * num_queries,
    )
    values = {
        "scale": rng.choice(["small", "medium", "large", ""], num_queries).tolist(),
        "category": rng.choice(["女装", "bags", "a very long name of a category that no table can hold"], num_queries),
    }
    labels = {label: list(map(str, v)) for label, v in values.items()} if labels else None
    return ranked, metrics.evaluate(ranked, num_queries=num_queries + 2, labels=labels)


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
        "1,200 queries; 2 galleries of 20-40 images (mean 30.0)",
        "",
        "                 rank-1   rank-5  rank-1 / chance",
        "-------------------------------------------------",
        "chance            3.8 %   18.8 %",
        "before training  10.0 %   40.0 %            2.7 x",
        "after 300 steps  45.0 %  100.0 %           12.0 x",
    ]


def test_table_shows_the_seconds_that_were_measured():
    _, result = _evaluate()
    timed = dataclasses.replace(result, seconds=1234.56)
    header, _, *rows = tables.table({"before": result, "after": timed}).splitlines()[2:]
    assert header.endswith("rank-1 / chance  seconds") and rows[-1].endswith(" x  1,234.6")
    assert all(len(row) < len(rows[-1]) - 7 for row in rows[:-1]), "chance and what was not measured have none"


def test_tables_are_narrow_and_aligned():
    _, result = _evaluate()
    for text in (tables.table({"before": result, "名" * 60: result}), tables.subset_table(result)):
        lines = text.splitlines()
        assert max(map(_columns, lines)) <= 100
        ends = [_columns(line) for line in lines if line.endswith(" x")]
        assert len(ends) > 1 and len(set(ends)) == 1
        assert not any(line != line.rstrip() for line in lines)


def test_table_tells_missing_queries():
    _, result = _evaluate()
    assert tables.table({"a": result}).startswith("62 queries, 2 not ranked: misses; 3 galleries of 22-38 images")


def test_table_refuses_rows_of_other_queries():
    with pytest.raises(ValueError, match="Row 'other' is of 42 queries.*row 'mine' of 62 queries"):
        tables.table({"mine": _evaluate()[1], "other": _evaluate(num_queries=40)[1]})


def test_subset_table_counts_queries():
    _, result = _evaluate()
    lines = tables.subset_table(result).splitlines()
    small = result.subsets["scale"]["small"]
    [row] = [line.split() for line in lines if line.startswith("  small")]
    assert row[:4] == ["small", str(small.num_queries), f"{100 * small.rank['rank-1']:.1f}", "%"]
    [unknown] = [line for line in lines if "unknown" in line]
    assert unknown.split()[-1] == str(result.num_unknown["scale"])
    assert tables.subset_table(_evaluate(labels=False)[1]) == ""


def test_results_come_back(tmp_path):
    path = tmp_path / "deep" / "results.json"
    results = {"before": _evaluate(0)[1], "after": dataclasses.replace(_evaluate(1)[1], seconds=2.5)}
    write_results(path, {})
    write_results(path, results, about={"step": 300})
    assert read_results(path) == results
    assert json.loads(path.read_text())["about"] == {"step": 300}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    path.write_text(path.read_text().replace('"seconds": null', '"older": true'))
    assert read_results(path) == results, "a file from before anything was measured"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"a": _evaluate()[1]})
    old = path.read_text()
    with pytest.raises(ValueError):
        write_results(path, {}, about={"loss": float("nan")})
    assert path.read_text() == old


def test_rankings_are_a_line_a_query(tmp_path):
    ranked, _ = _evaluate()
    write_rankings(tmp_path / "rankings.jsonl", ranked)
    lines = [json.loads(line) for line in (tmp_path / "rankings.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == list(ranked.query_ids)
    assert [line["rank"] for line in lines] == ranked.rank.tolist()
    assert lines[0]["top"] == [["皮带", 0.5], ["b", 0.25]]
    assert lines[0]["truths"] == ["皮带"]

"""The tables of the ablation: rankings of one evaluation are told apart, and rows are paired by query."""

import dataclasses

import numpy as np
import pytest

from rice_jax.eval.results import Row, write_rankings, write_results
from scripts import ablation_table
from tests.eval.evaluations import evaluation

RANKED, RESULT = evaluation()  # 60 queries in three galleries, and two that could not be ranked
SCALES = ["small"] * 20 + ["large"] * 40


def write_run(place, **first):
    """An evaluation with rankings of which the first queries are right; the last ranking is the newest."""
    rows = {Row(30, ranking, 40 * (ranking != "embedding")): number for ranking, number in first.items()}
    *_, newest = rows
    write_results(place / "results.json", dict.fromkeys(rows, RESULT), {"rankings": dataclasses.asdict(newest)})
    for row, number in rows.items():
        ranks = tuple((rank,) for rank in [1] * number + [22] * (60 - number))
        name = "rankings.jsonl" if row == newest else f"rankings_{row.ranking}.jsonl"
        write_rankings(place / name, dataclasses.replace(RANKED, truth_ranks=ranks))
    (place / "report.html").touch()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    labels = [
        {"clip_id": query.encode(), "scale": scale.encode(), "number": b"few"}
        for query, scale in zip(RANKED.query_ids, SCALES, strict=True)
    ]
    monkeypatch.setattr(ablation_table, "Source", lambda *arguments: labels)
    write_run(tmp_path / "shipped", embedding=6)
    write_run(tmp_path / "icl-0" / "eval-a", embedding=12)
    write_run(tmp_path / "icl-1" / "eval-a", embedding=24)
    write_run(tmp_path / "pmd-1" / "eval-a", embedding=18, match=3, weighted_match=30)
    (tmp_path / "pfr-0" / "checkpoints").mkdir(parents=True)  # has not been evaluated yet
    return tmp_path


def tables(directory, capsys):
    """The lines of each table, as cells."""
    ablation_table.main([str(directory), "--data_dir=built"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    parts = [[]]
    for line in lines:
        if line.startswith(("Minus", "Rank-1 by")):
            parts.append([])
        parts[-1].append([cell.strip() for cell in line.split("  ") if cell.strip()])
    return parts


def test_rank_k(runs, capsys):
    ranks, *_ = tables(runs, capsys)
    assert ranks[0] == ["62 queries of 1 products; percent"]
    found = {row[0]: row[1:] for row in ranks if row}
    assert found["before training"] == ["9.7", "9.7", "9.7"]  # 6 of 62
    # Of 12 / 62 and 24 / 62 the mean is 29.0 %, and the sample's standard deviation 13.7.
    assert found["ICL"] == ["0 1", "29.0 ±13.7", "29.0 ±13.7", "29.0 ±13.7"]
    assert [found[name][1] for name in ("ICL + PMD", "… matched", "… by both")] == ["29.0", "4.8", "48.4"]
    assert "ICL + PMD + PFR" not in found


def test_differences_are_of_the_same_seeds(runs, capsys):
    _, differences, *_ = tables(runs, capsys)
    rows = [row[:2] for row in differences if row]
    assert rows[0] == ["Minus ICL with the same seeds"]
    found = [(name, cell.split()[0]) for name, cell in rows[3:]]
    assert found == [
        ("before training", "-19.4"),
        ("ICL + PMD", "-9.7"),
        ("… matched", "-33.9"),
        ("minus by embedding", "-24.2"),
        ("… by both", "+9.7"),
        ("minus by embedding", "+19.4"),
    ]
    low, high = rows[-1][1].partition("(")[2].rstrip(")").split(" to ")
    rng = np.random.default_rng(1)
    drawn = 100 * rng.binomial(62, 12 / 62, 100_000) / 62
    assert [float(low), float(high)] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1.7)  # one query


def test_subsets(runs, capsys):
    *_, scale, number = tables(runs, capsys)
    assert scale[0] == ["Rank-1 by the scale of the product, and minus ICL"]
    found = {row[0]: (row[1:], below) for row, below in zip(scale[1:], scale[2:], strict=False) if row}
    assert found["queries"][0] == ["40", "20"]  # large, small
    assert found["before training"][0] == ["0.0", "30.0"]
    assert found["ICL + PMD"][0] == ["0.0", "90.0"]
    assert [cell.split()[0] for cell in found["ICL + PMD"][1]] == ["-10.0", "-10.0"]
    assert number[2] == ["few"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: write_run(path / "icl-1" / "eval-b", embedding=1), "icl-1: found the evaluations eval-a, eval-b"),
        (lambda path: (path / "shipped" / "results.json").unlink(), "found no results of shipped and icl-SEED"),
    ],
)
def test_runs_that_cannot_be_compared(runs, change, message):
    change(runs)
    with pytest.raises(SystemExit, match=message):
        ablation_table.main([str(runs), "--data_dir=built"])

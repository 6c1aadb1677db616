"""The demo's table: the queries of each seed are paired with those of the untrained model."""

import dataclasses

import pytest

from rice_jax.eval.results import PIXELS, Row, write_rankings, write_results
from scripts import demo_table
from tests.eval.evaluations import evaluation

RANKED, RESULT = evaluation()  # 60 queries in three galleries, and two that could not be ranked


def write_run(place, step, first, ranked=RANKED):
    """An evaluation of which the first queries are right."""
    row = Row(step)
    write_results(place / "results.json", {PIXELS: RESULT, row: RESULT}, {"rankings": dataclasses.asdict(row)})
    ranks = tuple((rank,) for rank in [1] * first + [22] * (60 - first))
    write_rankings(place / "rankings.jsonl", dataclasses.replace(ranked, truth_ranks=ranks))


@pytest.fixture
def runs(tmp_path):
    for seed, before, after in ((0, 12, 18), (1, 24, 30)):
        write_run(tmp_path / f"start-{seed}", 0, before)
        write_run(tmp_path / f"demo-{seed}", 100, after)
    return tmp_path


def test_the_table(runs, capsys):
    demo_table.main([str(runs), "0", "1"])
    lines = {" ".join(line.split()[:-3]): line.split()[-3:] for line in capsys.readouterr().out.splitlines()[2:-1]}
    shares = {name: cells[0] for name, cells in lines.items()}
    # Of 62 queries, as two could not be ranked.
    assert shares["0: start"] == "19.4" and shares["0: after training"] == "29.0"
    assert shares["1: start"] == "38.7" and shares["1: after training"] == "48.4"
    assert shares["mean: start"] == "29.0" and shares["mean: after training"] == "38.7"
    assert shares["chance"] == f"{100 * RESULT.score.chance['rank-1']:.1f}"
    assert shares["mean: nearest raw pixels"] == f"{100 * RESULT.score.rank['rank-1']:.1f}"


def test_the_difference_is_that_of_the_same_queries(runs, capsys):
    demo_table.main([str(runs), "0", "1"])
    difference = capsys.readouterr().out.splitlines()[-1].split("  ")
    assert difference[0] == "difference"
    assert [cell.split()[0] for cell in difference[1:] if cell.strip()] == ["+9.7"] * 3


def test_other_queries_are_refused(runs):
    renamed = dataclasses.replace(RANKED, query_ids=tuple(f"other-{query}" for query in RANKED.query_ids))
    write_run(runs / "start-1", 0, 24, renamed)
    with pytest.raises(SystemExit, match="demo-1: found other queries than in start-1, expected these"):
        demo_table.main([str(runs), "0", "1"])


def test_a_missing_run_is_named(runs):
    with pytest.raises(SystemExit, match="start-2/results.json: is missing; run scripts/demo_table.sh with this seed"):
        demo_table.main([str(runs), "0", "2"])

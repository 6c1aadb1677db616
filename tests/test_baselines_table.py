"""The baselines: their settings resolve, rows are paired by query, and seeds are averaged."""

import dataclasses
import re

import numpy as np
import pytest

from rice_jax.config import load_config
from rice_jax.eval.results import PIXEL_RANKINGS, PIXELS, Row, write_rankings, write_results
from rice_jax.tasks import TASKS, resolve
from scripts import baselines_table
from scripts.baselines_table import FRESH, ROWS
from tests.eval.evaluations import evaluation
from tests.fixtures import ROOT

RANKED, RESULT = evaluation()  # 60 queries in three galleries, and two that could not be ranked
NUM_QUERIES = 62


def resolve_config(name, *arguments):
    return resolve(load_config(name, *arguments).to_dict())


def write_run(place, ranks, queries=RANKED, file="rankings.jsonl"):
    """An evaluation in which the first queries have these ranks, and the others the last place."""
    rank = np.array([*ranks, *[22] * (60 - len(ranks))])
    row = Row(30)
    write_results(place / "results.json", {PIXELS: RESULT, row: RESULT}, {"rankings": dataclasses.asdict(row)})
    write_rankings(place / file, dataclasses.replace(queries, truth_ranks=tuple((place,) for place in rank.tolist())))
    (place / "report.html").touch()


def write_runs(directory):
    write_run(directory / "shipped", [1] * 12)
    write_run(directory / "shipped", [1] * 3, file=PIXEL_RANKINGS)
    write_run(directory / "icl-0" / "eval-a", [1] * 12 + [4] * 6)
    write_run(directory / "icl-1" / "eval-a", [1] * 24)
    write_run(directory / "sgmn-1" / "eval-a", [1] * 24 + [10] * 6)
    (directory / "swin-0" / "checkpoints").mkdir(parents=True)  # has not been evaluated yet
    write_run(directory / "seam-0" / "eval-a", [1] * 60)
    (directory / "seam-0" / "eval-a" / "report.html").unlink()  # an evaluation that was killed before its end


def tables(directory, capsys):
    """{name: cells} of both tables, and the lines."""
    baselines_table.main([str(directory)])
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Minus"))
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return *({row[0]: row[1:] for row in part if row} for part in (rows[:start], rows[start:])), lines


def test_tables(tmp_path, capsys):
    write_runs(tmp_path)
    ranks, differences, lines = tables(tmp_path, capsys)
    assert lines[0] == "62 queries; percent" and max(map(len, lines)) <= 100
    # Of 12 / 62 and 24 / 62 the mean is 29.0 %, and the sample's standard deviation 13.7.
    assert ranks["RICE (ICL)"] == ["shipped", "0 1", "29.0 ±13.7", "33.9 ± 6.8", "33.9 ± 6.8"]
    assert ranks["SGMN, no graph loss"] == ["shipped", "1", "38.7", "38.7", "48.4"]
    assert ranks["RICE before training"] == ["shipped", "19.4", "19.4", "19.4"]
    assert ranks["nearest raw pixels"] == ["4.8", "4.8", "4.8"]  # 3 / 62
    assert ranks["chance"][0] == f"{100 * RESULT.score.chance['rank-1']:.1f}"
    assert not {"Swin, B-shaped", "RICE (ICL, PMD, PFR)"} & (ranks.keys() | differences.keys())


def test_differences_are_paired(tmp_path, capsys):
    write_runs(tmp_path)
    _, differences, _ = tables(tmp_path, capsys)
    assert "RICE (ICL)" not in differences
    equal, few = differences["SGMN, no graph loss"][0], differences["SGMN, no graph loss"][2]
    # Compared with ICL of the same seed, all first places are the same: drawing other queries changes nothing.
    assert equal == "+0.0 (+0.0 to +0.0)"
    mean, low, _, high = few.replace("(", "").replace(")", "").split()
    rng = np.random.default_rng(1)
    drawn = 100 * rng.binomial(NUM_QUERIES, 6 / NUM_QUERIES, 100_000) / NUM_QUERIES
    assert mean == "+9.7"
    assert [float(low), float(high)] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1.7)  # one query
    assert differences["RICE before training"][0].startswith("-9.7 (")
    assert differences["nearest raw pixels"][0].startswith("-24.2 (")
    chance = 100 * (RESULT.score.chance["rank-1"] - 18 / NUM_QUERIES)
    assert differences["chance"][0].startswith(f"{chance:+.1f} (")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: write_run(path / "icl-1" / "eval-b", []),
            "icl-1: found the evaluations eval-a, eval-b, exp",
        ),
        (
            lambda path: write_run(
                path / "sgmn-1" / "eval-a", [], dataclasses.replace(RANKED, query_ids=RANKED.query_ids[::-1])
            ),
            "sgmn-1: found other queries than in shipped, expected the same",
        ),
        (
            lambda path: (path / "shipped" / PIXEL_RANKINGS).unlink(),
            "found no results of shipped and icl-SEED, expected both",
        ),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path, change, message):
    write_runs(tmp_path)
    change(tmp_path)
    with pytest.raises(SystemExit, match=message):
        baselines_table.main([str(tmp_path)])


@pytest.mark.parametrize("row", ROWS)
def test_every_baseline_of_the_sample_resolves(row):
    config, rice = resolve_config("sample_baselines", row), resolve_config("sample_baselines")
    assert TASKS[config.task].model(config) != TASKS[rice.task].model(rice) or row == "icl"
    # What makes rows comparable: the same examples, of the same size, for as many steps.
    assert (config.data, config.eval, config.train, config.seed) == (rice.data, rice.eval, rice.train, rice.seed)
    assert config.model.image_size == rice.model.image_size
    assert config.model.init_from == ("" if ROWS[row][1] == FRESH else resolve_config("sample").model.init_from)
    assert f" {row} " in (ROOT / "scripts" / "baselines.sh").read_text().replace(";", " ")
    with pytest.raises(ValueError, match="row 'mgh': expected one of icl, all, timesformer"):
        load_config("sample_baselines", "mgh")


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ("all", "swin")])
def test_the_baselines_of_the_docs_are_those_of_the_sample(row):
    """A row's settings for LPR4M choose the same parts. Swin's come from its weights."""
    page = (ROOT / "docs" / "baselines.md").read_text().partition("## On LPR4M")[2]
    (settings,) = re.findall(rf"^\| {re.escape(ROWS[row][0])} \|(.*)\|$", page, re.MULTILINE)
    config = load_config("lpr750k", "icl")
    for name, value in re.findall(r"--config\.([\w.]+)=(\w+)", settings):
        config.update_from_flattened_dict({name: {"True": True}.get(value, value)})
    found, sample = resolve(config.to_dict()), resolve_config("sample_baselines", row)
    assert found.loss.kind == sample.loss.kind and found.loss.pmd_weight == 0
    assert found.model.aggregation == sample.model.aggregation
    assert found.model.architecture == sample.model.architecture

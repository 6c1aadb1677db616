"""Results on disk: every kind of row comes back, also from files of version 0.1."""

import dataclasses
import itertools
import json

import pytest

from rice_jax.eval.domains import DomainResult
from rice_jax.eval.metrics import Result
from rice_jax.eval.results import (
    MEAN_BOX,
    PIXELS,
    Row,
    labeled,
    ranked_row,
    read_results,
    write_rankings,
    write_results,
)
from tests.eval.evaluations import evaluation

# Every kind of row of a retrieval, with the key that version 0.1 wrote, which is still its label in a table.
RETRIEVAL = {
    PIXELS: "nearest raw pixels",
    Row(0): "before training",
    Row(0, "match", 3): "before training, first 3 matched",
    Row(1200): "after 1,200 steps",
    Row(1200, "match", 50): "after 1,200 steps, first 50 matched",
}
DETECTION = {
    MEAN_BOX: "mean training box",
    Row(0, "detector"): "before training",
    Row(20_000, "detector"): "after 20,000 steps",
}


def results(rows):
    return dict(zip(rows, (evaluation(seed)[1] for seed in itertools.count()), strict=False))


# Rows that version 0.1 did not have.
NEW = {
    Row(0, "weighted_match", 3): "before training, first 3 by both",
    Row(1200, "fused"): "after 1,200 steps, with texts",
    Row(1200, "weighted_match", 50, "weights/a"): "weights/a, first 50 by both",
}


@pytest.mark.parametrize("rows", [RETRIEVAL, DETECTION, NEW])
def test_labels(rows):
    assert labeled(dict.fromkeys(rows, "result")) == dict.fromkeys(rows.values(), "result")


def test_rankings_of_retrieval_come_back(tmp_path):
    path = tmp_path / "deep" / "results.json"
    written = results({**RETRIEVAL, **NEW})
    written[Row(1200)] = dataclasses.replace(written[Row(1200)], seconds=2.5)
    write_results(path, {})
    assert read_results(path) == {}
    write_results(path, written, about={"step": 1200})
    found = read_results(path)
    assert list(found.items()) == list(written.items()), "in the same order, too"
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_domains_come_back(tmp_path):
    _, result = evaluation()
    written = {row: DomainResult({"a to b": result}, {"a to b": result}) for row in (PIXELS, Row(0), Row(7))}
    write_results(tmp_path / "results.json", written)
    assert read_results(tmp_path / "results.json", DomainResult) == written


def test_scores_of_a_detector_come_back(tmp_path):
    written = {row: {"AP": 0.5, "AP-small": None, "num_frames": number} for number, row in enumerate(DETECTION)}
    write_results(tmp_path / "results.json", written)
    assert read_results(tmp_path / "results.json", dict) == written


def test_a_row_is_keyed_by_data(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, results(RETRIEVAL), about={"step": 1200})
    document = json.loads(path.read_text())
    assert document["about"] == {"step": 1200}
    keys = [{name: row[name] for name in ("step", "ranking", "num_matched")} for row in document["results"]]
    assert keys == [
        {"step": None, "ranking": "pixels", "num_matched": 0},
        {"step": 0, "ranking": "embedding", "num_matched": 0},
        {"step": 0, "ranking": "match", "num_matched": 3},
        {"step": 1200, "ranking": "embedding", "num_matched": 0},
        {"step": 1200, "ranking": "match", "num_matched": 50},
    ]
    assert (
        document["results"][1].keys() == {"step", "ranking", "num_matched", "source"} | evaluation()[1].to_dict().keys()
    )


def test_files_of_version_0_1_are_read(tmp_path):
    path = tmp_path / "results.json"

    def write(values):
        path.write_text(json.dumps({"about": {}, "results": values}))

    written = results(RETRIEVAL)
    old = {name: written[row].to_dict() for row, name in RETRIEVAL.items()}
    for values in old.values():
        del values["seconds"], values["num_without_truth"]  # the first files had neither
        values["older"] = True
    write(old)
    assert read_results(path) == written

    _, result = evaluation()
    pairs = {"a to b": result}
    domains = {"nearest raw pixels": PIXELS, "before training": Row(0), "after 7 steps": Row(7)}
    write({name: DomainResult(pairs, pairs).to_dict() for name in domains})
    assert read_results(path, DomainResult) == {row: DomainResult(pairs, pairs) for row in domains.values()}

    write({name: {"AP": 0.5} for name in DETECTION.values()})
    assert read_results(path, dict) == {row: {"AP": 0.5} for row in DETECTION}


@pytest.mark.parametrize("row", [row for row in RETRIEVAL if row != PIXELS])
def test_the_row_of_the_rankings(row):
    assert ranked_row({"rankings": dataclasses.asdict(row)}) == row
    assert ranked_row({"rankings": RETRIEVAL[row]}) == row, "as version 0.1 wrote it"
    with pytest.raises(KeyError, match="rankings"):
        ranked_row({"step": 6})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {Row(0): evaluation()[1]})
    old = path.read_text()
    with pytest.raises(ValueError):
        write_results(path, {}, about={"loss": float("nan")})
    assert path.read_text() == old


def test_rankings_are_a_line_a_query(tmp_path):
    ranked, _ = evaluation()
    write_rankings(tmp_path / "rankings.jsonl", ranked)
    lines = [json.loads(line) for line in (tmp_path / "rankings.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == list(ranked.query_ids)
    assert [line["rank"] for line in lines] == ranked.rank.tolist()
    assert lines[0]["top"] == [["皮带", 0.5], ["b", 0.25]]
    assert lines[0]["truths"] == ["皮带"]


def test_a_result_is_read_as_result_unless_said_otherwise(tmp_path):
    write_results(tmp_path / "results.json", {Row(0): evaluation()[1]})
    assert type(read_results(tmp_path / "results.json")[Row(0)]) is Result
    assert type(read_results(tmp_path / "results.json", dict)[Row(0)]) is dict

"""The tables of the ablation: rows are found by their keys, and numbers are means over the seeds."""

import dataclasses

import pytest

from rice_jax.eval.results import Row, write_results
from scripts import ablation_table
from tests.eval.evaluations import evaluation

LABELS = {"category": "number"}  # of the random evaluations, as the ablation calls them


def result(rank_1, seed=0):
    """A random evaluation with that rank-1."""
    _, random = evaluation(seed)
    score = dataclasses.replace(random.score, rank=random.score.rank | {"rank-1": rank_1})
    subsets = {LABELS.get(label, label): scores for label, scores in random.subsets.items()}
    return dataclasses.replace(random, score=score, subsets=subsets)


def write_run(directory, rows):
    write_results(directory / "results.json", {row: result(share) for row, share in rows.items()})


def test_tables(tmp_path, capsys):
    for seed, gain in [(0, 0.02), (1, -0.04)]:
        write_run(tmp_path / f"icl-{seed}", {Row(None, "pixels"): 0.1, Row(0): 0.2, Row(9): 0.5, Row(200): 0.3})
        matched = {Row(200): 0.3 + gain, Row(200, "match", 30): 0.25, Row(200, "weighted_match", 30): 0.35}
        write_run(tmp_path / f"pmd-{seed}", {Row(0): 0.2, **matched})
    ablation_table.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [" ".join(line.split()) for line in lines]
    assert rows[0] == "62 queries a seed; percent; by seed: rank-1 minus that of ICL"
    assert rows[2] == "rank-1 rank-5 rank-10 seed 0 seed 1"
    found = {
        name: next(row for row in rows[3:] if row.startswith(name)) for name in ("before", "ICL", "ICL + PMD", "…")
    }
    assert found["before"].startswith("before training 20.0 ± 0.0 ")
    assert found["ICL"].startswith("ICL 30.0 ± 0.0 ") and not found["ICL"].endswith("+0.0 +0.0")
    # Of 32 and 26 the mean is 29, and the sample's standard deviation 6 / sqrt(2).
    assert found["ICL + PMD"].startswith("ICL + PMD 29.0 ± 4.2 ") and found["ICL + PMD"].endswith(" +2.0 -4.0")
    assert found["…"].startswith("… 30 matched 25.0 ± 0.0 ") and found["…"].endswith(" -5.0 -5.0")
    [both] = [row for row in rows if row.startswith("… 30 by both")]
    assert both.startswith("… 30 by both 35.0 ± 0.0 ") and both.endswith(" +5.0 +5.0")
    small = result(0.2).subsets["scale"]["small"]
    start = rows.index("rank-1 by the scale of the product")
    assert rows[start + 4].split()[:2] == ["queries", str(2 * small.num_queries)]
    assert rows[start + 5].startswith(f"before training {100 * small.rank['rank-1']:.1f} ± 0.0 ")
    assert "rank-1 by the number of products in view" in rows


def test_runs_of_other_seeds_are_refused(tmp_path):
    for name in ("icl-0", "icl-1", "pmd-0"):
        write_run(tmp_path / name, {Row(0): 0.2, Row(200): 0.3})
    with pytest.raises(SystemExit, match="found runs of .*'pmd': .'0'.*, expected ICL and the same seeds"):
        ablation_table.main([str(tmp_path)])

"""Aggregations and losses against recorded results in float64."""

import json
from pathlib import Path

import numpy as np
import pytest

from scripts import check_parity
from scripts.parity import Case
from scripts.parity_losses import compare_losses
from scripts.parity_parts import NOT_BUILT, part_results
from tests.fixtures import ROOT
from tests.golden.cases import HERE, find

ENCODERS = ROOT / "tests" / "golden" / "encoders"
# In theory zero, since a softmax ignores what is added to all its inputs; recorded as rounding errors of float64.
ZERO = {"nvan_mean/grad/phi.bias", "seam/grad/score.bias"}


@pytest.mark.parametrize("name", ["aggregation", "siglip_loss"])
def test_every_recorded_result_and_gradient_is_reproduced(name):
    recorded = dict(np.load(ENCODERS / f"{name}.npz"))
    found = part_results(recorded, json.loads((ENCODERS / f"{name}.json").read_text()))
    expected = {
        key: value
        for key, value in recorded.items()
        if ("/out/" in key or "/grad/" in key) and key.split("/")[0] not in NOT_BUILT
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        difference = found[key].astype(np.float64) - value
        assert found[key].shape == value.shape, key
        if key in ZERO:
            assert np.abs(difference).max() < 1e-6, key
        elif "/out/" in key:
            assert np.abs(difference).max() <= 1e-4 * np.abs(value).max(), key
        else:
            assert np.linalg.norm(difference) <= 1e-3 * np.linalg.norm(value), key


def check(capsys, *paths: Path) -> tuple[bool, list[str]]:
    """Runs the command's comparison; returns whether it fails, and the lines of what does not hold or is left out."""
    failed = check_parity.check(paths)
    return failed, [line for line in capsys.readouterr().out.splitlines() if not line.startswith("ok ")]


def test_the_command_names_what_is_not_part_of_the_program(capsys):
    failed, lines = check(capsys, ENCODERS / "aggregation.npz", ENCODERS / "siglip_loss.npz")
    assert not failed
    assert lines.pop().startswith("PASS: 130 compared, 0 of them beyond tolerance, 0 recorded arrays not compared; 37 ")
    named = {line.split()[1].split("/")[0] for line in lines if line.startswith("--- ")}
    assert named == NOT_BUILT.keys()
    assert "--- text_score/out/score: not compared: there is no text" in lines


def test_the_command_fails_if_a_part_differs_or_is_unknown(capsys, tmp_path):
    """A recording may also hold fewer cases."""
    recorded = dict(np.load(ENCODERS / "aggregation.npz"))
    arrays = {key: value for key, value in recorded.items() if key.split("/")[0] in ("in", "mean_of_features")}
    arrays["mean_of_features/grad/frames"] = arrays["mean_of_features/grad/frames"] * 1.01
    arrays["median/params/weight"] = arrays["median/out/video"] = np.ones(3)
    np.savez(tmp_path / "other.npz", **arrays)
    facts = {"heads": 2, "cases": {"mean_of_features": {}, "median": {}}}
    (tmp_path / "other.json").write_text(json.dumps(facts))
    failed, (_, gradient, unknown, verdict) = check(capsys, tmp_path / "other.npz")
    assert failed and verdict == "FAIL: 2 compared, 1 of them beyond tolerance, 1 recorded arrays not compared"
    assert gradient.startswith("BAD mean_of_features/grad/frames ")
    assert unknown == "BAD median/out/video: recorded, but nothing computes it"


def test_the_losses_that_cope_uses_are_reproduced_and_a_changed_number_is_seen(capsys):
    recorded = Case(find("cope/losses"))
    recorded.recorded["cosface/grad/w"] *= 1.01
    lines = list(compare_losses(recorded))
    assert [line.name for line in lines if not line.holds] == ["cosface/grad/w"]
    failed, lines = check(capsys, HERE / "cope" / "losses.npz")
    assert not failed and lines.pop().startswith("PASS: 10 compared, ")
    assert [line.split()[1] for line in lines if line.startswith("--- ")] == [
        f"{name}/out/reference_accuracy:" for name in ("cosface", "cosface_sampled")
    ]

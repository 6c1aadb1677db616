"""Text towers' outputs and gradients against what transformers' models computed."""

import json

import numpy as np
import pytest

from scripts import check_parity
from scripts.parity import Case
from scripts.parity_text import TEXT_CASES
from tests.golden.cases import find


def case(name: str) -> Case:
    return Case(find(f"text/{name}"))


@pytest.mark.parametrize("name", TEXT_CASES)
def test_a_case_computes_what_was_recorded_and_all_of_it_is_compared(name, capsys):
    assert not check_parity.check([find(f"text/{name}")])
    *lines, verdict = capsys.readouterr().out.splitlines()[1:]
    recorded = [key for key in case(name).recorded if key.startswith(("out/", "grad/", "grad_in/"))]
    assert len(lines) == len(recorded) and {line.split()[1] for line in lines} == set(recorded)
    assert verdict.startswith("PASS: ")


def test_a_recording_of_another_model_is_left_out_with_the_reason(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **{"params/x": np.ones(2), "out/y": np.ones(2), "grad/x": np.ones(2)})
    facts = {"case": "rice_text", "config": {}}
    (tmp_path / "a.json").write_text(json.dumps(facts))
    assert not check_parity.check([tmp_path / "a.npz"])
    printed = capsys.readouterr().out
    assert "--- 2 arrays: not compared: its decoder is that of an earlier revision" in printed
    assert printed.endswith("PASS: 0 compared, 0 of them beyond tolerance, 0 recorded arrays not compared; "
                            "2 more of parts that rice_jax leaves out\n")  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(facts | {"case": "unknown"}))
    assert check_parity.check([tmp_path / "a.npz"])


@pytest.mark.parametrize(("name", "key"), [("chinese_clip", "out/embedding"), ("text", "out/hidden1")])
def test_a_changed_number_is_seen(name, key):
    changed = case(name)
    changed.arrays[key].flat[0] += 1e-2
    assert [line.name for line in TEXT_CASES[name](changed) if not line.holds] == [key]

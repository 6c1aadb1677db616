"""The notebook in docs/: its code runs, and its stored outputs are small."""

import json
import tempfile

import matplotlib.pyplot as plt
import pytest

from rice_jax.eval.results import PIXELS, Row
from tests.fixtures import ROOT

NOTEBOOK = ROOT / "docs" / "sample.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
SMALL = {"train_products": 16, "galleries": "test-1", "steps": 2}


@pytest.mark.slow
def test_it_trains_evaluates_and_shows(tmp_path, monkeypatch, capsys):
    figures = []
    monkeypatch.setattr(plt, "show", lambda: figures.append(plt.gcf()))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(NOTEBOOK.parent)
    names = {}
    for number, cell in enumerate(CELLS):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code {number}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert SMALL.keys() <= names.keys()
            names |= SMALL
    assert list(names["results"]) == [PIXELS, Row(0), Row(2)]
    assert names["results"][Row(2)].score.num_queries == 30 == len(names["ranked"])
    assert [step for step, _ in names["losses"]] == [1, 2]
    assert (names["workdir"] / "report.html").exists()
    printed = capsys.readouterr().out
    assert "after 2 steps" in printed and "95 % of draws from" in printed
    assert len(figures) == 3 and all(axes.has_data() for axes in figures[1].axes)
    plt.close("all")


def test_its_stored_outputs():
    assert NOTEBOOK.stat().st_size < 500_000
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}, "no error, no value"
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    text = "".join(line for output in outputs for line in output.get("text", ()))
    assert f"after {names_of(CELLS)['steps']} steps" in text and "/tmp" not in text and str(ROOT) not in text


def names_of(cells) -> dict:
    """The parameters of the notebook."""
    [source] = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    names = {}
    exec(source, names)
    return names

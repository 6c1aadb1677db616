"""COPE with text of pages, and of all domains, against what the reference's modules computed."""

import jaxtyping
import pytest

from scripts import check_parity
from tests.golden.cases import HERE


@pytest.mark.parametrize("name", ["cope_tiny", "cope_all_text"])
def test_outputs_losses_gradients_and_updates_are_those_recorded(name, capsys, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # recorded pixels are not whole numbers
    path = HERE / "cope" / f"{name}.npz"
    recorded = {key for key in check_parity.Case(path).recorded if key.startswith(("out/", "grad/", "delta3/"))}
    assert not check_parity.check([path])
    *lines, verdict = capsys.readouterr().out.splitlines()[1:]
    names = {line[4:].split(":")[0].split("  ")[0].strip() for line in lines}
    assert recorded <= names and verdict.startswith("PASS: ")
    if name == "cope_tiny":
        assert "total_loss after 3 updates" in names

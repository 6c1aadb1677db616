"""The decoder's layers against the reference's, on nearly constant tokens, where a layer norm's epsilon decides."""

import pytest

from scripts.check_parity import check, comparison
from scripts.parity import Case
from tests.golden.cases import HERE

UNITS = HERE / "units.npz"


def test_layers_compute_what_was_recorded(capsys):
    assert not check([UNITS])
    assert "PASS: 9 compared, 0 of them beyond tolerance" in capsys.readouterr().out
    assert not Case(UNITS).recorded["in/mask"].any(axis=1).all()  # every key of a row is masked


@pytest.mark.parametrize("name", ["params/transformer.layers.0.ln_1.weight", "params/pooler.dense.weight"])
def test_another_weight_is_seen(name):
    case = Case(UNITS)
    case.recorded[name] = case.recorded[name] * 1.001
    assert not all(line.holds for line in comparison(case)(case))

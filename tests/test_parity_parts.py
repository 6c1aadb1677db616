"""Aggregations and losses against recorded results in float64."""

import json

import numpy as np
import pytest

from scripts.parity_parts import NOT_BUILT, part_results
from tests.fixtures import ROOT

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

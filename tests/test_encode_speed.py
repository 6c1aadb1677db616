"""What encoding is compared with."""

import sys
from unittest import mock

import jax
import pytest

from scripts.benchmarks import encode_speed


def test_says_that_there_is_nothing_to_compare_with(monkeypatch):
    monkeypatch.setattr(encode_speed.importlib.util, "find_spec", lambda name: None)
    assert encode_speed.missing_torch(jax.devices()[0]) == "PyTorch or transformers is not installed"


@pytest.mark.parametrize(
    "gpu, capability, dtypes",
    [
        (False, "AVX2", ("float32",)),
        (False, "AVX512", ("float32", "bfloat16")),
        (True, "AVX2", ("float32", "bfloat16")),
    ],
)
def test_bfloat16_is_left_out_where_it_takes_minutes(monkeypatch, gpu, capability, dtypes):
    torch = mock.MagicMock()
    torch.cuda.is_available.return_value = gpu
    torch.backends.cpu.get_cpu_capability.return_value = capability
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert encode_speed.torch_dtypes() == dtypes

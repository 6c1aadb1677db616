"""Tables of names and the parameters of a module whose blocks are stacked."""

import numpy as np
import pytest
from flax import nnx

from rice_jax.convert.names import Layout
from rice_jax.convert.tensors import parameter_places, parameter_shapes, to_ours, to_theirs
from rice_jax.models.layers import stack

TRANSPOSED = Layout(np.transpose, np.transpose)
SAME = Layout(lambda x: x, lambda x: x)


class Encoder(nnx.Module):
    def __init__(self, num: int):
        self.layers = stack(lambda rngs: nnx.Linear(3, 2, rngs=rngs), num, nnx.Rngs(0))
        self.last_blocks = nnx.Linear(2, 4, use_bias=False, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("num", [1, 2])
def test_a_stack_may_have_any_name(num):
    table = {
        "layers/kernel": (TRANSPOSED, ["layer.{}.weight"]),
        "layers/bias": (SAME, ["layer.{}.bias"]),
        "last_blocks/kernel": (TRANSPOSED, ["last.weight"]),
        "elsewhere": (SAME, ["of.another.model"]),
    }
    shapes = parameter_shapes(lambda: Encoder(num))
    places, rng = parameter_places(table, shapes), np.random.default_rng(0)
    state = {f"layer.{i}.weight": rng.normal(size=(2, 3)).astype(np.float32) for i in range(num)}
    state |= {f"layer.{i}.bias": rng.normal(size=2).astype(np.float32) for i in range(num)}
    state |= {"last.weight": rng.normal(size=(4, 2)).astype(np.float32)}
    ours = to_ours(state, places, shapes, "an encoder")
    for i in range(num):
        np.testing.assert_array_equal(ours["layers"]["kernel"][i], state[f"layer.{i}.weight"].T)
        np.testing.assert_array_equal(ours["layers"]["bias"][i], state[f"layer.{i}.bias"])
    np.testing.assert_array_equal(ours["last_blocks"]["kernel"], state["last.weight"].T)
    theirs = to_theirs(ours, places, shapes, "an encoder")
    assert theirs.keys() == state.keys()
    assert all((theirs[name] == state[name]).all() for name in state)

import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rice_jax.config import MeshConfig
from rice_jax.models.create import create_params
from rice_jax.models.rice import Rice
from rice_jax.parallel.mesh import (
    PARAMETER_RULES,
    Placement,
    create_mesh,
    global_batch,
    parameter_shardings,
    path_name,
)
from rice_jax.train.optimizer import create_optimizer
from rice_jax.train.state import create_state
from scripts.benchmarks.hlo import collectives
from tests.settings import model_of, small_config


@pytest.fixture(scope="module")
def state():
    config = small_config()
    mesh = create_mesh(MeshConfig(fsdp=4))
    params = create_params(model_of(config), mesh, seed=0)
    return mesh, create_state(params, create_optimizer(config.optimizer, 10, Rice.PRETRAINED), mesh)


def test_every_parameter_matches_exactly_one_rule(state):
    mesh, state = state
    detector = model_of(small_config(task="detection", model__detector__kind="clip"))
    matches = {}
    parameters = state.params, jax.eval_shape(lambda: create_params(detector, mesh, seed=0))
    for path, _ in jax.tree_util.tree_leaves_with_path(parameters):
        name = path_name(path[1:])
        matches[name] = [pattern for pattern, _ in PARAMETER_RULES if re.fullmatch(pattern, name)]
    assert all(len(patterns) == 1 for patterns in matches.values()), matches
    used = {pattern for patterns in matches.values() for pattern in patterns}
    assert used == {pattern for pattern, _ in PARAMETER_RULES}, "a rule that nothing matches is dead"


def test_kernels_and_their_moments_are_split_over_fsdp(state):
    mesh, state = state
    kernel = state.params["encoder"]["blocks"]["qkv"]["kernel"]
    assert kernel.shape == (2, 32, 96)
    assert kernel.addressable_shards[0].data.shape == (2, 8, 96)
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer)
        if path_name(path).endswith("encoder/blocks/qkv/kernel")
    ]
    assert len(moments) == 2 and all(leaf.sharding == kernel.sharding for leaf in moments)
    assert state.params["logit_scale"].sharding.spec == PartitionSpec()


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = create_mesh(MeshConfig(fsdp=8))
    tree = {"encoder": {"projection": {"kernel": np.zeros((12, 4))}}}
    assert parameter_shardings(mesh, tree)["encoder"]["projection"]["kernel"].spec == PartitionSpec(None)


def test_fresh_weights_are_the_same_on_every_mesh():
    config = model_of(small_config())
    one, other = (create_params(config, create_mesh(MeshConfig(fsdp=fsdp)), seed=3) for fsdp in (1, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), one, other)


@pytest.mark.parametrize(
    ("sizes", "shape"), [((-1, 1), (8, 1)), ((-1, 4), (2, 4)), ((2, -1), (2, 4)), ((1, -1), (1, 8)), ((4, 2), (4, 2))]
)
def test_one_axis_takes_what_the_other_leaves(sizes, shape):
    mesh = create_mesh(MeshConfig(*sizes))
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == shape


def test_errors():
    for found in (MeshConfig(fsdp=3), MeshConfig(data=3, fsdp=-1), MeshConfig(data=4), MeshConfig(data=16, fsdp=-1)):
        with pytest.raises(ValueError, match=rf"found {found.data} and {found.fsdp}, expected 8 devices in all"):
            create_mesh(found)
    with pytest.raises(ValueError, match="config.mesh.data and fsdp: found -1 and -1, expected 1 or more"):
        small_config(mesh__fsdp=-1)
    with pytest.raises(ValueError, match="found 12, expected a multiple of the 8 devices; the nearest are 8 and 16"):
        global_batch(create_mesh(MeshConfig(fsdp=1)), {"index": np.arange(12)})


def test_rows_of_the_global_batch_and_their_gradients_are_moved_once():
    mesh = create_mesh(MeshConfig(fsdp=2))
    rng = np.random.default_rng(0)
    rows, index, weights = rng.random((16, 5)), rng.integers(0, 16, (16, 3)), rng.random((16, 3, 5))

    def weighted(rows, batch):
        taken = Placement(mesh).take_rows(rows, batch["index"])
        return (taken * batch["weights"]).sum(), taken

    batch = global_batch(mesh, {"rows": rows, "index": index, "weights": weights})
    compiled = jax.jit(jax.value_and_grad(weighted, has_aux=True)).lower(batch["rows"], batch).compile()
    (_, taken), gradient = compiled(batch["rows"], batch)
    np.testing.assert_array_equal(taken, rows.astype(np.float32)[index])
    expected = np.zeros_like(rows)
    np.add.at(expected, index, weights)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    large = [(one.kind, one.shape, one.runs) for one in collectives(compiled.as_text()) if one.bytes > 4]
    assert sorted(large) == [("all-gather", "f32[16,5]", 1), ("reduce-scatter", "f32[16,5]", 1)]

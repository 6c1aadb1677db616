import re
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rice_jax.config import MeshConfig
from rice_jax.models.create import create_params
from rice_jax.models.rice import Rice
from rice_jax.parallel.mesh import (
    EXCEPTIONS,
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


def split_parameters(tree) -> dict[str, int]:
    """{path of a split parameter: its axis that is split}."""
    found = {}
    for path, sharding in jax.tree_util.tree_leaves_with_path(tree):
        for axis, name in enumerate(sharding.spec):
            if name is not None:
                found[path_name(path)] = axis
    return found


def test_what_is_split_along_which_axis():
    """All else stays whole: vectors, positions, queries, anchors, and the small kernels of the heads."""
    mesh = create_mesh(MeshConfig(fsdp=4))

    def split(config):
        shapes = jax.eval_shape(lambda: create_params(model_of(config), mesh, seed=0))
        return split_parameters(parameter_shardings(mesh, shapes))

    def blocks(name):
        return {f"{name}/qkv/kernel": 1, f"{name}/up/kernel": 1, f"{name}/out/kernel": 2, f"{name}/down/kernel": 2}

    encoder = {"encoder/patch_embedding/kernel": 0, "encoder/projection/kernel": 0} | blocks("encoder/blocks")
    decoder = blocks("pmd/self_blocks") | blocks("pmd/cross_blocks") | {"pmd/pool/kernel": 0}
    assert split(small_config(model__layers=6, model__pmd__num_pairs=3)) == encoder | decoder
    dense = {f"detector/{name}/kernel": 0 for name in ("input", "position", "time", "box_1", "box_2")}
    layers = {"detector/layers/up/kernel": 1, "detector/layers/down/kernel": 2}
    for kind in ("self_attention", "cross_attention"):
        layers |= {f"detector/layers/{kind}/{name}/kernel": 1 for name in ("query", "key", "value")}
        layers |= {f"detector/layers/{kind}/out/kernel": 2}
    detector = dense | layers | blocks("detector/temporal_blocks")
    assert split(small_config(task="detection", model__detector__kind="clip")) == encoder | detector


def test_new_matrices_are_split_by_default():
    mesh = create_mesh(MeshConfig(fsdp=4))
    text = {"text": {"token": {"embedding": np.zeros((64, 6))}, "blocks": {"ln_1": {"scale": np.zeros((4, 8))}}}}
    text["text"]["position_embedding"] = np.zeros((16, 8))
    text["text"]["projection"] = {"kernel": np.zeros((8, 12)), "bias": np.zeros(12)}
    assert split_parameters(parameter_shardings(mesh, text)) == {
        "text/token/embedding": 0,
        "text/projection/kernel": 0,
    }


def test_every_exception_is_of_some_parameter():
    mesh = create_mesh(MeshConfig(fsdp=4))
    for pattern, _ in EXCEPTIONS:
        names = [
            path_name(path)
            for config in (small_config(), small_config(task="detection"))
            for path, _ in jax.tree_util.tree_leaves_with_path(
                jax.eval_shape(lambda config=config: create_params(model_of(config), mesh, seed=0))
            )
        ]
        assert any(re.search(f"(^|/){pattern}$", name) for name in names), pattern


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
    assert parameter_shardings(mesh, tree)["encoder"]["projection"]["kernel"].spec == PartitionSpec()


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


def fake_device(number: int, platform: str, kind: str, slice_size: int) -> Mock:
    """What an arrangement of devices asks of one."""
    node = number // slice_size
    places = {"coords": (number % 4, number // 4, 0), "core_on_chip": 0, "slice_index": node, "process_index": node}
    return Mock(jax.Device, id=number, platform=platform, device_kind=kind, **places)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_groups_stay_within_a_slice(platform):
    """Each node of a cluster of GPUs is a slice, and its number need not follow the devices' order."""
    nodes = [fake_device(number, platform, "", slice_size=8) for number in (*range(8, 16), *range(8))]
    mesh = create_mesh(MeshConfig(fsdp=4), nodes)
    assert [[device.id for device in group] for group in mesh.devices] == np.arange(16).reshape(4, 4).tolist()


def test_groups_may_be_parts_of_a_physical_axis():
    chips = [fake_device(number, "tpu", "TPU v6 lite", slice_size=16) for number in range(16)]  # 4 x 4
    mesh = create_mesh(MeshConfig(fsdp=8), chips)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 8}
    assert sorted(device.id for device in mesh.devices.flat) == list(range(16))


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

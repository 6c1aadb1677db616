import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rice_jax import ops
from rice_jax.config import MeshConfig
from rice_jax.ops.matmul import matmul
from rice_jax.parallel.mesh import create_mesh

KINDS = pytest.mark.parametrize(
    ("platform", "in_hardware"), [("tpu", False), ("cpu", False), ("cpu", True)], ids=["tpu", "cpu", "cpu, bfloat16"]
)


@pytest.fixture
def program(monkeypatch, platform, in_hardware):
    """Traces for another platform or processor; its programs run here, too."""
    monkeypatch.setattr(ops.matmul, "platform", lambda: platform)
    monkeypatch.setattr(ops.matmul, "multiplies_bfloat16", lambda: in_hardware)
    return platform, in_hardware


def operands(dtype):
    """Small integers: float32 sums them exactly, and bfloat16 cannot hold the sums."""
    rng = np.random.default_rng(0)
    x, kernel, gradient = (rng.integers(-9, 10, shape) for shape in ((3, 20, 64), (64, 48), (3, 20, 48)))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, jnp.float32), jnp.asarray(gradient, dtype)


@functools.partial(jax.jit, static_argnums=3)
def product_and_gradients(x, kernel, gradient, program):
    del program  # each is compiled
    found, pull_back = jax.vjp(matmul, x, kernel)
    return found, *pull_back(gradient)


@KINDS
def test_bfloat16_products_are_rounded_once(program):
    x, kernel, gradient = operands(jnp.bfloat16)
    found, of_x, of_kernel = product_and_gradients(x, kernel, gradient, program)

    exact = [np.asarray(each, np.float64) for each in (x, kernel, gradient)]
    sums = exact[0] @ exact[1]
    assert (np.asarray(jnp.asarray(sums, jnp.bfloat16), np.float64) != sums).any()
    np.testing.assert_array_equal(found, jnp.asarray(sums, jnp.bfloat16))
    np.testing.assert_array_equal(of_x, jnp.asarray(exact[2] @ exact[1].T, jnp.bfloat16))
    of_weights = np.einsum("bli,blo->io", exact[0], exact[2])
    rounded = jnp.float32 if program[0] == "cpu" else jnp.bfloat16
    np.testing.assert_array_equal(of_kernel, jnp.asarray(of_weights, rounded))
    assert (found.dtype, of_x.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


def test_float32_products_are_those_of_jax():
    x, kernel, gradient = operands(jnp.float32)
    found = product_and_gradients(x, kernel, gradient, None)
    expected, pull_back = jax.vjp(jnp.matmul, x, kernel)
    for own, other in zip(found, (expected, *pull_back(gradient)), strict=True):
        np.testing.assert_array_equal(own, other)


@KINDS
@pytest.mark.usefixtures("program")
def test_the_backward_pass_keeps_the_parameters_and_no_copy_of_them():
    x, kernel, _ = operands(jnp.bfloat16)
    _, pull_back = jax.vjp(matmul, x, kernel)
    kept = {(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(pull_back)}
    assert kept == {(x.shape, "bfloat16"), (kernel.shape, "float32")}


@pytest.mark.parametrize("in_hardware", [False, True])
@pytest.mark.parametrize("platform", ["cpu"])
def test_products_are_split_over_devices(program):
    mesh = create_mesh(MeshConfig(fsdp=2), jax.devices()[:4])
    x, kernel, gradient = operands(jnp.bfloat16)
    x, gradient = (jnp.concatenate([each, each[:1]]) for each in (x, gradient))
    expected = product_and_gradients(x, kernel, gradient, program)

    def place(array, *axes):
        return jax.device_put(array, jax.NamedSharding(mesh, jax.P(*axes)))

    rows = ("data", "fsdp")
    found = product_and_gradients(place(x, rows), place(kernel, None, "fsdp"), place(gradient, rows), program)
    assert found[0].sharding.num_devices == 4
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)

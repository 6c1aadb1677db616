import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from rice_jax.losses.sigmoid import nearest_key, sigmoid_loss
from rice_jax.parallel.blocks import fold_pairs

LOG_SCALE, BIAS = np.log(10), -3.0
KEYS = np.array([7, 3, 7, 1, 3, 2, 7, 5], np.int32)
REAL = np.arange(8) != 5


@functools.cache
def pairs(num: int = 8) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((2, num, 6))
    image, video = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    return image, video


def expected_loss(image, video, log_scale, bias, same_image, real) -> float:
    """By definition, pair by pair, in float64."""
    total = 0.0
    for i in range(len(image)):
        for j in range(len(video)):
            sign = 1 if i == j else -1
            if i != j and KEYS[i] == KEYS[j]:
                sign = {"negative": -1, "mask": 0, "positive": 1}[same_image]
            if sign and real[i] and real[j]:
                total += np.logaddexp(0, -sign * (np.exp(log_scale) * (image[i] @ video[j]) + bias))
    return total / real.sum()


@pytest.mark.parametrize("same_image", ["negative", "mask", "positive"])
@pytest.mark.parametrize("real", [np.ones(8, bool), REAL], ids=["whole", "padded"])
def test_value_mask_and_gradient_against_the_definition(same_image, real):
    arguments = *map(jnp.asarray, pairs()), jnp.float32(LOG_SCALE), jnp.float32(BIAS)

    @jax.jit
    def results(*arguments):
        loss = lambda *x: sigmoid_loss(*x, jnp.asarray(KEYS), same_image, jnp.asarray(real))  # noqa: E731
        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(*arguments)

    value, gradients = results(*arguments)
    exact = [np.array(x, np.float64) for x in arguments]
    np.testing.assert_allclose(value, expected_loss(*exact, same_image, real), rtol=1e-6)
    step = 1e-5
    for argument, place in [(0, (0, 0)), (0, (5, 1)), (1, (2, 3)), (1, (7, 5)), (2, ()), (3, ())]:
        moved = [x.copy() for x in exact]
        moved[argument][place] += step
        above = expected_loss(*moved, same_image, real)
        moved[argument][place] -= 2 * step
        numeric = (above - expected_loss(*moved, same_image, real)) / (2 * step)
        np.testing.assert_allclose(gradients[argument][place], numeric, rtol=1e-3, atol=1e-7)


def test_a_confident_mistake_has_a_finite_loss_and_gradient():
    """log(1 + exp(x)) overflows in float32 from 89 on."""
    image = jnp.eye(4)
    loss = lambda image: sigmoid_loss(image, -image, jnp.log(1000.0), jnp.float32(0), jnp.arange(4))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(image)
    np.testing.assert_allclose(value, 1000 + 3 * np.log(2), rtol=1e-6)
    assert np.isfinite(gradient).all()


def mesh_of(devices: int, fsdp: int):
    shape = devices // fsdp, fsdp
    return jax.make_mesh(shape, ("data", "fsdp"), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize(("devices", "fsdp", "max_rows"), [(1, 1, 7), (8, 2, 1024), (8, 1, 2)])
def test_a_ring_of_blocks_gives_the_loss_and_gradients_of_the_whole(devices, fsdp, max_rows):
    """Also where the rows of a device are no multiple of a block's."""
    image, video = map(jnp.asarray, pairs(40))
    keys = jnp.asarray(np.random.default_rng(1).integers(0, 25, 40, np.int32))
    real = jnp.arange(40) < 37
    scales = jnp.float32(LOG_SCALE), jnp.float32(BIAS)

    def results(*fold):
        def loss(image, video, log_scale, bias):
            value = sigmoid_loss(image, video, log_scale, bias, keys, "positive", real, *fold)
            return value, nearest_key(image, video, keys, *fold)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(image, video, *scales)

    expected = results()
    np.testing.assert_array_equal(expected[0][1], keys[np.argmax(np.asarray(video) @ np.asarray(image).T, axis=1)])
    found = results(fold_pairs(mesh_of(devices, fsdp), max_rows))
    np.testing.assert_array_equal(found[0][1], expected[0][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_no_device_holds_a_number_for_every_pair():
    num = 4096
    rows = jax.ShapeDtypeStruct((num, 8), jnp.float32)
    keys, scale = jax.ShapeDtypeStruct((num,), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)

    def held(*fold) -> int:
        def loss(image, video, log_scale, bias, keys):
            value = sigmoid_loss(image, video, log_scale, bias, keys, "mask", None, *fold)
            return value, nearest_key(image, video, keys, *fold)

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
        compiled = step.lower(rows, rows, scale, scale, keys).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    every = 4 * num**2
    assert held() > every
    assert held(fold_pairs(mesh_of(1, 1), 128)) < every / 4
    assert held(fold_pairs(mesh_of(8, 1), 128)) < every / 32

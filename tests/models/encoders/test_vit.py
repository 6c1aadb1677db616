import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.models.encoders.vit import Vit, patchify, resize_positions
from tests.settings import small_config

CONFIG = small_config().model.encoder


def pictures(count=3, size=16):
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, size, size, 3)), jnp.float32)


def test_scan_equals_an_unrolled_loop():
    vit = Vit(CONFIG, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 5, 32)), jnp.float32)

    def unrolled(vit, x):
        graphdef, state = nnx.split(vit.blocks)
        for layer in range(CONFIG.layers):
            x = nnx.merge(graphdef, jax.tree.map(lambda leaf, layer=layer: leaf[layer], state))(x)
        return x

    def value_and_gradient(apply):
        return nnx.jit(nnx.value_and_grad(lambda vit, x: (apply(vit, x) ** 2).sum()))(vit, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        value_and_gradient(Vit.apply_blocks),
        value_and_gradient(unrolled),
    )


def test_rematerialization_and_unrolling_change_no_number():
    outputs = []
    for changes in ({}, {"remat": "dots"}, {"remat": "full"}, {"unroll": True}):
        vit = Vit(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(0))
        loss = lambda vit: (vit(pictures())[1] ** 2).sum()  # noqa: E731
        outputs.append(nnx.jit(nnx.value_and_grad(loss))(vit))
    for output in outputs[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), output, outputs[0])


def test_pictures_of_a_batch_do_not_see_each_other():
    vit = Vit(CONFIG, rngs=nnx.Rngs(0))
    apply = nnx.jit(Vit.__call__)
    both = apply(vit, pictures(2))
    alone = apply(vit, pictures(2)[1:])
    np.testing.assert_allclose(both[0][1], alone[0][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both[1][1], alone[1][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compute_dtype_leaves_parameters_in_float32(dtype):
    vit = Vit(dataclasses.replace(CONFIG, dtype=dtype), rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(vit, nnx.Param))} == {jnp.dtype("float32")}
    assert all(output.dtype == dtype for output in nnx.jit(Vit.__call__)(vit, pictures()))


def test_positions_of_the_same_grid_stay_and_a_smooth_field_survives_interpolation():
    rng = np.random.default_rng(0)
    positions = jnp.asarray(rng.standard_normal((17, 4)), jnp.float32)
    assert resize_positions(positions, 17) is positions
    ramp = np.arange(8)[:, None] * np.ones(8)  # a value that grows by 1 a row
    grid = np.concatenate([[-5.0], ramp.ravel()])[:, None].astype(np.float32)
    small = resize_positions(jnp.asarray(grid), 17)
    assert small[0, 0] == -5.0, "CLS has no place and stays"
    rows = np.asarray(small[1:, 0]).reshape(4, 4)
    np.testing.assert_allclose(rows, rows[:, :1] * np.ones(4), atol=1e-5)
    np.testing.assert_allclose(np.diff(rows[:, 0])[1], 2.0, rtol=0.05)


PATCH_MASK = np.array([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]], bool)


def test_masked_patches_are_as_if_they_were_not_there():
    vit = Vit(CONFIG, rngs=nnx.Rngs(0))
    tokens, features = nnx.jit(Vit.__call__)(vit, pictures(), jnp.asarray(PATCH_MASK))
    x = patchify(pictures(), CONFIG.patch_size) @ vit.patch_embedding.kernel[...] + vit.position_embedding[...][1:]
    cls = vit.class_embedding[...] + vit.position_embedding[...][0]
    for i, kept in enumerate(PATCH_MASK):
        alone = vit.apply_blocks(vit.ln_pre(jnp.concatenate([cls[None], x[i, kept]])[None]))
        np.testing.assert_allclose(tokens[i][np.r_[True, kept]], alone[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(features[i], vit.projection(vit.ln_post(alone[0, 0])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_mask_of_all_ones_changes_no_bit_of_what_comes_out(remat):
    """Gradients are summed in the order of another program, and so agree to rounding."""
    vit = Vit(dataclasses.replace(CONFIG, remat=remat), rngs=nnx.Rngs(0))

    def value_and_gradient(*mask):
        def loss(vit, *mask):
            outputs = vit(pictures(), *mask)
            return (outputs[1] ** 2).sum(), outputs

        return nnx.jit(nnx.value_and_grad(loss, has_aux=True))(vit, *mask)

    (value, gradient), (expected, expected_gradient) = value_and_gradient(jnp.ones((3, 4), bool)), value_and_gradient()
    jax.tree.map(np.testing.assert_array_equal, value, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradient, expected_gradient)

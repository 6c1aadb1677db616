import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.models.encoders.vit import Vit, patchify, resize_positions, rotary_positions
from rice_jax.models.layers import rotate, unstack
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


def test_rematerialization_keeps_the_products_of_linear_layers_or_none():
    def products(**changes):
        vit = Vit(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(0))
        loss = lambda vit: (vit(pictures())[1] ** 2).sum()  # noqa: E731
        return nnx.jit(nnx.grad(loss)).lower(vit).as_text().count("dot_general")

    assert products(remat="dots") == products() + 2, "those of attention are computed again"
    assert products(remat="full") == products() + 5, "and those of qkv, out and up, but for down, which is not needed"


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

    @nnx.jit
    def encode(vit, x):
        alone = vit.apply_blocks(vit.ln_pre(x))
        return alone[0], vit.projection(vit.ln_post(alone[0, 0]))

    for i, kept in enumerate(PATCH_MASK):
        alone, feature = encode(vit, jnp.concatenate([cls[None], x[i, kept]])[None])
        np.testing.assert_allclose(tokens[i][np.r_[True, kept]], alone, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(features[i], feature, rtol=1e-5, atol=1e-5)


KINDS = {
    "clip": {},
    "siglip": dict(class_token=False, pooling="attention", ln_pre=False, projection=False, embed_dim=32),
    "mean": dict(class_token=False, pooling="mean", activation="gelu"),
    "mean of patches beside CLS": dict(pooling="mean", mlp_ratio=1.5),
    "dinov2": dict(registers=2, layer_scale=True, gated_mlp=True, activation="silu", ln_pre=False),
    "dinov3": dict(registers=2, positions="rotary", key_bias=False, layer_scale=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masked_patches_are_as_if_they_were_not_there_in_all_kinds(kind):
    config = dataclasses.replace(CONFIG, **KINDS[kind])
    vit = Vit(config, rngs=nnx.Rngs(0))
    tokens, features = nnx.jit(Vit.__call__)(vit, pictures(), jnp.asarray(PATCH_MASK))
    assert tokens.shape == (3, 5, 32), "a summary and four patches"
    first, rotary = vit.embed(pictures()), None
    if config.positions == "rotary":
        rotary = rotary_positions(config, vit.num_extra)

    @nnx.jit
    def encode(vit, x, turned):
        for number in range(config.layers):
            x = unstack(vit.blocks, number)(x, None, turned)
        alone, pooled = vit.summarize(x)
        return alone, vit.projection(pooled) if config.projection else pooled

    for i, kept in enumerate(PATCH_MASK):
        chosen = np.r_[np.ones(vit.num_extra, bool), kept]
        turned = rotary and tuple(part[chosen] for part in rotary)
        alone, feature = encode(vit, first[i, chosen][None], turned)
        np.testing.assert_allclose(tokens[i][np.r_[True, kept]], alone[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(features[i], feature[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_which_nothing_is_kept_has_a_finite_feature_and_gradient(kind):
    vit = Vit(dataclasses.replace(CONFIG, **KINDS[kind]), rngs=nnx.Rngs(0))
    loss = lambda vit: (vit(pictures(), jnp.zeros((3, 4), bool))[1] ** 2).sum()  # noqa: E731
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.jit(nnx.value_and_grad(loss))(vit)))


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "dinov3"])
def test_an_encoder_is_fit_to_another_size_of_picture(kind):
    config = dataclasses.replace(CONFIG, **KINDS[kind])
    larger = dataclasses.replace(config, image_size=24)
    params = nnx.to_pure_dict(nnx.state(Vit(config, rngs=nnx.Rngs(0))))
    wanted = nnx.to_pure_dict(nnx.state(Vit(larger, rngs=nnx.Rngs(0))))
    assert jax.tree.map(jnp.shape, Vit.fit(params, larger)) == jax.tree.map(jnp.shape, wanted)
    if "position_embedding" in params and config.class_token:
        np.testing.assert_array_equal(Vit.fit(params, larger)["position_embedding"][0], params["position_embedding"][0])


def test_rotary_positions_depend_on_the_difference_of_places():
    """The product of a query and a key, both rotated by their places, is that of places moved alike."""
    cos, sin = rotary_positions(dataclasses.replace(CONFIG, image_size=32, width=64), 1)
    assert cos.shape == (17, 16) and np.all(cos[0] == 1) and np.all(sin[0] == 0), "CLS has no place"
    q, k = np.random.default_rng(0).standard_normal((2, 1, 17, 1, 32), np.float32)
    q, k = (np.broadcast_to(x[:, :1], x.shape) for x in (q, k))  # the same everywhere
    q, k = (rotate(jnp.asarray(x), (cos, sin)) for x in (q, k))
    products = np.einsum("blhc,bmhc->lm", q, k)[1:, 1:].reshape(4, 4, 4, 4)
    np.testing.assert_allclose(products[0, 0, 1, 2], products[2, 1, 3, 3], rtol=1e-4)
    np.testing.assert_allclose(products[0, 0, 0, 1], products[3, 2, 3, 3], rtol=1e-4)
    assert abs(products[0, 0, 0, 1] - products[0, 0, 1, 0]) > 0.1, "rows and columns differ"


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

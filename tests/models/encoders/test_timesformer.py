"""An encoder of videos that starts from one of pictures; the golden case has its numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.config import ConfigError
from rice_jax.models.encoders.timesformer import Timesformer
from rice_jax.models.encoders.vit import Vit
from tests.models.encoders.test_vit import CONFIG, KINDS

FRAMES = 3


def of(kind):
    return dataclasses.replace(CONFIG, architecture="timesformer", num_frames=4, **KINDS[kind])


def videos(count=3):
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, FRAMES, 16, 16, 3)), jnp.float32)


def trained(config):
    """An encoder in which frames take from each other, and know their place."""
    encoder, rng = Timesformer(config, rngs=nnx.Rngs(0)), np.random.default_rng(1)
    for layer in (encoder.time_embedding, encoder.blocks.temporal.dense.kernel):
        layer[...] = jnp.asarray(0.2 * rng.standard_normal(layer[...].shape), jnp.float32)
    return encoder


@pytest.mark.parametrize("kind", KINDS)
def test_one_frame_is_encoded_as_by_the_encoder_of_pictures_that_it_starts_from(kind):
    config = of(kind)
    vit = Vit(config, rngs=nnx.Rngs(2))
    params = Timesformer.fit(jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(vit))), config)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: Timesformer(config, rngs=nnx.Rngs(0))))
    expected = jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(shapes))
    assert jax.tree.map(lambda x: x.shape, params) == expected
    encoder = nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))
    one = nnx.jit(Timesformer.__call__)(encoder, videos()[:, :1], jnp.ones((3, 1), bool))
    np.testing.assert_allclose(one, nnx.jit(Vit.__call__)(vit, videos()[:, 0])[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(params["blocks"]["temporal"]["qkv"]["kernel"], params["blocks"]["qkv"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, Timesformer.fit(params, config), params)


@pytest.mark.parametrize("kind", ["siglip", "mean", "dinov3"])  # one of each pooling
def test_padding_is_as_if_it_was_not_there(kind):
    encoder, apply = trained(of(kind)), nnx.jit(Timesformer.__call__)
    mask = np.arange(FRAMES) < np.array([[3], [2], [1]])

    @nnx.jit
    def encoded_and_gradient(encoder):
        def loss(encoder):
            found = encoder(videos(), jnp.asarray(mask))
            return (found**2).sum(), found

        (_, found), gradient = nnx.value_and_grad(loss, has_aux=True)(encoder)
        return found, gradient

    found, gradient = encoded_and_gradient(encoder)
    for row, num_frames in enumerate((3, 2, 1)):
        alone = apply(encoder, videos()[row : row + 1, :num_frames], jnp.ones((1, num_frames), bool))
        np.testing.assert_allclose(found[row], alone[0], rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_frames_have_an_order():
    encoder, mask, apply = trained(of("clip")), jnp.ones((3, FRAMES), bool), nnx.jit(Timesformer.__call__)
    ordered, turned = (apply(encoder, x, mask) for x in (videos(), videos()[:, ::-1]))
    assert np.abs(ordered - turned).max() > 1e-3


def test_more_frames_than_positions_are_refused():
    encoder = Timesformer(dataclasses.replace(of("clip"), num_frames=2), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match=r"^config\.model\.num_frames: found 2, expected 3 or more, the frames of a"):
        encoder(videos(), jnp.ones((3, FRAMES), bool))


def test_rematerialization_changes_no_number_and_the_compute_type_is_the_settings():
    mask, losses = jnp.ones((3, FRAMES), bool), []
    for changes in ({}, {"remat": "full", "unroll": True}):
        encoder = trained(dataclasses.replace(of("clip"), **changes))
        losses.append(nnx.jit(nnx.value_and_grad(lambda encoder: (encoder(videos(), mask) ** 2).sum()))(encoder))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *losses)
    half = Timesformer(dataclasses.replace(of("clip"), dtype="bfloat16"), rngs=nnx.Rngs(0))
    assert nnx.jit(Timesformer.__call__)(half, videos(), mask).dtype == jnp.bfloat16

"""X-CLIP's frame mask, single pictures, positions and fresh layers; the golden case has its numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.config import ConfigError
from rice_jax.models.encoders.vit import Vit
from rice_jax.models.encoders.xclip import Xclip
from tests.models.encoders.test_vit import CONFIG, KINDS

FRAMES, KNOWN = 3, 4  # of a video; that have a position


def of(kind, **changes):
    sizes = dict(architecture="xclip", num_frames=KNOWN, integration_layers=2, integration_heads=2)
    return dataclasses.replace(CONFIG, **sizes | KINDS[kind] | changes)


def videos(count=3):
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, FRAMES, 16, 16, 3)), jnp.float32)


def trained(config):
    """An encoder in which frames take from each other, and know their place."""
    encoder, rng = Xclip(config, rngs=nnx.Rngs(0)), np.random.default_rng(1)
    blocks = encoder.integration.blocks
    for layer in (
        *(encoder.blocks.message.out.kernel, encoder.blocks.message.dense.kernel, encoder.integration.position),
        *(blocks.out.kernel, blocks.down.kernel),
    ):
        layer[...] = jnp.asarray(0.3 * rng.standard_normal(layer[...].shape), jnp.float32)
    return encoder


apply = nnx.jit(Xclip.__call__)


@pytest.mark.parametrize("kind", ["siglip", "mean", "dinov3"])  # one of each pooling
def test_padding_is_as_if_it_was_not_there(kind):
    encoder, mask = trained(of(kind)), np.arange(FRAMES) < np.array([[3], [2], [1]])
    found = apply(encoder, videos(), jnp.asarray(mask))
    for row, num_frames in enumerate((3, 2, 1)):
        alone = apply(encoder, videos()[row : row + 1, :num_frames], jnp.ones((1, num_frames), bool))
        np.testing.assert_allclose(found[row], alone[0], rtol=1e-4, atol=1e-5)
    loss = lambda encoder, x: (encoder(x, jnp.asarray(mask)) ** 2).sum()  # noqa: E731
    gradients, of_pixels = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(encoder, videos())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert (np.abs(of_pixels).max(axis=(2, 3, 4)) > 0).tolist() == mask.tolist()


def test_a_picture_is_as_many_equal_frames_as_have_a_position():
    """Alone, or beside padding in any place."""
    encoder, picture = trained(of("clip")), videos()[:, 1:2]
    expected = apply(encoder, jnp.repeat(picture, KNOWN, axis=1), jnp.ones((3, KNOWN), bool))
    np.testing.assert_allclose(apply(encoder, picture, jnp.ones((3, 1), bool)), expected, rtol=1e-4, atol=1e-5)
    padded = apply(encoder, videos(), jnp.asarray([[False, True, False]] * 3))
    np.testing.assert_allclose(padded, expected, rtol=1e-4, atol=1e-5)
    fewer = apply(encoder, jnp.repeat(picture, 2, axis=1), jnp.ones((3, 2), bool))
    assert np.abs(fewer - expected).max() > 1e-3, "two frames have two positions"


def test_frames_have_an_order_and_take_from_each_other_in_the_blocks():
    encoder, mask = trained(of("clip")), jnp.ones((3, FRAMES), bool)
    ordered, turned = (apply(encoder, x, mask) for x in (videos(), videos()[:, ::-1]))
    assert np.abs(ordered - turned).max() > 1e-3
    tokens = nnx.jit(lambda encoder, x, mask: encoder.apply_blocks(encoder.embed_videos(x), mask))
    changed = videos().at[:, 2].add(1.0)
    difference = np.abs(tokens(encoder, videos(), mask) - tokens(encoder, changed, mask)).reshape(3, FRAMES, -1)
    assert (difference.max(axis=-1) > 1e-4).all(), "of frames that did not change, too"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_fresh_layers_take_the_mean_of_frames_and_copy_their_summaries(kind):
    config = of(kind)
    encoder, mask = Xclip(config, rngs=nnx.Rngs(0)), jnp.asarray([[True, True, False]] * 3)
    features = encoder.frame_features(encoder.apply_blocks(encoder.embed_videos(videos()), mask), mask)
    np.testing.assert_allclose(encoder(videos(), mask), 2 * features[:, :2].mean(axis=1), rtol=1e-4, atol=1e-5)
    summaries = jnp.asarray(np.random.default_rng(2).standard_normal((3, FRAMES, config.width)), jnp.float32)
    graphdef, state = nnx.split(encoder.blocks)
    message = nnx.merge(graphdef, jax.tree.map(lambda x: x[0], state)).message
    np.testing.assert_allclose(message(summaries, mask), summaries, rtol=1e-5)


def test_positions_are_interpolated_to_another_size_and_number_of_frames():
    config = of("clip", projection=False, embed_dim=32)
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(Xclip(config, rngs=nnx.Rngs(0)))))
    jax.tree.map(np.testing.assert_array_equal, Xclip.fit(params, config), params)
    ramp = np.arange(4.0, dtype=np.float32)[:, None] * np.ones(32, np.float32)
    params["integration"]["position"] = ramp
    larger = dataclasses.replace(config, image_size=32, num_frames=8)
    found = Xclip.fit(params, larger)
    shapes = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: Xclip(larger, rngs=nnx.Rngs(0))))[1])
    assert jax.tree.map(lambda x: x.shape, found) == jax.tree.map(lambda x: x.shape, shapes)
    inner = [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]  # between the frames' centers
    np.testing.assert_allclose(found["integration"]["position"][:, 0], [0, *inner, 3], rtol=1e-5)
    vit = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(Vit(CONFIG, rngs=nnx.Rngs(0)))))
    assert "integration" not in Xclip.fit(vit, of("clip")), "these stay fresh"


def test_more_frames_than_positions_are_refused():
    encoder = Xclip(of("clip", num_frames=2), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match=r"^config\.model\.num_frames: found 2, expected 3 or more, the frames of a"):
        encoder(videos(), jnp.ones((3, FRAMES), bool))


def test_rematerialization_changes_no_number_and_the_compute_type_is_the_settings():
    mask, losses = jnp.ones((3, FRAMES), bool), []
    for changes in ({}, {"remat": "full", "unroll": True}):
        encoder = trained(of("clip", **changes))
        losses.append(nnx.jit(nnx.value_and_grad(lambda encoder: (encoder(videos(), mask) ** 2).sum()))(encoder))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *losses)
    half = Xclip(of("clip", dtype="bfloat16"), rngs=nnx.Rngs(0))
    assert half(videos(), mask).dtype == jnp.bfloat16

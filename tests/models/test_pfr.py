import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import softmax

from rice_jax.losses.reconstruction import reconstruction_loss
from rice_jax.models.pfr import Pfr
from tests.settings import small_config

BATCH, FRAMES, TOKENS, WIDTH, HEADS = 3, 3, 2, 8, 4


def fresh(**pfr):
    """A head over 2 pairs of 4 maps."""
    model = small_config(
        model__layers=4, model__width=WIDTH, model__pmd__num_pairs=2, model__pmd__num_heads=HEADS
    ).model
    return Pfr(WIDTH, model.pmd, dataclasses.replace(model.pfr, **pfr), rngs=nnx.Rngs(0))


def head(**pfr):
    """The same with weights so small that its softmax is far from saturated, and biases."""
    head = fresh(**pfr)
    rng = np.random.default_rng(0)
    for conv in (head.conv_1, head.conv_2):
        conv.kernel[...] /= 4
        conv.bias[...] = jnp.asarray(0.1 * rng.standard_normal(conv.bias.shape, np.float32))
    return head


def inputs():
    rng = np.random.default_rng(1)
    frame_mask = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0]], bool)
    scores = 3 * rng.standard_normal((BATCH, 2 * HEADS, TOKENS, FRAMES * TOKENS))
    attention = softmax(np.where(frame_mask.repeat(TOKENS, axis=1)[:, None, None], scores, -np.inf), axis=-1)
    video_tokens = rng.standard_normal((BATCH, FRAMES, TOKENS, WIDTH))
    return jnp.asarray(attention, jnp.float32), jnp.asarray(video_tokens, jnp.float32), jnp.asarray(frame_mask)


def expected(head, attention, video_tokens, frame_mask):
    """docs/reference.md, section 4, token by token, float64."""
    kernels = [np.float64(conv.kernel[...]) for conv in (head.conv_1, head.conv_2)]
    biases = [np.float64(conv.bias[...]) for conv in (head.conv_1, head.conv_2)]
    result = np.zeros((BATCH, TOKENS, WIDTH))
    for i, token in np.ndindex(BATCH, TOKENS):
        frames = frame_mask[i] if head.mask_padding else np.ones(FRAMES, bool)
        maps = np.float64(attention[i, :, token]).reshape(-1, FRAMES, TOKENS)[:, frames]
        hidden = np.maximum(
            np.einsum("cft,ch->hft", maps * np.sqrt(WIDTH / HEADS), kernels[0]) + biases[0][:, None, None], 0
        )
        score = np.maximum(np.einsum("hft,h->ft", hidden, kernels[1][:, 0]) + biases[1], 0)
        tokens = np.where(frame_mask[i][:, None, None], np.float64(video_tokens[i]), 0)[frames]
        result[i, token] = np.einsum("ft,ftd->d", softmax(score), tokens)
    return result


@pytest.mark.parametrize("mask_padding", [True, False])
def test_reconstruction_against_a_loop_in_float64(mask_padding):
    pfr = head(mask_padding=mask_padding)
    result = jax.jit(pfr)(*inputs())
    np.testing.assert_allclose(result, expected(pfr, *inputs()), rtol=1e-5, atol=1e-6)
    attention, video_tokens, frame_mask = inputs()
    other = jnp.where(frame_mask[..., None, None], video_tokens, 1e4)
    np.testing.assert_array_equal(jax.jit(pfr)(attention, other, frame_mask), result)


def test_unmasked_padding_takes_weight_but_gives_nothing():
    """What the reference does: of equal tokens the rebuilt ones are shorter where frames are missing."""
    attention, video_tokens, frame_mask = inputs()
    ones = jnp.ones_like(video_tokens)
    np.testing.assert_allclose(jax.jit(head(mask_padding=True))(attention, ones, frame_mask), 1, rtol=1e-6)
    mirrored = np.asarray(jax.jit(head(mask_padding=False))(attention, ones, frame_mask))
    np.testing.assert_allclose(mirrored[0], 1, rtol=1e-6)
    assert np.all(mirrored[1:] < 0.9)


def test_gradient_reaches_the_maps_and_the_head_but_neither_tokens_nor_target():
    pfr = head()
    attention, video_tokens, frame_mask = inputs()
    target = jnp.asarray(np.random.default_rng(2).standard_normal((BATCH, TOKENS, WIDTH)), jnp.float32)
    graphdef, params = nnx.split(pfr)

    def loss(params, attention, video_tokens, target):
        return reconstruction_loss(nnx.merge(graphdef, params)(attention, video_tokens, frame_mask), target)

    arguments = (nnx.to_pure_dict(params), attention, video_tokens, target)
    weights, maps, tokens, of_target = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arguments)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(weights))
    assert not np.any(tokens) and not np.any(of_target)
    padding = ~np.repeat(frame_mask, TOKENS, axis=1)
    assert not np.any(np.moveaxis(maps, -1, 1)[padding]) and np.all(np.any(maps, axis=(1, 2)) == ~padding)

    def naive(attention):
        return np.mean((expected(pfr, attention, video_tokens, frame_mask) - np.float64(target)) ** 2)

    step = 1e-4
    for place in [(0, 0, 0, 0), (1, 5, 1, 5), (2, 7, 0, 3)]:
        above, below = np.array(attention, np.float64), np.array(attention, np.float64)
        above[place] += step
        below[place] -= step
        np.testing.assert_allclose(maps[place], (naive(above) - naive(below)) / (2 * step), rtol=1e-3, atol=1e-7)


def test_all_ones_keep_the_hidden_maps_alike_and_the_random_start_does_not():
    attention, video_tokens, frame_mask = inputs()
    for init, alike in (("ones", True), ("random", False)):
        pfr = fresh(init=init)
        graphdef, params = nnx.split(pfr)

        def total(params, graphdef=graphdef):
            return (nnx.merge(graphdef, params)(attention, video_tokens, frame_mask) ** 2).sum()

        gradient = nnx.to_pure_dict(jax.jit(jax.grad(total))(params))["conv_1"]["kernel"]
        assert np.allclose(gradient, gradient[:, :1], rtol=1e-4) == alike
        assert np.all(pfr.conv_1.kernel[...] == 1) == alike
        assert not np.any(pfr.conv_1.bias[...]) and abs(np.mean(pfr.conv_1.kernel[...]) - 1) < 0.2

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit, softmax

from rice_jax.models.pmd import Pmd, take_local
from rice_jax.parallel.mesh import path_name
from tests.settings import small_config

BATCH, FRAMES, TOKENS, WIDTH, HEADS = 4, 3, 5, 32, 4
# Every image with two others; the last with its neighbor twice.
NEGATIVES = jnp.array([[1, 2], [0, 3], [3, 1], [2, 2]])


def decoder(num_pairs=1, **changes):
    """Structure and weights of a decoder, weights so large that every part of it shows in its cosines."""
    pmd = dict(model__pmd__num_pairs=num_pairs, model__pmd__num_heads=HEADS, model__pmd__attention_dropout=0.5)
    model = small_config(model__layers=4, **pmd).model
    encoder = dataclasses.replace(model.encoder, **changes)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: Pmd(encoder, model.pmd, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def weights(path, shape):
        return 0.2 * rng.standard_normal(shape.shape, np.float32) + ("scale" in path_name(path))

    return graphdef, jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(weights, shapes))


def inputs(batch=BATCH):
    rng = np.random.default_rng(1)
    image_tokens = rng.standard_normal((batch, TOKENS, WIDTH), np.float32)
    video_tokens = rng.standard_normal((batch, FRAMES, TOKENS, WIDTH), np.float32)
    frame_mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 1]], bool)[np.arange(batch) % 4]
    return jnp.asarray(image_tokens), jnp.asarray(video_tokens), jnp.asarray(frame_mask)


def run(graphdef, params, *arrays, **options):
    return jax.jit(lambda params, *arrays: nnx.merge(graphdef, params)(*arrays, **options))(params, *arrays)


def expected(params, image_tokens, frames):
    """Cosine and maps [C, L, M] of an image and the real frames of a video, float64 (docs/reference.md, section 3)."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(params))

    def layer_norm(x, p, epsilon=1e-5):
        x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    def block(x, others, p, epsilon):
        normed = layer_norm(x, p["ln_1"], epsilon)
        sources = [normed] + 2 * [normed if others is None else others]
        q, k, v = (linear(source, p["qkv"])[:, i * WIDTH :][:, :WIDTH] for i, source in enumerate(sources))
        maps, attended = [], []
        for channels in np.split(np.arange(WIDTH), HEADS):
            maps.append(softmax(q[:, channels] @ k[:, channels].T / np.sqrt(WIDTH / HEADS), axis=-1))
            attended.append(maps[-1] @ v[:, channels])
        x = x + linear(np.concatenate(attended, axis=1), p["out"])
        hidden = linear(layer_norm(x, p["ln_2"], epsilon), p["up"])
        return x + linear(hidden * expit(1.702 * hidden), p["down"]), maps

    x, video, maps = np.float64(image_tokens), np.float64(frames).reshape(-1, WIDTH), []
    for pair in range(len(params["self_blocks"]["ln_1"]["scale"])):
        self_block, cross_block = (
            jax.tree.map(lambda p, pair=pair: p[pair], params[name]) for name in ("self_blocks", "cross_blocks")
        )
        x, _ = block(x, None, self_block, 1e-12)
        x, pair_maps = block(x, video, cross_block, 1e-5)
        maps += pair_maps
    pooled = np.maximum(layer_norm(x[0], params["ln_pool"]) @ params["pool"]["kernel"], 0)
    vector = params["match_vector"]
    return pooled @ vector / np.linalg.norm(pooled) / np.linalg.norm(vector), np.stack(maps)


@pytest.mark.parametrize("num_pairs", [1, 2])
def test_cosines_and_maps_of_every_pair_against_float64(num_pairs):
    graphdef, params = decoder(num_pairs)
    image_tokens, video_tokens, frame_mask = inputs()
    matches = run(graphdef, params, image_tokens, video_tokens, frame_mask, NEGATIVES, with_attention=True)
    assert matches.attention.shape == (BATCH, num_pairs * HEADS, TOKENS, FRAMES * TOKENS)
    attention = np.asarray(matches.attention).reshape(BATCH, num_pairs * HEADS, TOKENS, FRAMES, TOKENS)
    for i in range(BATCH):
        for place, j in enumerate([i, *NEGATIVES[i]]):
            cosine, maps = expected(params, image_tokens[i], video_tokens[j][frame_mask[j]])
            np.testing.assert_allclose(matches.cosine[i, place], cosine, rtol=1e-4, atol=1e-5)
            if place == 0:
                real = attention[i][:, :, frame_mask[i]].reshape(maps.shape)
                np.testing.assert_allclose(real, maps, rtol=1e-3, atol=1e-5)
        assert not attention[i][:, :, ~frame_mask[i]].any(), "no probability on padding"
    np.testing.assert_allclose(attention.sum(axis=(-2, -1)), 1, rtol=1e-5)
    assert np.ptp(matches.cosine) > 0.1, "the pairs differ, so mistaken ones would show"
    # Without the maps less is computed, but the cosines are the same.
    without = run(graphdef, params, image_tokens, video_tokens, frame_mask, NEGATIVES)
    assert without.attention is None
    np.testing.assert_allclose(without.cosine, matches.cosine, rtol=1e-5, atol=1e-6)


def test_what_padding_frames_show_changes_nothing():
    graphdef, params = decoder(2)
    image_tokens, video_tokens, frame_mask = inputs()
    padding = ~np.asarray(frame_mask)[..., None, None]
    noise = 1e4 * np.random.default_rng(2).standard_normal(video_tokens.shape, np.float32)

    @jax.jit
    def compute(video_tokens):
        def total(video_tokens):
            pmd = nnx.merge(graphdef, params)
            matches = pmd(image_tokens, video_tokens, frame_mask, NEGATIVES, with_attention=True)
            return matches.cosine.sum() + (matches.attention**2).sum(), matches

        return jax.grad(total, has_aux=True)(video_tokens)

    gradient, matches = compute(video_tokens)
    for other in (noise, np.zeros_like(noise)):
        jax.tree.map(np.testing.assert_array_equal, matches, compute(jnp.where(padding, other, video_tokens))[1])
    assert not np.any(np.where(padding, gradient, 0)) and np.all(np.isfinite(gradient))
    assert np.all(np.any(gradient, axis=(2, 3)) == frame_mask), "every real frame's tokens learn"


def test_rematerialization_changes_no_number():
    image_tokens, video_tokens, frame_mask = inputs()
    outputs = []
    for remat in ("none", "dots", "full"):
        graphdef, params = decoder(remat=remat)

        @jax.jit
        def compute(params, image_tokens, video_tokens, graphdef=graphdef):
            def total(*arrays):
                pmd = nnx.merge(graphdef, arrays[0])
                options = dict(with_attention=True, dropout_key=jax.random.key(0))
                matches = pmd(*arrays[1:], frame_mask, NEGATIVES[:, :1], **options)
                return (matches.cosine**2).sum() + (matches.attention**2).sum()

            return jax.value_and_grad(total, argnums=(0, 1, 2))(params, image_tokens, video_tokens)

        outputs.append(compute(params, image_tokens, video_tokens))
    for output in outputs[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), output, outputs[0])


def test_dropout_is_a_function_of_the_key_and_spares_the_maps():
    graphdef, params = decoder()
    arrays = [*inputs(), NEGATIVES]
    compute = jax.jit(lambda key: nnx.merge(graphdef, params)(*arrays, with_attention=True, dropout_key=key))
    first, again, other = (compute(jax.random.key(seed)) for seed in (0, 0, 1))
    none = compute(None)
    np.testing.assert_array_equal(first.cosine, again.cosine)
    assert np.all(first.cosine != other.cosine) and np.all(first.cosine != none.cosine)
    assert first.cosine[3, 1] == first.cosine[3, 2], "a video has one draw for all images"
    assert none.cosine[3, 1] == none.cosine[3, 2]
    np.testing.assert_allclose(first.attention, none.attention, rtol=1e-6)


def test_negatives_within_parts_of_the_batch_equal_negatives_of_the_batch():
    graphdef, params = decoder()
    arrays = inputs(8)
    negatives = np.array([[1], [0], [3], [2], [5], [4], [7], [6]])
    whole, parts = (run(graphdef, params, *arrays, negatives, num_shards=n).cosine for n in (1, 4))
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    rows = jnp.arange(24).reshape(8, 3)
    np.testing.assert_array_equal(take_local(rows, jnp.array(negatives[:, 0]), 4), rows[negatives[:, 0]])


def test_a_hidden_state_that_pools_to_nothing_has_no_direction_and_no_nan():
    graphdef, params = decoder()
    params["pool"]["kernel"] = jax.tree.map(jnp.zeros_like, params["pool"]["kernel"])
    hidden = jnp.ones((2, WIDTH))
    cosine = lambda hidden: nnx.merge(graphdef, params).cosine(hidden).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(cosine)(hidden)
    assert value == 0 and np.all(np.isfinite(gradient))


def test_bfloat16_leaves_parameters_cosines_and_maps_in_float32():
    model = small_config(model__dtype="bfloat16").model
    pmd = nnx.eval_shape(lambda: Pmd(model.encoder, model.pmd, rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(pmd))} == {jnp.dtype("float32")}
    graphdef, params = decoder(dtype="bfloat16")
    image_tokens, video_tokens, frame_mask = inputs()
    tokens = [x.astype(jnp.bfloat16) for x in (image_tokens, video_tokens)]
    matches = run(graphdef, params, *tokens, frame_mask, NEGATIVES, with_attention=True)
    assert matches.cosine.dtype == matches.attention.dtype == jnp.float32

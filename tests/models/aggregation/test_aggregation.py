"""What every aggregation keeps; `tests/test_parity_parts.py` compares their results with recorded ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.config import AggregationConfig, AttentionConfig, ConfigError, FrameTransformerConfig
from rice_jax.models.aggregation import AGGREGATIONS, Aggregation
from rice_jax.models.aggregation.mean import embed

EMBED_DIM, FRAMES = 8, 4
CONFIGS = {
    "features": AggregationConfig("features"),
    "embeddings": AggregationConfig("embeddings"),
    "attention": AggregationConfig("attention"),
    "direction": AggregationConfig("attention", AttentionConfig(pooling="direction")),
    "relu": AggregationConfig("attention", AttentionConfig("relu")),
    "softmax": AggregationConfig("attention", AttentionConfig("softmax", "mean")),
    "transformer": AggregationConfig("transformer", transformer=FrameTransformerConfig(2, 2, FRAMES)),
    "differences": AggregationConfig("transformer", transformer=FrameTransformerConfig(1, 2, FRAMES, True)),
}
MEANS = [name for name in CONFIGS if CONFIGS[name].kind in ("features", "embeddings", "attention", "transformer")]
MASK = np.arange(FRAMES) < np.array([[4], [2], [1]])


def fresh(config: AggregationConfig):
    graphdef, state = nnx.split(AGGREGATIONS[config.kind](config, EMBED_DIM, rngs=nnx.Rngs(0)))
    return graphdef, nnx.to_pure_dict(state)


@functools.cache
def trained(name: str):
    """An aggregation with random weights, none of them zero, and its gradient as a function."""
    graphdef, params = fresh(CONFIGS[name])
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), params)
    weights = rng.normal(size=EMBED_DIM)

    @jax.jit
    def results(features, mask):
        def total(params, features):
            out = nnx.merge(graphdef, params)(features, mask)
            return (out * weights).sum(), out

        (_, out), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, features)
        return out, gradients

    return results


def features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, FRAMES, EMBED_DIM)).astype(np.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing(name):
    """Neither other frames nor zeros, which have no direction; and the gradients of padding are zero."""
    results = trained(name)
    expected = results(features(), MASK)
    for padding in (100 * features(1), np.zeros_like(features())):
        found = results(np.where(MASK[..., None], features(), padding), MASK)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
        assert not np.any(np.asarray(found[1][1])[~MASK])
    alone, _ = results(features()[1:2, :2], MASK[1:2, :2])
    np.testing.assert_allclose(alone[0], expected[0][1], rtol=1e-5, atol=1e-6)
    one, gradients = results(features()[:, :1], MASK[:, :1])
    assert np.isfinite(one).all() and all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    np.testing.assert_allclose(one[2], expected[0][2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MEANS)
def test_fresh_weights_start_from_a_mean(name):
    graphdef, params = fresh(CONFIGS[name])
    assert isinstance(nnx.merge(graphdef, params), Aggregation)
    aggregate = jax.jit(lambda params, features: embed(nnx.merge(graphdef, params)(features, jnp.asarray(MASK))))
    found = aggregate(params, jnp.asarray(features(), jnp.bfloat16))
    assert found.dtype == jnp.float32
    rounded = [np.asarray(jnp.asarray(x[m], jnp.bfloat16), np.float64) for x, m in zip(features(), MASK, strict=True)]
    unit = name in ("embeddings", "transformer", "differences")
    means = [np.mean(x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x, axis=0) for x in rounded]
    expected = [mean / np.linalg.norm(mean) for mean in means]
    # The transformer adds its positions.
    np.testing.assert_allclose(found, expected, atol=0.02 if CONFIGS[name].kind == "transformer" else 1e-5)


def test_a_frame_without_a_position_is_refused():
    config = AggregationConfig("transformer", transformer=FrameTransformerConfig(1, 2, 3))
    graphdef, params = fresh(config)
    with pytest.raises(ConfigError, match="transformer.num_frames: found 3, expected 4 or more, the frames of a video"):
        nnx.merge(graphdef, params)(jnp.asarray(features()), jnp.asarray(MASK))

"""The timeline is the best of all paths of a small model."""

import itertools

import numpy as np
import pytest

from rice_jax.eval.pooling import Pooling
from rice_jax.recognition.timeline import timeline

NUM_FRAMES, SECONDS, SHARPNESS = 3, 15.0, 6.0


def features_of(states, vectors, noise=0.0, seed=0):
    """A feature for each state; -1 = similar to no vector."""
    rng = np.random.default_rng(seed)
    clean = np.stack([vectors[state] if state >= 0 else np.roll(vectors.sum(axis=0), 2) for state in states])
    lengths = rng.uniform(5, 9, (len(states), 1))
    return (lengths * (clean + noise * rng.standard_normal(clean.shape))).astype(np.float32)


def by_all_paths(features, times, vectors, scale, none, frame_weight, products=None, inflation=None):
    """The likeliest of all paths, by enumeration."""
    products = [[row] for row in range(len(vectors))] if products is None else products
    inflation = np.zeros(len(products)) if inflation is None else inflation
    scores = np.zeros((len(features), len(products) + (none is not None)))
    for t, feature in enumerate(features):
        near = features[max(t - 1, 0) : t + 2]
        own = scale * (vectors @ feature) / np.linalg.norm(near.mean(axis=0))
        around = vectors @ near.mean(axis=0) / np.linalg.norm(near.mean(axis=0))
        for place, rows in enumerate(products):
            best = max(rows, key=around.__getitem__)
            pooled = np.log(np.mean([np.exp(SHARPNESS * around[row]) for row in rows])) / SHARPNESS
            scores[t, place] = own[best] + scale * (pooled - inflation[place] - around[best])
        if none is not None:
            scores[t, -1] = none
    scores *= frame_weight / NUM_FRAMES
    num_states = scores.shape[1]

    def weigh(path):
        weight = sum(scores[t, state] for t, state in enumerate(path))
        for t, (one, other) in enumerate(itertools.pairwise(path)):
            change = 1 - np.exp(-(times[t + 1] - times[t]) / SECONDS)
            weight += np.log(1 - change if one == other else change / (num_states - 1))
        return weight

    return max(itertools.product(range(num_states), repeat=len(features)), key=weigh)


@pytest.mark.parametrize("none", [None, 6.0, 9.0])
@pytest.mark.parametrize("frame_weight", [1.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_likeliest_path(none, frame_weight, seed):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.standard_normal((5, 5)))[0][:2].astype(np.float32)
    states = [0, 0, 0, -1, -1, 1, 1]
    features = features_of(states, vectors, noise=0.15, seed=seed)
    times = np.cumsum([0.0, 1, 1, 1, 4, 1, 1])
    settings = dict(num_frames=NUM_FRAMES, end=10.0, frame_weight=frame_weight)
    segments = timeline(features, times, vectors, 12.0, none, **settings)
    path = by_all_paths(features, times, vectors, 12.0, none, frame_weight)
    found = [row for segment in segments for row in [segment.product] * len(range(7)[segment.frames])]
    assert found == [None if state == 2 else state for state in path]


@pytest.mark.parametrize("none", [None, 6.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_product_of_several_images_is_one_state(none, seed):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.standard_normal((5, 5)))[0][:3].astype(np.float32)
    states = [0, 0, 1, 1, -1, -1, 2, 2]
    features = features_of(states, vectors, noise=0.15, seed=seed)
    times = np.cumsum([0.0, 1, 1, 1, 1, 4, 1, 1])
    settings = dict(num_frames=NUM_FRAMES, end=11.0, frame_weight=4.0)
    inflation = np.array([0.05, 0.0])
    pooling = Pooling(np.array([0, 2, 3]), SHARPNESS, inflation)
    found = timeline(features, times, vectors, 12.0, none, pooling=pooling, **settings)
    path = by_all_paths(features, times, vectors, 12.0, none, 4.0, [[0, 1], [2]], inflation)
    places = [segment.product for segment in found for _ in range(8)[segment.frames]]
    assert places == [None if state == 2 else state for state in path] and places[:4] == [0, 0, 0, 0]
    each = timeline(features, times, vectors, 12.0, none, pooling=Pooling(np.arange(4), 3.0, np.zeros(3)), **settings)
    assert each == timeline(features, times, vectors, 12.0, none, **settings)


def test_segments_meet_half_way_and_cover_everything():
    vectors = np.eye(4, dtype=np.float32)[:2]
    states = [0] * 6 + [-1] * 6 + [1] * 6
    times = 2.0 * np.arange(18) + 10
    segments = timeline(features_of(states, vectors), times, vectors, 60.0, 30.0, num_frames=NUM_FRAMES, end=46.0)
    assert [(segment.start, segment.end, segment.product) for segment in segments] == [
        (10, 21, 0), (21, 33, None), (33, 46, 1),
    ]  # fmt: skip
    assert [segment.frames for segment in segments] == [slice(0, 6), slice(6, 12), slice(12, 18)]


def test_a_single_odd_frame_changes_nothing():
    vectors = np.eye(4, dtype=np.float32)[:2]
    states = [0] * 6 + [1] + [0] * 6
    [segment] = timeline(features_of(states, vectors), np.arange(13.0), vectors, 12.0, 6.0, num_frames=10, end=13.0)
    assert segment.product == 0


@pytest.mark.parametrize("num_frames", [1, 2])
def test_without_choice(num_frames):
    vectors = np.eye(4, dtype=np.float32)[:1]
    times = np.arange(float(num_frames))
    [segment] = timeline(
        features_of([-1] * num_frames, vectors), times, vectors, 30.0, None, num_frames=10, end=times[-1] + 0.5
    )
    assert segment == (0, times[-1] + 0.5, 0, slice(0, num_frames))


def test_a_long_video_of_many_products():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    states = np.repeat(rng.permutation(500)[:100], 20)
    segments = timeline(
        features_of(states, vectors, noise=0.1), np.arange(2000.0), vectors, 40.0, 24.0, num_frames=10,
        end=2000.0,
    )  # fmt: skip
    found = np.repeat([segment.product for segment in segments], [len(range(2000)[s.frames]) for s in segments])
    assert (found == states).mean() > 0.99

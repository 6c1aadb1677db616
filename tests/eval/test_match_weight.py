"""Re-ranking by score + weight · match, and the weight."""

import dataclasses

import numpy as np
import pytest

from rice_jax.eval.ranking import GalleryImages, Queries, rank
from rice_jax.eval.rerank import Matched, add_matches, fit_weight, reorder
from rice_jax.eval.weight import cross_fit, half_of

PRODUCTS, QUERIES, K, SIZE = 30, 600, 8, 24


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def world(frames=0, seed=0):
    """Queries that are noisy copies of their product's picture."""
    rng = np.random.default_rng(seed)
    pictures, truth = unit(rng.normal(size=(PRODUCTS, SIZE))), rng.integers(0, PRODUCTS, QUERIES)
    shape = (QUERIES, frames, SIZE) if frames else (QUERIES, SIZE)
    shown = pictures[truth][:, None] if frames else pictures[truth]
    videos = unit(shown + 2.5 * rng.normal(size=shape) / np.sqrt(SIZE))
    names = [f"p{number}" for number in range(PRODUCTS)]
    queries = Queries(
        videos,
        [f"q{number}" for number in range(QUERIES)],
        ["g"] * QUERIES,
        [[names[number]] for number in truth],
        np.ones((QUERIES, frames), bool) if frames else None,
    )
    return queries, GalleryImages(pictures, ["g"] * PRODUCTS, names)


def decode(ranked, signal, noise, seed=1):
    """A decoder whose cosine is larger by `signal` for the truth."""
    rng = np.random.default_rng(seed)
    of_queries = zip(ranked.top, ranked.truths, strict=True)
    is_truth = np.array([[name in truths for name, _ in top[:K]] for top, truths in of_queries])
    return Matched(ranked, (signal * is_truth + noise * rng.normal(size=is_truth.shape)).astype(np.float32))


def first(ranked):
    return (ranked.rank == 1).mean()


def weighted(matches, queries, images):
    products = [truths[0] for truths in matches.ranked.truths]
    weights = cross_fit(products, lambda among: fit_weight(matches, queries, images, among=among))
    return reorder(matches.ranked, add_matches(matches, weights)), weights


@pytest.mark.parametrize("frames", [0, 3])
def test_a_decoder_that_tells_nothing_leaves_the_order(frames):
    queries, images = world(frames)
    ranked = rank(queries, images)
    matches = decode(ranked, signal=0.0, noise=0.3)
    found, weights = weighted(matches, queries, images)
    assert weights.max() < 0.05
    assert first(reorder(*matches)) < first(ranked) - 0.2, "by the decoder alone, the order is lost"
    assert first(found) == pytest.approx(first(ranked), abs=0.02)
    opposite = decode(ranked, signal=-0.2, noise=0.1)
    found, weights = weighted(opposite, queries, images)
    assert not weights.any() and found == dataclasses.replace(ranked, top=found.top, images=found.images)
    assert found.top == ranked.top and found.images == ranked.images


@pytest.mark.parametrize("frames", [0, 3])
def test_both_together_are_better_than_either(frames):
    queries, images = world(frames)
    ranked = rank(queries, images)
    matches = decode(ranked, signal=0.2, noise=0.12)
    found, weights = weighted(matches, queries, images)
    assert first(found) > max(first(ranked), first(reorder(*matches))) + 0.03
    assert len({*weights.tolist()}) == 2

    def share(weight):
        return first(reorder(ranked, add_matches(matches, np.full(QUERIES, weight))))

    best = max(map(share, np.geomspace(0.05, 20, 30)))
    assert first(found) >= best - 0.02
    assert share(fit_weight(matches, queries, images)) >= best - 0.02


def test_the_fit_is_the_maximum_of_the_likelihood():
    """Of the truths that are among the first products."""
    queries, images = world()
    matches = decode(rank(queries, images), signal=0.2, noise=0.2)
    weight = fit_weight(matches, queries, images)
    cosines = queries.embeddings @ images.embeddings.T

    def log_likelihood(a, b):
        total = 0.0
        for query, (top, truths) in enumerate(zip(matches.ranked.top, matches.ranked.truths, strict=True)):
            names = [name for name, _ in top[:K]]
            if truths[0] in names:
                logits = a * cosines[query, [int(name[1:]) for name in names]] + b * matches.cosines[query]
                total += logits[names.index(truths[0])] - np.log(np.exp(logits).sum())
        return total

    _, a = max((log_likelihood(a, a * weight), a) for a in np.linspace(1, 40, 40))
    likelihood, a = max((log_likelihood(a, a * weight), a) for a in np.linspace(a - 1, a + 1, 21))
    assert all(likelihood >= log_likelihood(a, a * weight * factor) for factor in (0.85, 1.15))


def test_scores_are_added_by_hand():
    """Of two galleries, one of which is smaller than what is matched; products of two images are pooled."""
    rng = np.random.default_rng(0)
    images = GalleryImages(
        unit(rng.normal(size=(9, SIZE))),
        ["a"] * 7 + ["b"] * 2,
        [f"i{row}" for row in range(9)],
        product_ids=["x", "y", "y", "z", "z", "u", "v", "x", "y"],
        sharpness=3.0,
    )
    galleries = ["a", "b", "a", "b"]
    queries = Queries(unit(rng.normal(size=(4, SIZE))), list("qrst"), galleries, [["i1"], ["i8"], ["i5", "i6"], ["i7"]])
    ranked = rank(queries, images)
    cosines = rng.uniform(-1, 1, (4, 3)).astype(np.float32)
    cosines[[1, 3], 2] = np.nan  # beyond the end of the gallery
    weights = np.array([0.5, 2.0, 0.0, 0.25])
    found = reorder(ranked, add_matches(Matched(ranked, cosines), weights))
    for query, (before, after) in enumerate(zip(ranked.top, found.top, strict=True)):
        num = min(3, len(before))
        sums = {
            name: score + weights[query] * float(cosines[query, place])
            for place, (name, score) in enumerate(before[:num])
        }
        assert [name for name, _ in after[:num]] == sorted(sums, key=lambda name: -sums[name])
        assert [score for _, score in after[:num]] == pytest.approx(sorted(sums.values(), reverse=True), abs=1e-12)
        assert after[num:] == before[num:], "others stay behind"
        names = [name for name, _ in after]
        truths = {*ranked.truths[query]}
        assert list(found.truth_ranks[query]) == [1 + names.index(name) for name in names if name in truths]
        pictures = dict(zip((name for name, _ in before), ranked.images[query], strict=True))
        assert list(found.images[query]) == [pictures[name] for name in names]
    assert found.top[2] == ranked.top[2], "weight 0"


def test_no_query_has_a_weight_that_it_was_fitted_to():
    queries, images = world()
    matches = decode(rank(queries, images), signal=0.2, noise=0.2)
    _, weights = weighted(matches, queries, images)
    half = np.array([half_of(truths[0]) for truths in matches.ranked.truths])
    for own in (0, 1):
        [weight] = {*weights[half == own].tolist()}
        assert weight == fit_weight(matches, queries, images, among=half != own)
    changed = np.where((half == 0)[:, None], -matches.cosines, matches.cosines)
    _, again = weighted(matches._replace(cosines=changed), queries, images)
    np.testing.assert_array_equal(again[half == 0], weights[half == 0])
    assert not again[half == 1].any()


def test_what_the_ranking_was_by_does_not_matter_to_a_fit_by_frames():
    """The first products by the mean, and the weight beside their scores by frames."""
    queries, images = world(frames=3)
    mean = dataclasses.replace(queries, embeddings=unit(queries.embeddings.mean(axis=1)), frame_mask=None)
    matches = decode(rank(mean, images), signal=0.2, noise=0.2)
    by_frames = fit_weight(matches, queries, images)
    own = decode(rank(queries, images), signal=0.2, noise=0.2)
    assert by_frames == pytest.approx(fit_weight(own, queries, images), rel=0.25)
    assert fit_weight(matches, mean, images) != by_frames > 0


def test_nothing_to_fit():
    queries, images = world()
    ranked = rank(queries, images)
    assert fit_weight(Matched(ranked, np.ones((QUERIES, 1), np.float32)), queries, images) == 0, (
        "a truth alone, or none"
    )
    matches = decode(ranked, signal=0.2, noise=0.1)
    assert fit_weight(matches, queries, images, among=np.zeros(QUERIES, bool)) == 0

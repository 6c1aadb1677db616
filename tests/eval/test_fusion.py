"""Ranking by picture and text, and the weight of the texts."""

import dataclasses

import numpy as np
import pytest

from rice_jax.eval.fusion import TextVectors, cross_fitted, fit_weight, fuse
from rice_jax.eval.ranking import GalleryImages, Queries, rank
from rice_jax.eval.weight import half_of

PICTURE, TEXT, PRODUCTS, QUERIES = 24, 16, 30, 400


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def world(picture_noise=2.0, text_noise=2.0, seed=0, frames=0, without_speech=0.3, without_title=0.2):
    """Queries that are noisy copies of their product's picture and title, some of them without text."""
    rng = np.random.default_rng(seed)
    pictures, titles = unit(rng.normal(size=(PRODUCTS, PICTURE))), unit(rng.normal(size=(PRODUCTS, TEXT)))
    truth = rng.integers(0, PRODUCTS, QUERIES)
    shape = (QUERIES, frames, PICTURE) if frames else (QUERIES, PICTURE)
    shown = pictures[truth][:, None] if frames else pictures[truth]
    videos = unit(shown + picture_noise * rng.normal(size=shape) / np.sqrt(PICTURE))
    speech = unit(titles[truth] + text_noise * rng.normal(size=(QUERIES, TEXT)) / np.sqrt(TEXT))
    speech[rng.random(QUERIES) < without_speech] = 0
    titles[rng.random(PRODUCTS) < without_title] = 0
    names = [f"p{number}" for number in range(PRODUCTS)]
    images = GalleryImages(pictures, ["g"] * PRODUCTS, names)
    queries = Queries(
        videos,
        [f"q{number}" for number in range(QUERIES)],
        ["g"] * QUERIES,
        [[names[number]] for number in truth],
        np.ones((QUERIES, frames), bool) if frames else None,
    )
    return queries, images, TextVectors(titles, speech), truth


@pytest.mark.parametrize("frames", [0, 3])
def test_the_score_is_the_weighted_sum_of_both(frames):
    queries, images, texts, _ = world(frames=frames)
    weight = np.linspace(0, 2, QUERIES)
    found = rank(*fuse(queries, images, texts, weight), num_top=PRODUCTS)
    for query in range(0, QUERIES, 37):
        cosines = np.atleast_2d(queries.embeddings[query]) @ images.embeddings.T
        said = weight[query] * texts.titles @ texts.speech[query]
        if frames:
            cosines, said = cosines - cosines.mean(axis=1, keepdims=True), said - said.mean()
        expected = cosines.max(axis=0) + said
        scores = dict(found.top[query])
        np.testing.assert_allclose([scores[name] for name in images.ids], expected, atol=1e-5)


@pytest.mark.parametrize("frames", [0, 3])
def test_queries_without_speech_are_ranked_by_their_pictures(frames):
    queries, images, texts, _ = world(frames=frames)
    alone = rank(queries, images, num_top=PRODUCTS)
    for own, weight in ((texts, 0.0), (dataclasses.replace(texts, speech=texts.speech * 0), 0.7)):
        found = rank(*fuse(queries, images, own, weight), num_top=PRODUCTS)
        assert found.truth_ranks == alone.truth_ranks
        names = [[name for name, _ in top] for top in found.top]
        assert names == [[name for name, _ in top] for top in alone.top]
        scores = [[score for _, score in top] for top in found.top]
        np.testing.assert_allclose(scores, [[score for _, score in top] for top in alone.top], atol=1e-7)


def test_several_pictures_of_a_product_are_pooled_as_without_titles():
    queries, images, texts, _ = world()
    several = dataclasses.replace(images, product_ids=[f"p{row // 2 * 2}" for row in range(PRODUCTS)], sharpness=5.0)
    alone = rank(queries, several, num_top=PRODUCTS)
    found = rank(*fuse(queries, several, texts, 0.0), num_top=PRODUCTS)
    assert found.truth_ranks == alone.truth_ranks, "titles have no part in what several pictures add"
    assert 0 < fit_weight(queries, several, texts) < 10


@pytest.mark.parametrize("frames", [0, 3])
@pytest.mark.parametrize(("picture_noise", "text_noise"), [(3.0, 3.0), (4.0, 1.5)])
def test_the_fitted_weight_is_about_the_best_one(frames, picture_noise, text_noise):
    queries, images, texts, _ = world(picture_noise, text_noise, frames=frames, without_title=0.0)
    weight = fit_weight(queries, images, texts)

    def share(weight):
        return (rank(*fuse(queries, images, texts, weight)).rank == 1).mean()

    assert share(weight) >= max(map(share, [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0])) - 0.02
    assert share(weight) > share(0.0) + 0.02


def test_the_fit_is_the_maximum_of_the_likelihood():
    queries, images, texts, truth = world()
    weight = fit_weight(queries, images, texts)
    with_speech = texts.speech.any(axis=1)
    p, t = queries.embeddings @ images.embeddings.T, texts.speech @ texts.titles.T

    def likelihood(a, b):
        logits = (a * p + b * t)[with_speech].astype(np.float64)
        best = logits[np.arange(len(logits)), truth[with_speech]]
        return (best - np.log(np.exp(logits).sum(axis=1))).mean()

    best = max((likelihood(a, a * weight), a) for a in np.linspace(1, 60, 600))
    assert all(best[0] >= likelihood(best[1], best[1] * weight * factor) for factor in (0.9, 1.1))


def test_texts_that_say_nothing_have_no_weight():
    queries, images, texts, _ = world(seed=1)
    rng = np.random.default_rng(5)
    noise = dataclasses.replace(texts, speech=unit(rng.normal(size=texts.speech.shape)))
    assert fit_weight(queries, images, noise) < 0.1
    opposite = dataclasses.replace(texts, speech=-texts.speech)
    assert fit_weight(queries, images, opposite) == 0


@pytest.mark.parametrize("missing", ["titles", "speech", "both"])
def test_without_texts_there_is_nothing_to_fit(missing):
    queries, images, texts, _ = world()
    names = ["titles", "speech"] if missing == "both" else [missing]
    none = dataclasses.replace(texts, **{name: getattr(texts, name) * 0 for name in names})
    assert fit_weight(queries, images, none) == 0
    assert not cross_fitted(queries, images, none).any()


def test_no_query_has_a_weight_that_it_was_fitted_to():
    queries, images, texts, truth = world()
    weights = cross_fitted(queries, images, texts)
    half = np.array([half_of(f"p{number}") for number in truth])
    assert 0.3 < half.mean() < 0.7
    for own in (0, 1):
        [weight] = {*weights[half == own].tolist()}
        assert weight == fit_weight(queries, images, texts, among=half != own) != weights[half != own][0]
    changed = dataclasses.replace(texts, speech=np.where((half == 0)[:, None], -texts.speech, texts.speech))
    again = cross_fitted(queries, images, changed)
    np.testing.assert_array_equal(again[half == 0], weights[half == 0])
    assert (again[half == 1] == 0).all()


def test_fewer_scores_bound_the_memory():
    queries, images, texts, _ = world()
    assert fit_weight(queries, images, texts, max_scores=100 * PRODUCTS) == pytest.approx(
        fit_weight(queries, images, texts), rel=0.5
    )

import dataclasses
import itertools
import json

import numpy as np
import pytest
import scipy.stats

from rice_jax.eval import metrics, order, ranking
from tests.eval.evaluations import evaluation


def _measure(truth_ranks, num_relevant):
    return dict(zip(order.NAMES, order.measure_order([truth_ranks], [num_relevant])[0].tolist(), strict=True))


@pytest.mark.parametrize(
    ("places", "relevant", "ap", "rr", "ndcg"),
    [
        ((1,), 1, 1, 1, 1),
        ((4,), 1, 1 / 4, 1 / 4, 1 / np.log2(5)),
        ((10,), 1, 1 / 10, 1 / 10, 1 / np.log2(11)),
        ((11,), 1, 1 / 11, 1 / 11, 0),
        ((1, 3), 2, (1 + 2 / 3) / 2, 1, (1 + 1 / 2) / (1 + 1 / np.log2(3))),
        ((2, 12), 2, (1 / 2 + 2 / 12) / 2, 1 / 2, (1 / np.log2(3)) / (1 + 1 / np.log2(3))),
        ((1,), 2, 1 / 2, 1, 1 / (1 + 1 / np.log2(3))),  # the gallery lacks one
        (tuple(range(1, 13)), 12, 1, 1, 1),  # more truths than places that nDCG sees
        ((), 1, 0, 0, 0),
    ],
)
def test_by_hand(places, relevant, ap, rr, ndcg):
    assert _measure(places, relevant) == pytest.approx({"mAP": ap, "MRR": rr, "nDCG@10": ndcg})


# Scores of a gallery, places of the truths in it, and average_precision_score and ndcg_score(k=10) of scikit-learn
# 1.9.1, where of equal scores those of truths were lowered a little.
RECORDED = [
    ([16, 12, 18, 8, 3, 13, 15, 10, 6, 1, 2, 11, 17, 0, 14, 9, 4, 7, 5, 19], [8], 0.071429, 0.0),
    ([13, 7, 6, 17, 2, 11, 19, 3, 18, 12, 5, 4, 8, 0, 9, 16, 14, 10, 1, 15], [3, 4, 8, 9], 0.440972, 0.564644),
    ([0, 3, 4, 2, 1, 5], [0, 1, 2, 3, 4, 5], 1.0, 1.0),
    (
        [9, 8, 0, 16, 18, 5, 20, 19, 14, 22, 13, 2, 21, 23, 1, 6, 4, 15, 7, 3, 17, 12, 11, 10],
        [0, 1, 3, 5, 7, 9, 14, 15, 17, 18, 21, 22],
        *(0.479164, 0.359691),
    ),
    ([3, 2, 3, 2, 2, 3, 2, 3, 1, 3, 3, 0, 2, 1, 0, 0, 1, 0, 2, 0], [1, 2, 8, 10, 14], 0.26, 0.252016),  # ties
    ([0] * 15, [7, 11, 14], 0.139927, 0.0),
]


def _ranked(cases):
    """A query and a gallery of each case; the galleries have images of the same names."""
    return ranking.rank(
        ranking.Queries(
            embeddings=np.ones((len(cases), 1), np.float32),
            ids=[f"q{i}" for i in range(len(cases))],
            gallery_ids=[f"g{i}" for i in range(len(cases))],
            truths=[[f"i{place}" for place in truths] for _, truths, *_ in cases],
        ),
        ranking.GalleryImages(
            np.float32([[score] for scores, *_ in cases for score in scores]),
            [f"g{i}" for i, (scores, *_) in enumerate(cases) for _ in scores],
            [f"i{place}" for scores, *_ in cases for place in range(len(scores))],
            skipped={f"g{i}/i99" for i in range(len(cases))},
        ),
    )


@pytest.mark.parametrize("max_scores", [2**22, 7])
def test_every_gallery_as_scikit_learn(monkeypatch, max_scores):
    monkeypatch.setattr(ranking.rank, "__kwdefaults__", {"num_top": 10, "max_scores": max_scores})
    ranked = _ranked(RECORDED)
    values = order.measure_order(ranked.truth_ranks, ranked.num_truths.tolist())
    np.testing.assert_allclose(values[:, [0, 2]], [case[2:] for case in RECORDED], atol=1e-6)
    np.testing.assert_array_equal(values[:, 1], 1 / ranked.rank)
    score = metrics.evaluate(ranked).score
    assert [mean.mean for mean in score.order.values()] == pytest.approx(values.mean(axis=0))


def test_chance_is_the_mean_of_all_orders():
    for size, truths, missing in itertools.product((1, 2, 5, 12), (0, 1, 2, 4, 11), (0, 1)):
        if not truths + missing > 0 or truths > size:
            continue
        orders = list(itertools.combinations(range(1, size + 1), truths))
        relevant = truths + missing
        expected = order.measure_order(orders, [relevant] * len(orders)).mean(axis=0)
        found = order.expect_order(np.array([size, 7]), np.array([truths, 1]), [relevant, 1])
        np.testing.assert_allclose(found[0], expected, atol=1e-12)


def test_with_one_truth_map_is_mrr():
    score = evaluation()[1].score
    precision, reciprocal = (dataclasses.astuple(score.order[name]) for name in ("mAP", "MRR"))
    assert precision[:2] == pytest.approx(reciprocal[:2]) and precision[2] == pytest.approx(reciprocal[2])


def test_an_image_that_the_gallery_lacks_is_never_found():
    ranked = _ranked([([0.9, 0.1], [0, 99]), ([0.9, 0.1], [99])])
    score = metrics.evaluate(ranked, num_queries=4).score
    assert score.rank["rank-1"] == 1 / 4
    best = 1 + 1 / np.log2(3)
    means = {name: mean.mean for name, mean in score.order.items()}
    assert means == pytest.approx({"mAP": 1 / 8, "MRR": 1 / 4, "nDCG@10": 1 / best / 4})
    # In a random order of two images the truth is first or second.
    chance = {name: mean.chance for name, mean in score.order.items()}
    assert chance == pytest.approx({"mAP": 0.75 / 8, "MRR": 0.75 / 4, "nDCG@10": best / 2 / best / 4})


@pytest.mark.parametrize("num_galleries", [5, 40])
def test_intervals_are_those_of_a_bootstrap(num_galleries):
    rng = np.random.default_rng(0)
    num, size = 240, 30
    truth_ranks = tuple(tuple(sorted((rng.choice(size, 3, replace=False) + 1).tolist())) for _ in range(num))
    ranked = ranking.Ranking(
        query_ids=tuple(f"q{i}" for i in range(num)),
        gallery_ids=tuple(f"g{i * num_galleries // num}" for i in range(num)),
        truth_ranks=truth_ranks,
        gallery_size=np.full(num, size),
        truths=(("a", "b", "c"),) * num,
        top=((),) * num,
        images=((),) * num,
    )
    score = metrics.evaluate(ranked, num_queries=2 * num).score
    values = order.measure_order(truth_ranks, [3] * num) / 2
    drawn = values if num_galleries < metrics.MIN_GALLERIES else values.reshape(num_galleries, -1, 3).mean(axis=1)
    for mean, column in zip(score.order.values(), drawn.T, strict=True):
        expected = scipy.stats.bootstrap((column,), np.mean, method="percentile", rng=rng).confidence_interval
        np.testing.assert_allclose(mean.interval, expected, atol=0.003)
        assert mean.interval[0] < mean.mean < mean.interval[1]


def test_blocks_of_draws_draw_the_same(monkeypatch):
    values = np.random.default_rng(0).uniform(size=(50, 3))
    whole, _ = metrics.confidence_intervals(values, ["g"] * 50)
    monkeypatch.setattr(metrics, "MAX_COUNTS", 333)
    blocks, _ = metrics.confidence_intervals(values, ["g"] * 50)
    np.testing.assert_allclose(blocks, whole, rtol=1e-12)


def test_results_of_version_0_2_have_none():
    result = evaluation()[1]
    values = json.loads(json.dumps(result.to_dict()))
    assert metrics.Result.from_dict(values) == result
    del values["score"]["order"]
    for scores in values["subsets"].values():
        for score in scores.values():
            del score["order"]
    old = metrics.Result.from_dict(values)
    assert old.score == dataclasses.replace(result.score, order={})
    assert all(score.order == {} for scores in old.subsets.values() for score in scores.values())

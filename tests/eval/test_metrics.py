import dataclasses
import json
import pathlib

import numpy as np
import pytest
import scipy.stats

from rice_jax.eval import metrics, ranking

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "metric.json").read_text())


def _ranking(ranks, sizes, galleries=None):
    n = len(ranks)
    return ranking.Ranking(
        query_ids=tuple(f"q{i}" for i in range(n)),
        gallery_ids=tuple(galleries or (f"g{size}" for size in sizes)),
        truth_ranks=tuple((int(rank),) if rank else () for rank in ranks),
        gallery_size=np.asarray(sizes, np.int64),
        truths=(("t",),) * n,
        top=((),) * n,
        images=((),) * n,
    )


def _rank_predictions(predictions, truths):
    """Ranks the golden file's sorted scores: a gallery a query, embeddings of one dimension."""
    queries = list(predictions)
    scores, gallery_ids, image_ids = [], [], []
    for query, prediction in predictions.items():
        if prediction and isinstance(prediction[0], str):  # the reference takes one flat pair too
            prediction = [prediction]
        seen = set()
        for place, (image, score) in enumerate(prediction):
            # The reference lets an image come twice; both places count, and a truth's first one decides.
            image_ids.append(f"{image} again at {place}" if image in seen else image)
            seen.add(image)
            scores.append([score])
            gallery_ids.append(query)
    return ranking.rank(
        ranking.Queries(
            np.ones((len(queries), 1), np.float32), queries, queries, [truths.get(query, []) for query in queries]
        ),
        ranking.GalleryImages(
            np.asarray(scores, np.float32).reshape(-1, 1),
            gallery_ids,
            image_ids,
            skipped={f"{query}/{image}" for query in queries for image in ("absent", "other")},
        ),
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_rank_k_is_the_reference_s(case):
    ranked = _rank_predictions(case["pred"], case["gt"])
    score = metrics.evaluate(ranked, num_queries=len(case["gt"])).score
    expected = {f"rank-{k}": recall for k, recall in zip(case["out"]["hit_top"], case["out"]["recall"], strict=True)}
    assert score.rank == expected
    assert score.num_queries == case["out"]["n_query"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("prediction for a query that has no GT", "Query 'q0' has no ground truth"),
        ("GT given as str: `in` becomes a substring test", "query 'q0' is the string 'img13'"),
        ("empty prediction list", "Query 'q0' belongs to gallery 'q0', which has no images"),
    ],
)
def test_traps_are_errors(name, message):
    trap = {trap["name"]: trap for trap in GOLDEN["traps"]}[name]
    with pytest.raises(ValueError, match=message):
        _rank_predictions(trap["pred"], trap["gt"])


def test_all_golden_traps_are_tested():
    assert len(GOLDEN["traps"]) == 3


@pytest.mark.parametrize("k", [1, 3, 5, 10, 50])
def test_chance_is_hypergeometric(k):
    sizes, truths = np.asarray([(g, m) for g in (1, 2, 9, 30, 603) for m in range(1, min(g, 12) + 1)]).T
    expected = [scipy.stats.hypergeom.sf(0, g, m, min(k, g)) for g, m in zip(sizes, truths, strict=True)]
    np.testing.assert_allclose(metrics.chance(sizes, truths, k), expected, atol=1e-12)


def test_chance_is_what_random_embeddings_score():
    rng = np.random.default_rng(0)
    n, size = 4000, 20
    ranked = ranking.rank(
        ranking.Queries(
            rng.standard_normal((n, 4)).astype(np.float32),
            [f"q{i}" for i in range(n)],
            ["g"] * n,
            [[f"i{i}" for i in rng.choice(size, 2, replace=False)] for _ in range(n)],
        ),
        ranking.GalleryImages(
            rng.standard_normal((size, 4)).astype(np.float32), ["g"] * size, [f"i{i}" for i in range(size)]
        ),
    )
    score = metrics.evaluate(ranked).score
    for k in (1, 3, 5, 10):
        assert score.rank[f"rank-{k}"] == pytest.approx(score.chance[f"rank-{k}"], abs=0.03)


def test_missing_queries_are_misses():
    result = metrics.evaluate(_ranking([1, 4, 0], [10, 10, 20]), num_queries=5)
    assert result.score.num_queries == 5
    assert result.num_missing == 3  # two were never ranked, one has no truth left
    assert result.score.rank == {"rank-1": 0.2, "rank-3": 0.2, "rank-5": 0.4, "rank-10": 0.4}
    assert result.score.chance == pytest.approx({"rank-1": 0.04, "rank-3": 0.12, "rank-5": 0.2, "rank-10": 0.4})


def test_galleries_count_once():
    result = metrics.evaluate(_ranking([1, 1, 1, 1], [10, 10, 10, 40], galleries=["a", "a", "a", "b"]))
    assert result.galleries == metrics.Galleries(num=2, min_size=10, mean_size=25.0, max_size=40)


def test_subsets():
    result = metrics.evaluate(
        _ranking([1, 2, 1, 7, 0], [10] * 5),
        num_queries=6,
        labels={
            "scale": ["Large", "small", "large", "", "small "],
            "category": ["女装", "Bags", "Ärmel", "bags", "女装"],
        },
    )
    assert list(result.subsets["scale"]) == ["small", "Large"]
    assert result.num_unknown == {"scale": 1, "category": 0}
    small, large = result.subsets["scale"].values()
    assert (small.num_queries, small.rank["rank-1"], small.rank["rank-3"]) == (2, 0.0, 0.5)
    assert (large.num_queries, large.rank["rank-1"], large.chance["rank-1"]) == (2, 1.0, pytest.approx(0.1))
    bags = result.subsets["category"]["Bags"]
    assert (bags.num_queries, bags.rank["rank-5"], bags.rank["rank-10"]) == (2, 0.5, 1.0)


def test_subsets_add_up_to_all():
    rng = np.random.default_rng(0)
    ranks, scale = rng.integers(1, 31, 500).tolist(), rng.choice(["small", "medium", "large"], 500).tolist()
    result = metrics.evaluate(_ranking(ranks, [30] * 500), labels={"scale": scale})
    for k in ("rank-1", "rank-10"):
        hits = sum(score.rank[k] * score.num_queries for score in result.subsets["scale"].values())
        assert hits / 500 == pytest.approx(result.score.rank[k])
    assert result.score.rank["rank-3"] == sum(rank <= 3 for rank in ranks) / 500


@pytest.mark.parametrize("arguments", [dict(num_queries=1), dict(labels={"scale": ["small"]})])
def test_bad_counts(arguments):
    with pytest.raises(ValueError, match="2 .*ranked|ranked.* 1"):
        metrics.evaluate(_ranking([1, 1], [5, 5]), **arguments)


def test_no_query():
    with pytest.raises(ValueError, match="No query was ranked"):
        metrics.evaluate(_ranking([], []))


def test_intervals_are_those_of_a_bootstrap_over_galleries():
    rng = np.random.default_rng(0)
    easy = np.repeat(rng.uniform(0, 1, 20), 12)  # queries of a gallery stand or fall together
    hits = rng.uniform(size=240) < easy
    galleries = [f"g{i // 12}" for i in range(240)]
    result = metrics.evaluate(_ranking(np.where(hits, 1, 9), [30] * 240, galleries=galleries))
    means = hits.reshape(20, 12).mean(axis=1)  # of galleries of one size the share is their mean
    expected = scipy.stats.bootstrap((means,), np.mean, method="percentile", rng=rng).confidence_interval
    np.testing.assert_allclose(result.score.interval["rank-1"], expected, atol=0.02)
    assert result.score.interval["rank-10"] == (1, 1) and result.score.interval_over == "livestreams"
    again = metrics.evaluate(_ranking(np.where(hits, 1, 9), [30] * 240, galleries=galleries))
    assert again == result == metrics.Result.from_dict(json.loads(json.dumps(result.to_dict())))


def test_intervals_over_livestreams_stay_those_of_version_0_2():
    hits = np.arange(300) * 7 % 11 < 4
    galleries = [f"g{i * i % 29}" for i in range(300)] + [f"h{i}" for i in range(15)]
    result = metrics.evaluate(_ranking(np.where([*hits, *[True] * 15], 1, 9), [30] * 315, galleries=galleries))
    assert len(set(galleries)) == 30
    assert result.score.interval["rank-1"] == pytest.approx((0.37765335, 0.42747899), abs=1e-8)


@pytest.mark.parametrize("num_galleries", [1, 2, 19])
def test_of_few_galleries_queries_are_drawn(num_galleries):
    rng = np.random.default_rng(0)
    ranks = rng.choice([1, 2, 4, 9], 240)
    ranked = _ranking(ranks, [30] * 240, galleries=[f"g{i % num_galleries}" for i in range(240)])
    score = metrics.evaluate(ranked).score
    assert score.interval_over == "queries"
    for name, ends in score.interval.items():
        hits = ranks <= int(name.removeprefix("rank-"))
        expected = (1, 1)
        if not hits.all():
            expected = scipy.stats.bootstrap((hits,), np.mean, method="percentile", rng=rng).confidence_interval
        np.testing.assert_allclose(ends, expected, atol=0.01)


def test_differences_are_drawn_as_they_are():
    lead = np.repeat([1.0, 0.0, -1.0], [30, 150, 20])[:, None]
    ends, drawn = metrics.confidence_intervals(lead, ["g"] * 200)
    rng = np.random.default_rng(0)
    expected = scipy.stats.bootstrap((lead[:, 0],), np.mean, method="percentile", rng=rng).confidence_interval
    np.testing.assert_allclose(ends, [expected], atol=0.01)
    assert drawn == "queries"


def test_large_galleries_weigh_more():
    values = np.repeat([[1.0], [0.0]], [90, 19], axis=0)
    ends, drawn = metrics.confidence_intervals(values, ["a"] * 90 + [f"b{i}" for i in range(19)])
    assert drawn == "livestreams" and ends[0, 0] == 0 and ends[0, 1] > 0.9


def test_queries_that_were_not_ranked_are_misses_in_every_draw():
    for num_galleries in (7, 25):
        ranked = _ranking([1, 2] * 50, [30] * 100, galleries=[f"g{i % num_galleries}" for i in range(100)])
        all_ranked, half = (metrics.evaluate(ranked, num_queries=num).score for num in (100, 200))
        for cutoff, ends in half.interval.items():
            assert ends == pytest.approx(np.array(all_ranked.interval[cutoff]) / 2)
            assert ends[0] <= half.rank[cutoff] <= ends[1]


def test_a_subset_in_few_livestreams_says_so():
    galleries = [f"g{i}" for i in range(25)]
    labels = {"scale": ["small"] * 19 + ["large"] * 6}
    result = metrics.evaluate(_ranking([1, 2, 3, 1, 1] * 5, [30] * 25, galleries=galleries), labels=labels)
    assert result.score.interval_over == "livestreams"
    assert result.subsets["scale"]["small"].interval_over == "queries"
    old = dataclasses.asdict(result.score) | {"interval": None}
    del old["interval_over"]
    assert metrics.Score.from_dict(old).interval is None, "as version 0.2 wrote of one gallery"

import tracemalloc

import numpy as np
import pytest

from rice_jax.eval import nearest, ranking


def _rank(
    query_embeddings, query_ids, query_gallery_ids, truths, gallery_embeddings, gallery_ids, image_ids,
    skipped_images=(), **options
):  # fmt: skip
    queries = ranking.Queries(query_embeddings, query_ids, query_gallery_ids, truths)
    return ranking.rank(
        queries, ranking.GalleryImages(gallery_embeddings, gallery_ids, image_ids, skipped_images), **options
    )


def _arguments(scores, truths, gallery="g", images=None):
    """Galleries of one-dimensional embeddings, so that a query's scores are what a test says."""
    scores = np.asarray(scores, np.float32)
    images = images or [f"i{k}" for k in range(len(scores))]
    return dict(
        query_embeddings=np.ones((1, 1), np.float32),
        query_ids=["q"],
        query_gallery_ids=[gallery],
        truths=[truths],
        gallery_embeddings=scores[:, None],
        gallery_ids=[gallery] * len(scores),
        image_ids=images,
    )


def _random(num_queries=40, num_galleries=5, width=8, seed=0, levels=None):
    """Random galleries of 1 to 30 images, interleaved; with `levels`, few distinct scores and so many ties."""
    rng = np.random.default_rng(seed)
    draw = (lambda n: rng.integers(0, levels, (n, width))) if levels else (lambda n: rng.standard_normal((n, width)))
    pairs = [(f"g{g}", f"i{i}") for g in range(num_galleries) for i in range(rng.integers(1, 31))]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    images_of = {g: [i for h, i in pairs if h == g] for g, _ in pairs}
    of = [f"g{g}" for g in rng.integers(0, num_galleries, num_queries)]
    truths = [
        list(rng.choice(images_of[g], size=min(len(images_of[g]), rng.integers(1, 4)), replace=False)) for g in of
    ]
    return dict(
        query_embeddings=draw(num_queries).astype(np.float32),
        query_ids=[f"q{i}" for i in range(num_queries)],
        query_gallery_ids=of,
        truths=truths,
        gallery_embeddings=draw(len(pairs)).astype(np.float32),
        gallery_ids=[g for g, _ in pairs],
        image_ids=[i for _, i in pairs],
    )


def _sorted_by_python(arguments):
    """Each query's gallery as [(image id, score, is a truth)], best first, by sorting tuples one query at a time."""
    a = arguments
    for query, gallery, truths in zip(a["query_embeddings"], a["query_gallery_ids"], a["truths"], strict=True):
        entries = []
        for place, (g, image, e) in enumerate(
            zip(a["gallery_ids"], a["image_ids"], a["gallery_embeddings"], strict=True)
        ):
            if g == gallery:
                score = np.float32(sum(float(x) * float(y) for x, y in zip(query, e, strict=True)))
                entries.append((-score, image in truths, place, image))
        yield [(image, -negative, truth) for negative, truth, _, image in sorted(entries)]


@pytest.mark.parametrize("levels", [None, 2], ids=["no ties", "many ties"])
def test_rank_is_that_of_a_sorted_list(levels):
    arguments = _random(levels=levels)
    result = _rank(**arguments)
    for i, entries in enumerate(_sorted_by_python(arguments)):
        assert result.rank[i] == 1 + [truth for _, _, truth in entries].index(True)
        assert result.truth_ranks[i] == tuple(1 + k for k, (_, _, truth) in enumerate(entries) if truth)
        assert result.gallery_size[i] == len(entries)
        assert result.num_truths[i] == sum(truth for _, _, truth in entries)
        assert [image for image, _ in result.top[i]] == [image for image, _, _ in entries[:10]]
        np.testing.assert_allclose([s for _, s in result.top[i]], [s for _, s, _ in entries[:10]], atol=1e-6)
    assert result.query_ids == tuple(arguments["query_ids"])
    assert result.gallery_ids == tuple(arguments["query_gallery_ids"])


@pytest.mark.parametrize("max_scores", [1, 7, 64, 1000])
@pytest.mark.parametrize("levels", [None, 2])
def test_rank_does_not_depend_on_the_chunks(max_scores, levels):
    arguments = _random(num_queries=60, num_galleries=2, width=33, levels=levels)
    whole, chunked = _rank(**arguments), _rank(**arguments, max_scores=max_scores)
    np.testing.assert_array_equal(chunked.rank, whole.rank)
    assert chunked.truth_ranks == whole.truth_ranks
    assert chunked.top == whole.top


def test_scores_exist_in_bounded_blocks(monkeypatch):
    sizes = []

    def score_blocks(*args):
        for block in inner(*args):
            sizes.append(block.scores.size)
            yield block

    inner = nearest._score_blocks
    monkeypatch.setattr(nearest, "_score_blocks", score_blocks)
    arguments = _random(num_queries=200, num_galleries=1)
    _rank(**arguments, max_scores=100)
    assert max(sizes) <= 100
    assert sum(sizes) == 200 * len(arguments["image_ids"])


def test_memory_does_not_grow_with_queries_times_gallery():
    rng = np.random.default_rng(0)
    queries, gallery = (rng.standard_normal((n, 4)).astype(np.float32) for n in (200, 20_000))
    names = [f"i{i}" for i in range(20_000)]
    arguments = ([f"q{i}" for i in range(200)], ["g"] * 200, [[name] for name in names[:200]])
    tracemalloc.start()
    _rank(queries, *arguments, gallery, ["g"] * 20_000, names, max_scores=2**16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * queries.shape[0] * gallery.shape[0] * 4, "bytes of all scores"


def test_ties_stand_before_the_truth():
    result = _rank(**_arguments([0.5, 0.5, 0.5, 0.1], ["i0"]))
    assert result.rank == [3]
    assert [image for image, _ in result.top[0]] == ["i1", "i2", "i0", "i3"]


def test_all_scores_equal():
    assert _rank(**_arguments([0.0] * 9, ["i4", "i0"])).rank == [8]


def test_negative_zero_ties_with_zero():
    assert _rank(**_arguments([-0.0, 0.0], ["i1"])).rank == [2]
    assert _rank(**_arguments([-0.0, 0.0], ["i0"])).rank == [2]


def test_copies_of_one_picture_tie_in_every_block():
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((301, 67)).astype(np.float32)
    gallery[1:] = gallery[0]
    queries = rng.standard_normal((37, 67)).astype(np.float32)
    result = _rank(
        queries,
        [f"q{i}" for i in range(37)],
        ["g"] * 37,
        [[f"i{8 * i}"] for i in range(37)],
        gallery,
        ["g"] * 301,
        [f"i{i}" for i in range(301)],
    )
    assert result.rank.tolist() == [301] * 37


def test_best_of_several_truths_counts():
    result = _rank(**_arguments([0.9, 0.7, 0.8, 0.1], ["i3", "i2", "i2"]))
    assert (result.rank, result.num_truths, result.gallery_size) == ([2], [2], [4])


def test_only_the_own_gallery_competes():
    arguments = _arguments([0.1, 0.9], ["a"], images=["a", "b"])
    arguments["gallery_ids"] = ["g", "other"]
    result = _rank(**arguments)
    assert (result.rank, result.gallery_size) == ([1], [1])
    assert result.top == ((("a", pytest.approx(0.1)),),)


def test_one_image_may_be_in_two_galleries():
    arguments = _arguments([0.1, 0.9], ["a"], images=["a", "a"])
    arguments["gallery_ids"] = ["g", "other"]
    assert _rank(**arguments).rank == [1]


def test_skipped_truth_is_a_miss_or_leaves_the_others():
    result = _rank(**_arguments([0.9, 0.1], ["gone"]), skipped_images={"g/gone"})
    assert (result.rank, result.num_truths) == ([0], [0])
    result = _rank(**_arguments([0.9, 0.1], ["gone", "i1"]), skipped_images={"g/gone": "undecodable"})
    assert (result.rank, result.num_truths) == ([2], [1])
    with pytest.raises(ValueError, match="Ground truth 'gone'"):
        _rank(**_arguments([0.9, 0.1], ["gone"]), skipped_images={"another gallery/gone"})


def _change(**changes):
    return lambda a: a.update(changes)


@pytest.mark.parametrize(
    "change, message",
    [
        (_change(truths=[["i7"]]), r"Ground truth 'i7' of query 'q' .* 2 images of gallery 'g'"),
        (_change(truths=["i1"]), r"ground truth of query 'q' is the string 'i1'.*list"),
        (_change(truths=[[]]), r"Query 'q' has no ground truth"),
        (_change(query_gallery_ids=["h"]), r"Query 'q' belongs to gallery 'h', which has no images"),
        (_change(image_ids=["i0", "i0"]), r"Image 'i0' is in gallery 'g' twice \(rows 0 and 1\)"),
        (_change(query_ids=[]), r"1 query embeddings, 0 query ids"),
        (_change(image_ids=["i0"]), r"2 gallery embeddings, 2 gallery ids and 1 image ids"),
        (_change(query_embeddings=np.float32([[np.nan]])), r"embedding of query 'q' is not finite \(1 of 1"),
        (
            _change(gallery_embeddings=np.float32([[0], [-np.inf]])),
            r"embedding of image 'i1' of gallery 'g' is not finite \(1 of 2",
        ),
        (
            _change(
                query_embeddings=np.ones((2, 1), np.float32),
                query_ids=["q", "q"],
                query_gallery_ids=["g", "g"],
                truths=[["i0"], ["i0"]],
            ),
            r"Query 'q' is there twice",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = _arguments([0.9, 0.1], ["i0"])
    change(arguments)
    with pytest.raises(ValueError, match=message):
        _rank(**arguments)

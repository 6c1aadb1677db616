"""Products of several images: ranks, calibrations, and re-ranking, compared with sorting in plain Python."""

import dataclasses

import numpy as np
import pytest
from scipy.special import logsumexp

from rice_jax.eval import ranking, rerank
from rice_jax.eval.calibration import fit_calibration, fit_scores
from rice_jax.eval.products import group_products
from rice_jax.eval.ranking import GalleryImages, Queries

SHARPNESS = 3.0


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_shop(num_queries=40, by_frames=False, sizes=(1, 2, 3, 4), seed=0):
    """Two galleries of products with so many images, whose images are mixed; some queries have two true products."""
    rng = np.random.default_rng(seed)
    counts = [(f"g{p % 2}", f"p{p}", int(size)) for p, size in enumerate(rng.choice(sizes, 30))]
    names = [(gallery, product, f"{product}/{k}") for gallery, product, size in counts for k in range(size)]
    names = [names[place] for place in rng.permutation(len(names))]
    gallery_ids, product_ids, image_ids = map(list, zip(*names, strict=True))
    images = GalleryImages(
        unit(rng.normal(size=(len(names), 8))), gallery_ids, image_ids, product_ids=product_ids, sharpness=SHARPNESS
    )
    rows = rng.integers(len(names), size=num_queries)
    galleries = [gallery_ids[row] for row in rows]
    others = [rng.choice([r for r in range(len(names)) if gallery_ids[r] == gallery]) for gallery in galleries]
    truths = [
        [image_ids[row], image_ids[other]] if query % 3 == 0 else [image_ids[row]]
        for query, (row, other) in enumerate(zip(rows, others, strict=True))
    ]
    shape = (num_queries, 3, 8) if by_frames else (num_queries, 8)
    shown = images.embeddings[rows][:, None] if by_frames else images.embeddings[rows]
    mask = rng.random(shape[:2]) < 0.7 if by_frames else None
    if by_frames:
        mask[:, 0] = True
    embeddings = unit(shown + 0.4 * rng.normal(size=shape))
    return Queries(embeddings, [f"q{q}" for q in range(num_queries)], galleries, truths, mask), images


def expected_scores(queries, images, query, by_frames):
    """{product of the query's gallery: (its score, its images from the best on)}."""
    vectors = images.embeddings.astype(np.float64)
    here = [row for row, gallery in enumerate(images.gallery_ids) if gallery == queries.gallery_ids[query]]
    if by_frames:
        own = queries.embeddings[query][queries.frame_mask[query]].astype(np.float64)
        of_image = dict(zip(here, (own @ (vectors[here] - vectors[here].mean(axis=0)).T).max(axis=0), strict=True))
    else:
        of_image = dict(zip(here, vectors[here] @ queries.embeddings[query].astype(np.float64), strict=True))
    found = {}
    for product in dict.fromkeys(images.product_ids[row] for row in here):
        rows = [row for row in here if images.product_ids[row] == product]
        score = pool(np.array([of_image[row] for row in rows]))
        added = 0.0 if by_frames else added_by_images(images, rows)
        found[product] = score - added, [images.ids[row] for row in sorted(rows, key=lambda row: -of_image[row])]
    return found


def pool(scores):
    return logsumexp(SHARPNESS * scores, axis=-1, b=1 / scores.shape[-1]) / SHARPNESS


def added_by_images(images, rows):
    """What several images add to a cosine on average, over the images of all other products."""
    vectors = images.embeddings.astype(np.float64)
    others = [row for row in range(len(vectors)) if row not in rows]
    cosines = vectors[others] @ vectors[rows].T
    return (pool(cosines) - cosines.mean(axis=1)).mean()


@pytest.mark.parametrize("by_frames", [False, True], ids=["by the mean", "by frames"])
def test_products_rank_by_their_images(by_frames):
    queries, images = make_shop(by_frames=by_frames)
    found = ranking.rank(queries, images)
    product_of = dict(zip(images.ids, images.product_ids, strict=True))
    for query in range(len(queries.ids)):
        expected = expected_scores(queries, images, query, by_frames)
        order = sorted(expected, key=lambda product: -expected[product][0])
        truths = [product_of[image] for image in queries.truths[query]]
        assert [product for product, _ in found.top[query]] == order[:10]
        assert found.images[query] == tuple(expected[product][1][0] for product in order[:10])
        np.testing.assert_allclose([s for _, s in found.top[query]], [expected[p][0] for p in order[:10]], atol=1e-6)
        assert found.truth_ranks[query] == tuple(1 + place for place, name in enumerate(order) if name in truths)
        assert found.gallery_size[query] == len(expected) and found.truths[query] == tuple(truths)


@pytest.mark.parametrize("by_frames", [False, True])
@pytest.mark.parametrize("max_scores", [1, 30, 500])
def test_ranks_do_not_depend_on_the_blocks(by_frames, max_scores):
    queries, images = make_shop(by_frames=by_frames)
    whole, blocks = ranking.rank(queries, images), ranking.rank(queries, images, max_scores=max_scores)
    assert blocks.top == whole.top and blocks.images == whole.images and blocks.truth_ranks == whole.truth_ranks


@pytest.mark.parametrize("by_frames", [False, True])
def test_with_one_image_a_product_every_bit_is_that_of_images(by_frames):
    queries, images = make_shop(by_frames=by_frames, sizes=(1,))
    found = ranking.rank(queries, images)
    plain = ranking.rank(queries, GalleryImages(images.embeddings, images.gallery_ids, images.ids))
    for name in ("truth_ranks", "images"):
        assert getattr(found, name) == getattr(plain, name)
    assert found.gallery_size.tolist() == plain.gallery_size.tolist()
    named = dict(zip(images.ids, images.product_ids, strict=True))
    assert found.top == tuple(tuple((named[image], score) for image, score in top) for top in plain.top)
    assert plain.images == tuple(tuple(image for image, _ in top) for top in plain.top)
    assert plain.truths == tuple(map(tuple, queries.truths))
    mean = dataclasses.replace(queries, embeddings=queries.embeddings[:, 0], frame_mask=None) if by_frames else queries
    about = {"num_frames": 3, "fingerprint": "f", "by_frames": queries if by_frames else None}
    assert fit_calibration(mean, images, **about) == fit_calibration(
        mean, GalleryImages(images.embeddings, images.gallery_ids, images.ids), **about
    )


def test_a_calibration_is_of_products():
    queries, images = make_shop(by_frames=True, num_queries=60)
    mean = dataclasses.replace(queries, embeddings=unit(queries.embeddings.mean(axis=1)), frame_mask=None)
    found = fit_calibration(mean, images, num_frames=3, fingerprint="f", by_frames=queries)
    product_of = dict(zip(images.ids, images.product_ids, strict=True))
    columns = [[], [], []]
    for query, truths in enumerate(queries.truths):
        cosines = expected_scores(mean, images, query, by_frames=False)
        scores = expected_scores(queries, images, query, by_frames=True)
        columns[0].append(np.array([score for score, _ in cosines.values()], np.float32))
        columns[1].append(np.isin(list(cosines), [product_of[truth] for truth in truths]))
        columns[2].append(np.array([score for score, _ in scores.values()], np.float32))
    expected = fit_scores(*columns, num_frames=3, fingerprint="f")
    assert dataclasses.astuple(found)[:3] == pytest.approx(dataclasses.astuple(expected)[:3], rel=1e-3)
    assert found.scale_by_frames == pytest.approx(expected.scale_by_frames, rel=1e-3)
    assert found.num_clips == 60
    photos = GalleryImages(images.embeddings, images.gallery_ids, images.ids)
    assert fit_calibration(mean, photos, num_frames=3, fingerprint="f") != found


def test_a_truth_may_be_named_by_its_product_if_its_image_is_missing():
    """The main image of a product of LPR4M has the product's name, and may be undecodable."""
    images = GalleryImages(np.eye(3, dtype=np.float32), ["g"] * 3, ["a-1", "a-2", "b"], ["g/a"], ["a", "a", "b"], 3.0)
    query = Queries(np.eye(3, dtype=np.float32)[[1]], ["q"], ["g"], [["a"]])
    found = ranking.rank(query, images)
    assert found.rank.tolist() == [1] and found.images == (("a-2", "b"),) and found.gallery_size.tolist() == [2]
    assert images.true_products("g", ["a-1", "b", "z"]) == ("a", "b", "z")


def test_re_ranking_matches_the_best_images():
    queries, images = make_shop()
    before = ranking.rank(queries, images)
    rows = rerank.candidates(before, 4, images.gallery_ids, images.ids)
    assert [[images.ids[row] for row in own] for own in rows] == [list(own[:4]) for own in before.images]
    cosines = np.random.default_rng(0).random(rows.shape).astype(np.float32)
    after = rerank.reorder(before, cosines)
    for query in range(len(rows)):
        order = np.argsort(-cosines[query])
        assert [after.images[query][place] for place in range(4)] == [before.images[query][place] for place in order]
        assert [name for name, _ in after.top[query][:4]] == [before.top[query][place][0] for place in order]
        assert after.images[query][4:] == before.images[query][4:]


def test_products_are_in_the_order_of_their_first_images():
    found = group_products(["a", "b", "a", "a", "b"], ["x", "x", "y", "x", "z"])
    assert found["a"].rows.tolist() == [0, 3, 2] and found["a"].edges.tolist() == [0, 2, 3]
    assert found["b"].rows.tolist() == [1, 4] and found["b"].numbers.tolist() == [1, 3]
    assert found[None].rows.tolist() == [0, 3, 1, 2, 4] and found[None].take(np.arange(4) > 1).rows.tolist() == [2, 4]
    assert group_products([], [])[None].rows.tolist() == []

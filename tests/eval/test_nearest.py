"""Ranks are those of float64 scores, whatever float32 products make of them."""

import numpy as np
import pytest

from rice_jax.eval import nearest, ranking
from rice_jax.eval.pooling import pool
from rice_jax.eval.scores import center


def _unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def _random(rng, num, width):
    return _unit(rng.standard_normal((num, width)))


def _duplicates(rng, num, width):
    return _random(rng, 5, width)[rng.integers(5, size=num)]


def _equal(rng, num, width):
    return np.repeat(_random(rng, 1, width), num, axis=0)


def _one_ulp_apart(rng, num, width):
    vectors = _equal(rng, num, width)
    rows, columns = np.arange(num), rng.integers(width, size=num)
    vectors[rows, columns] = np.nextafter(vectors[rows, columns], rng.choice(np.float32([-2, 2]), num))
    return vectors


def _collapsed(rng, num, width):
    return _unit(1 + 1e-4 * rng.standard_normal((num, width)))


def _orthogonal(rng, num, width):
    return np.eye(width, dtype=np.float32)[rng.integers(width, size=num)] * rng.choice(np.float32([-1, 1]), (num, 1))


def _canceling(rng, num, width):
    vectors = _random(rng, num, width)
    vectors[:, width // 2 :] = -vectors[:, : width - width // 2] * (1 + 1e-7 * rng.standard_normal((num, 1)))
    return vectors.astype(np.float32)


def _tiny(rng, num, width):
    return (_random(rng, num, width) * np.float32(1e-19)).astype(np.float32)


def _denormal(rng, num, width):
    return (rng.integers(-9, 10, (num, width)) * 2.0**-149).astype(np.float32)


def _huge(rng, num, width):
    return (_random(rng, num, width) * np.float32(3e18)).astype(np.float32)


def _mixed(rng, num, width):
    return (_random(rng, num, width) * 10.0 ** rng.integers(-12, 4, (num, 1))).astype(np.float32)


def _zero(rng, num, width):
    return np.zeros((num, width), np.float32)


KINDS = [
    _random, _duplicates, _equal, _one_ulp_apart, _collapsed, _orthogonal, _canceling, _tiny, _denormal, _huge, _mixed,
    _zero,
]  # fmt: skip


def _data(kind, seed, *, queries=40, images=500, width=33, galleries=2, products=False, frames=0):
    rng = np.random.default_rng(seed)
    vectors = kind(rng, images, width)
    near = vectors[rng.integers(images, size=queries)]  # half of the queries are pictures of the gallery
    own = np.where(rng.random((queries, 1)) < 0.5, near, kind(rng, queries, width))
    mask = None
    if frames:
        own = np.where(rng.random((queries, frames, 1)) < 0.5, own[:, None], kind(rng, queries, width)[:, None])
        mask = rng.random((queries, frames)) < 0.7
        mask[:, 0] = True
    of = rng.integers(galleries, size=images)
    names = [f"i{i}" for i in range(images)]
    number = rng.integers(images // 3, size=images) * galleries + of
    truths = [
        [names[i] for i in rng.choice(np.flatnonzero(of == q % galleries), size=rng.integers(1, 4), replace=False)]
        for q in range(queries)
    ]
    return (
        ranking.Queries(
            own.astype(np.float32),
            [f"q{q}" for q in range(queries)],
            [f"g{q % galleries}" for q in range(queries)],
            truths,
            mask,
        ),
        ranking.GalleryImages(
            vectors,
            [f"g{g}" for g in of],
            names,
            product_ids=[f"p{n}" for n in number] if products else None,
            sharpness=2.0,
        ),
    )


def _scores(queries, images, query, products):
    """The scores of a gallery's products by float64 products that are rounded once; each pair is summed alone."""
    own = queries.embeddings[query].astype(np.float64)
    rows, starts = products.rows, products.edges
    vectors = images.embeddings[rows].astype(np.float64)
    if queries.frame_mask is None:
        scores = np.vecdot(vectors, own)
    else:
        vectors = vectors - center(images.embeddings, rows)
        scores = np.max([np.vecdot(vectors, frame) for frame in own[queries.frame_mask[query]]], axis=0)
    of_images = scores.astype(np.float32)
    pooled = pool(of_images, starts, images.sharpness)
    inflation = images.pooling(products).inflation if queries.frame_mask is None else np.float32(0)
    best = [of_images[a:b].argmax() + a for a, b in zip(starts[:-1], starts[1:], strict=True)]
    return pooled - inflation, [images.ids[rows[place]] for place in best]


def _require_exact(queries, images, num_top=10, **options):
    """Compares a ranking with the sorted float64 scores, bit for bit; returns the number of comparisons."""
    ranked, num = ranking.rank(queries, images, num_top=num_top, **options), 0
    for query, gallery in enumerate(queries.gallery_ids):
        products = images.products[gallery]
        names = images.names(products)
        scores, shown = _scores(queries, images, query, products)
        truths = set(images.true_products(gallery, queries.truths[query]))
        order = sorted(range(len(names)), key=lambda i: (-scores[i], names[i] in truths, i))
        places = tuple(1 + place for place, i in enumerate(order) if names[i] in truths)
        assert ranked.truth_ranks[query] == places
        assert ranked.top[query] == tuple((names[i], float(scores[i])) for i in order[:num_top])
        assert ranked.images[query] == tuple(shown[i] for i in order[:num_top])
        num += len(names) * len(places)
    return num


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("products", [False, True], ids=["images", "products"])
@pytest.mark.parametrize("frames", [0, 3], ids=["clips", "frames"])
def test_ranks_are_those_of_float64_scores(kind, products, frames):
    queries, images = _data(kind, seed=1, products=products, frames=frames)
    _require_exact(queries, images)
    _require_exact(queries, images, num_top=1, max_scores=1500)


@pytest.mark.parametrize("kind", [_random, _one_ulp_apart, _collapsed, _mixed])
@pytest.mark.parametrize("width", [1, 7, 512])
def test_a_million_comparisons(kind, width):
    num = 0
    for seed in range(2):
        num += _require_exact(*_data(kind, seed, queries=30, images=3000, width=width, galleries=1), max_scores=2**15)
    assert num > 1e5


@pytest.mark.parametrize("frames", [0, 8], ids=["clips", "frames"])
def test_few_pairs_are_computed_again(monkeypatch, frames):
    counts, inner = [], nearest.Gallery._sums
    monkeypatch.setattr(
        nearest.Gallery, "_sums", lambda self, vectors, q, i: (counts.append(len(q)), inner(self, vectors, q, i))[1]
    )
    queries, images = _data(_random, 0, queries=100, images=5000, width=64, galleries=1, frames=frames)
    ranking.rank(queries, images)
    assert sum(counts) < 0.01 * 100 * 5000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [0, 3], ids=["clips", "frames"])
def test_approximate_scores_are_within_the_bound(kind, frames):
    queries, images = _data(kind, seed=2, products=True, frames=frames, galleries=1)
    products = images.products["g0"]
    lengths, pooling = nearest.lengths_of(images.embeddings), images.pooling(products)
    gallery = nearest.Gallery(images.embeddings, lengths, products, pooling, frames > 0)
    own = [queries.rows(query) for query in range(len(queries.ids))]
    vectors = np.concatenate(own)
    rows = nearest.Rows(vectors, nearest.lengths_of(vectors), np.cumsum([0, *map(len, own)]))
    approximate = gallery.approximate(rows, range(len(gallery))).scores.astype(np.float64)
    exact = [_scores(queries, images, query, products)[0] for query in range(len(rows))]
    assert (np.abs(approximate - np.array(exact, np.float64)) <= gallery.error(rows)[:, None]).all()

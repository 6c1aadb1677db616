"""Ranking by frames, by its definition."""

import dataclasses
import json
import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from rice_jax.config import ConfigError, MeshConfig
from rice_jax.eval.calibration import Calibration, fit_calibration, read_calibration, write_calibration
from rice_jax.eval.embed import compile_embedder, compute_rows, model_embedder, pixel_embedder
from rice_jax.eval.ranking import GalleryImages, Queries, rank
from rice_jax.eval.scores import center, scores_by_frames
from rice_jax.models.create import create_model, create_params
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks import TASKS
from rice_jax.types import DataError
from tests.models.test_contract import WithTitles
from tests.settings import small_config

NUM_FRAMES = 4


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_shop(num_queries=60, num_images=(13, 7), width=6, seed=0):
    """Videos of one to four frames that show one of the images of two galleries; the padding would win any ranking."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(sum(num_images), width)))
    gallery_ids = np.repeat(["a", "b"], num_images).tolist()
    shown = rng.integers(0, len(vectors), num_queries)
    frames = unit(vectors[shown][:, None] + rng.normal(size=(num_queries, NUM_FRAMES, width)))
    mask = np.arange(NUM_FRAMES) < rng.integers(1, NUM_FRAMES + 1, num_queries)[:, None]
    frames = np.where(mask[..., None], frames, 9 * np.roll(vectors, 1, axis=0)[shown][:, None])
    image_ids = [f"i{row}" for row in range(len(vectors))]
    queries = Queries(
        frames,
        [f"q{query}" for query in range(num_queries)],
        [gallery_ids[row] for row in shown],
        [[image_ids[row]] for row in shown],
        frame_mask=mask,
    )
    return queries, GalleryImages(vectors, gallery_ids, image_ids)


def scores_of(queries, images, query, without=()):
    """{image id: score} of a query, one number at a time."""
    gallery = [
        (name, vector.astype(float))
        for name, own, vector in zip(images.ids, images.gallery_ids, images.embeddings, strict=True)
        if own == queries.gallery_ids[query] and name not in without
    ]
    kept = [frame for frame, keep in zip(queries.embeddings[query], queries.frame_mask[query], strict=True) if keep]
    found = {}
    for name, vector in gallery:
        above = [frame @ vector - sum(frame @ other for _, other in gallery) / len(gallery) for frame in kept]
        found[name] = max(above)
    return found


def test_the_ranking_is_that_of_the_definition():
    queries, images = make_shop()
    ranked = rank(queries, images, num_top=20)
    for query, (truth,) in enumerate(queries.truths):
        expected = scores_of(queries, images, query)
        order = sorted(expected, key=expected.get, reverse=True)
        assert [name for name, _ in ranked.top[query]] == order
        np.testing.assert_allclose([score for _, score in ranked.top[query]], [expected[name] for name in order], 1e-5)
        assert ranked.rank[query] == 1 + order.index(truth)
    assert 2 < np.mean(ranked.rank) < 6, "neither trivial nor chance"


@pytest.mark.parametrize("max_scores", [1, 50, 1000])
def test_the_ranking_does_not_depend_on_the_chunks(max_scores):
    queries, images = make_shop()
    whole, chunked = rank(queries, images), rank(queries, images, max_scores=max_scores)
    np.testing.assert_array_equal(chunked.rank, whole.rank)
    assert chunked.top == whole.top


def test_copies_of_an_image_tie():
    queries, images = make_shop()
    copies = GalleryImages(
        np.concatenate([images.embeddings] * 2),
        [*images.gallery_ids] * 2,
        [*images.ids, *(f"copy of {name}" for name in images.ids)],
    )
    once, twice = rank(queries, images), rank(queries, copies, max_scores=40)
    # The copy of the truth, and those of all images before it, come before the truth.
    np.testing.assert_array_equal(twice.rank, 2 * once.rank)


def test_one_frame_has_the_order_of_the_mean():
    queries, images = make_shop()
    first = dataclasses.replace(queries, embeddings=queries.embeddings[:, :1], frame_mask=queries.frame_mask[:, :1])
    mean = dataclasses.replace(queries, embeddings=queries.embeddings[:, 0], frame_mask=None)
    by_frame, by_mean = rank(first, images), rank(mean, images)
    np.testing.assert_array_equal(by_frame.rank, by_mean.rank)
    assert [[name for name, _ in top] for top in by_frame.top] == [[name for name, _ in top] for top in by_mean.top]


def test_a_query_without_frames_is_named():
    queries, images = make_shop()
    queries.frame_mask[3] = False
    with pytest.raises(DataError, match="^Query 'q3' has no frame"):
        rank(queries, images)
    queries.embeddings[5, 0] = np.nan
    with pytest.raises(DataError, match="^The embedding of query 'q5' is not finite"):
        rank(queries, images)


def test_memory_does_not_grow_with_queries_times_frames_times_gallery():
    rng = np.random.default_rng(0)
    frames, vectors = (unit(rng.normal(size=shape)) for shape in ((100, NUM_FRAMES, 4), (10_000, 4)))
    names = [f"i{i}" for i in range(10_000)]
    queries = Queries(
        frames, names[:100], ["g"] * 100, [[name] for name in names[:100]], np.ones((100, NUM_FRAMES), bool)
    )
    tracemalloc.start()
    rank(queries, GalleryImages(vectors, ["g"] * 10_000, names), max_scores=2**16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 100 * NUM_FRAMES * 10_000 * 4, "bytes of all cosines"


def test_two_forms_of_the_score_agree():
    queries, images = make_shop()
    rows = np.array([0, 4, 5, 11])
    vectors, frames = images.embeddings[rows], queries.embeddings[0]
    expected = (frames @ (vectors - center(images.embeddings, rows)).T).max(axis=0)
    np.testing.assert_allclose(scores_by_frames(frames @ vectors.T), expected, atol=1e-6)
    np.testing.assert_array_equal(scores_by_frames(frames @ vectors[:1].T), 0)


def test_the_scale_is_the_likeliest_and_the_rest_is_the_means():
    queries, images = make_shop(num_queries=300)
    mean = dataclasses.replace(queries, embeddings=queries.embeddings[:, 0], frame_mask=None)
    settings = {"num_frames": NUM_FRAMES, "fingerprint": "f"}
    found, plain = (
        fit_calibration(mean, images, by_frames=queries, **settings),
        fit_calibration(mean, images, **settings),
    )
    assert plain.scale_by_frames is None and dataclasses.replace(found, scale_by_frames=None) == plain
    scores = [scores_of(queries, images, query) for query in range(len(queries.ids))]

    def loss(scale):
        return np.mean([
            np.log(sum(np.exp(scale * (score - own[truth])) for score in own.values()))
            for own, (truth,) in zip(scores, queries.truths, strict=True)
        ])  # fmt: skip

    best = minimize_scalar(loss, bounds=(0.1, 100))
    assert found.scale_by_frames == pytest.approx(best.x, rel=1e-3) and found.scale_by_frames != plain.scale


def test_confidences_by_frames():
    calibration = Calibration(4.0, 20.0, 0.5, 9, 4, "f", scale_by_frames=8.0)
    cosines, scores = np.array([0.6, 0.5, 0.1]), np.array([0.1, 0.3, 0.2])
    shares = calibration.probabilities(cosines, scores)
    assert shares[-1] == calibration.probabilities(cosines)[-1] == pytest.approx(1 / (1 + np.exp(2)))
    np.testing.assert_allclose(shares[:-1] / shares[:-1].sum(), softmax(8 * scores))
    many = calibration.probabilities(np.stack([cosines, cosines]), np.stack([scores, scores]))
    np.testing.assert_allclose(many, np.stack([shares, shares]))


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    calibration = Calibration(4.0, 20.0, 0.5, 9, 4, "f", scale_by_frames=8.0)
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration
    values = json.loads((tmp_path / "calibration.json").read_text())
    del values["scale_by_frames"]  # as version 0.2 wrote it
    (tmp_path / "calibration.json").write_text(json.dumps(values))
    assert read_calibration(tmp_path) == dataclasses.replace(calibration, scale_by_frames=None)


def videos(num=6, side=16):
    rng = np.random.default_rng(1)
    mask = np.arange(NUM_FRAMES) < rng.integers(1, NUM_FRAMES, (num, 1))
    return {
        "image": rng.integers(0, 256, (num, side, side, 3), np.uint8),
        "video": rng.integers(0, 256, (num, NUM_FRAMES, side, side, 3), np.uint8),
        "frame_mask": mask,
        "index": np.arange(num, dtype=np.int32),
        "mask": np.ones(num, bool),
    }


def test_frames_are_embedded_as_images_on_eight_devices_as_on_one():
    config = small_config()
    parts, found = TASKS[config.task].model(config), []
    for devices in (1, 8):
        mesh = create_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
        params = create_params(parts, mesh, 0)
        embedder = compile_embedder(model_embedder(create_model(parts, mesh), with_frames=True), params, mesh)
        found.append(compute_rows(embedder.video, params, [videos(8)], 8, mesh))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), *found)
    mean, embeddings, mask, speech = found[0]
    assert speech is None
    rows = videos(8)
    np.testing.assert_array_equal(mask, rows["frame_mask"])
    np.testing.assert_array_equal(embeddings[~mask], 0)
    alone = model_embedder(create_model(parts, mesh))
    images = jax.jit(alone.image)(params, {"image": rows["video"][mask]}).embedding
    np.testing.assert_allclose(embeddings[mask], images, atol=1e-5)
    np.testing.assert_allclose(mean, jax.jit(alone.video)(params, rows), atol=1e-5)


def test_pixels_too_are_ranked_by_frames():
    rows = videos()
    mean, embeddings, mask, _ = pixel_embedder(with_frames=True).video({}, jax.tree.map(jnp.asarray, rows))
    images = pixel_embedder().image({}, {"image": jnp.asarray(rows["video"][mask])}).embedding
    np.testing.assert_allclose(embeddings[mask], images, atol=1e-6)
    np.testing.assert_array_equal(mean, pixel_embedder().video({}, jax.tree.map(jnp.asarray, rows)))


def test_a_model_of_whole_videos_is_refused():
    graphdef, params = nnx.split(WithTitles())
    refused = "^ranking by frames needs a model that can encode a video frame by frame; WithTitles cannot"
    with pytest.raises(ConfigError, match=refused):
        jax.eval_shape(model_embedder(graphdef, with_frames=True).video, params, videos())

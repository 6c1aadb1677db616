import jax.numpy as jnp
import numpy as np
import pytest

from rice_jax.config import MeshConfig
from rice_jax.eval.embed import compile_embedder, compute_rows, pixel_embedder, thumbnail
from rice_jax.parallel.mesh import create_mesh


def batches(pictures, size):
    """As `eval_batches` yields them: the last one filled up."""
    for start in range(0, len(pictures), size):
        rows = pictures[start : start + size]
        filling = size - len(rows)
        yield {
            "image": np.concatenate([rows, np.zeros((filling, *rows.shape[1:]), np.uint8)]),
            "index": np.arange(start, start + size, dtype=np.int32),
            "mask": np.arange(size) < len(rows),
        }


@pytest.mark.parametrize("fsdp", [1, 8])
def test_every_row_is_embedded_in_its_place_over_eight_devices(fsdp):
    pictures = np.random.default_rng(0).integers(0, 256, (19, 32, 32, 3), np.uint8)
    mesh = create_mesh(MeshConfig(fsdp=fsdp))
    assert mesh.size == 8
    embedder = compile_embedder(pixel_embedder(), {}, mesh)
    found = compute_rows(embedder.image, {}, batches(pictures, 8), 19, mesh).embedding
    assert found.shape == (19, 768) and found.dtype == np.float32
    # 32 → 16 with antialiasing is a triangle of 1/8, 3/8, 3/8, 1/8 along each side; only inner pixels are compared.
    kernel = np.array([1, 3, 3, 1]) / 8
    for row in (0, 7, 18):
        x = pictures[row].astype(float)
        inner = np.stack([np.tensordot(kernel, x[2 * i - 1 : 2 * i + 3], 1) for i in range(1, 15)])
        inner = np.stack([np.tensordot(kernel, inner[:, 2 * i - 1 : 2 * i + 3], (0, 1)) for i in range(1, 15)], 1)
        small = np.asarray(thumbnail(jnp.asarray(pictures[row]))).reshape(16, 16, 3)
        shift = (small[1:-1, 1:-1] - inner).mean()
        np.testing.assert_allclose(small[1:-1, 1:-1], inner + shift, atol=1e-3)
        np.testing.assert_allclose(found[row], small.ravel() / np.linalg.norm(small), atol=1e-6)


def test_one_compilation_serves_all_batches():
    pictures = np.random.default_rng(1).integers(0, 256, (30, 18, 18, 3), np.uint8)  # of a size that no other test has
    mesh = create_mesh(MeshConfig(fsdp=1))
    embedder = compile_embedder(pixel_embedder(), {}, mesh)
    before = embedder.image._cache_size()
    compute_rows(embedder.image, {}, batches(pictures, 8), 30, mesh)
    compute_rows(compile_embedder(pixel_embedder(), {}, mesh).image, {}, batches(pictures, 8), 30, mesh)
    assert embedder.image._cache_size() == before + 1


@pytest.mark.parametrize("level", [0, 255])
def test_a_picture_of_one_color_is_similar_to_nothing(level):
    pictures = np.random.default_rng(3).integers(0, 256, (8, 2, 32, 32, 3), np.uint8)
    pictures[0], pictures[1, 0] = level, level
    mesh, frame_mask = create_mesh(MeshConfig(fsdp=1)), np.ones((8, 2), bool)
    embedder = compile_embedder(pixel_embedder(with_frames=True), {}, mesh)
    images = np.asarray(embedder.image({}, {"image": pictures[:, 1]}).embedding)
    videos = embedder.video({}, {"video": pictures, "frame_mask": frame_mask})
    np.testing.assert_allclose(images[0], 0, atol=1e-3)
    np.testing.assert_allclose(videos.embedding[0], 0, atol=1e-3)
    np.testing.assert_allclose(videos.frames[1, 0], 0, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(images[1:], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(videos.embedding[1:], axis=1), 1, rtol=1e-5)


def test_exposure_alone_makes_no_neighbor():
    pictures = np.random.default_rng(2).integers(60, 160, (2, 16, 16, 3), np.uint8)
    brighter = pictures[:1] + np.uint8(80)
    same, other = (np.asarray(thumbnail(jnp.asarray(x))) for x in (brighter, pictures))
    assert np.linalg.norm(same[0] - other[0]) < 1e-2 < np.linalg.norm(other[0] - other[1])

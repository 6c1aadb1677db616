import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from rice_jax.config import MeshConfig
from rice_jax.losses.contrastive import different_images
from rice_jax.losses.matching import hardest_negatives, matching_loss, same_shard
from rice_jax.parallel.mesh import create_mesh, global_batch


def sorted_negatives(similarity, num_negatives, keep):
    """Row by row, hardest first and ties by lower row; an image with too few has a shorter list."""
    rows = []
    for i, row in enumerate(np.asarray(similarity)):
        candidates = [j for j in range(len(row)) if j != i and keep[i, j]]
        rows.append(sorted(candidates, key=lambda j: (-row[j], j))[:num_negatives])
    return rows


def masks(batch):
    key = np.array([4, 2, 4, 1, 1, 2, 3, 1][:batch], np.int32)
    half = np.arange(batch) // (batch // 2)
    everywhere = np.ones((batch, batch), bool)
    return {
        "none": (None, everywhere),
        "same image": (different_images(jnp.array(key)), key[:, None] != key),
        "same shard": (same_shard(batch, 2), half[:, None] == half),
        "both": (
            different_images(jnp.array(key)) & same_shard(batch, 2),
            (key[:, None] != key) & (half[:, None] == half),
        ),
    }


@pytest.mark.parametrize("name", ["none", "same image", "same shard", "both"])
def test_hardest_negatives_against_a_sort(name):
    mask, keep = masks(8)[name]
    # Few values, so that many of them tie; an image's own video is the most similar of all.
    similarity = np.random.default_rng(0).integers(-2, 3, (8, 8)).astype(np.float32) + 9 * np.eye(8, dtype=np.float32)
    negatives, kept = hardest_negatives(jnp.asarray(similarity), 3, mask)
    expected = sorted_negatives(similarity, 3, keep)
    assert [row[valid].tolist() for row, valid in zip(np.asarray(negatives), np.asarray(kept), strict=True)] == expected
    assert (name == "both") == any(len(row) < 3 for row in expected), "case with fewer candidates than asked for"


def test_an_image_without_candidates_keeps_none():
    mask = jnp.zeros((3, 3), bool)
    negatives, kept = hardest_negatives(jnp.ones((3, 3)), 2, mask)
    assert not np.any(kept) and negatives.shape == (3, 2)


def test_the_choice_has_no_gradient():
    similarity = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.float32)
    values = jnp.arange(4.0)

    def total(similarity, values):
        negatives, kept = hardest_negatives(similarity, 2)
        return jnp.where(kept, values[negatives], 0).sum()

    of_similarity, of_values = jax.jit(jax.grad(total, argnums=(0, 1)))(similarity, values)
    assert not np.any(of_similarity) and of_values.sum() == 8


def test_hardest_negatives_of_a_batch_over_eight_devices():
    embeddings = np.random.default_rng(0).standard_normal((2, 16, 8)).astype(np.float32)
    image, video = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    compute = jax.jit(lambda image, video: hardest_negatives(image @ video.T, 3))
    expected, _ = compute(image, video)
    batch = global_batch(create_mesh(MeshConfig(fsdp=2)), {"image": image, "video": video})
    assert len(batch["image"].addressable_shards) == 8
    np.testing.assert_array_equal(compute(batch["image"], batch["video"])[0], expected)


def expected_loss(cosine, scale, keep):
    """Cross entropy of the first candidate among those kept, image by image."""
    return np.mean([logsumexp(scale * row[kept]) - scale * row[0] for row, kept in zip(cosine, keep, strict=True)])


def test_matching_loss_value_mask_and_gradient():
    rng = np.random.default_rng(0)
    cosine = rng.uniform(-1, 1, (4, 4))
    negative_mask = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    keep = np.concatenate([np.ones((4, 1), bool), negative_mask], axis=1)
    ours = jnp.asarray(cosine, jnp.float32)
    everything = np.ones((4, 4), bool)
    np.testing.assert_allclose(matching_loss(ours, 10.0), expected_loss(cosine, 10, everything), rtol=1e-5)
    np.testing.assert_allclose(
        matching_loss(ours, 10.0, jnp.asarray(negative_mask)), expected_loss(cosine, 10, keep), rtol=1e-5
    )
    other = jnp.where(jnp.asarray(keep), ours, 1.0)
    both = jax.jit(jax.value_and_grad(lambda cosine, mask: matching_loss(cosine, 10.0, mask)))
    loss, gradient = both(other, jnp.asarray(negative_mask))
    np.testing.assert_allclose(loss, expected_loss(cosine, 10, keep), rtol=1e-5, err_msg="unaffected by the masked")
    assert not np.any(np.asarray(gradient)[~keep]) and not np.any(gradient[3]), "alone there is nothing to learn"
    step = 1e-5
    for place in np.ndindex(4, 4):
        above, below = cosine.copy(), cosine.copy()
        above[place] += step
        below[place] -= step
        numeric = (expected_loss(above, 10, keep) - expected_loss(below, 10, keep)) / (2 * step)
        np.testing.assert_allclose(gradient[place], numeric, rtol=1e-3, atol=1e-6)

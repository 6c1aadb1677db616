import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import logsumexp

from rice_jax.config import MeshConfig
from rice_jax.losses.cosface import HIGHEST, cosface_loss, sample_classes
from rice_jax.parallel.blocks import split_classes, take_classes
from rice_jax.parallel.mesh import create_mesh, global_batch, parameter_shardings
from scripts.benchmarks.hlo import collectives

ROWS, CLASSES, SAMPLED, WIDTH = 16, 64, 32, 8


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def inputs(rows=ROWS, classes=CLASSES):
    """Embeddings near their class, so that no row's value is at its bound."""
    rng = np.random.default_rng(0)
    centers, label = 0.01 * rng.standard_normal((classes, WIDTH)), rng.integers(0, classes, rows)
    embedding = unit(unit(centers)[label] + 0.2 * rng.standard_normal((rows, WIDTH)))
    return tuple(jnp.asarray(x, jnp.float32) for x in (embedding, centers)), jnp.asarray(label, jnp.int32)


def expected_rows(embedding, centers, label):
    cosines = unit(np.asarray(embedding, np.float64)) @ unit(np.asarray(centers, np.float64)).T
    logits = 64 * (cosines - 0.4 * np.eye(len(centers))[label])
    return logsumexp(logits, axis=1) - logits[np.arange(len(label)), label]


def test_value_and_gradient_against_scipy():
    (embedding, centers), label = inputs()
    loss, gradient = jax.value_and_grad(cosface_loss, argnums=2)(embedding, label, centers)
    rows = expected_rows(embedding, centers, label)
    assert rows.max() < HIGHEST
    np.testing.assert_allclose(loss, rows.mean(), rtol=1e-5)
    step = 1e-6
    for i, j in [(int(label[0]), 0), (1, 3), (40, 7)]:
        moved = np.array(centers, np.float64)
        moved[i, j] += step
        above = expected_rows(embedding, moved, label).mean()
        moved[i, j] -= 2 * step
        numeric = (above - expected_rows(embedding, moved, label).mean()) / (2 * step)
        np.testing.assert_allclose(gradient[i, j], numeric, rtol=1e-2, atol=1e-2)


def test_the_value_of_a_row_has_a_bound_and_its_gradient_has_none():
    embedding, centers = jnp.asarray([[1.0, 0.0], [0.0, 1.0]]), jnp.asarray([[-1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    loss, gradient = jax.value_and_grad(cosface_loss)(embedding, jnp.asarray([0, 2]), centers)
    np.testing.assert_allclose(loss, HIGHEST / 2, rtol=1e-5)
    assert np.abs(gradient[0]).max() > 1, "that of a row far beyond"


def test_padding_and_rows_left_out_change_nothing():
    (embedding, centers), label = inputs(rows=6, classes=10)
    real = jnp.asarray([True, True, False, True, False, True])
    padded = jnp.concatenate([centers, jnp.zeros((6, WIDTH))])
    loss = lambda embedding, centers: cosface_loss(embedding, label, centers, num_classes=10, real=real)  # noqa: E731
    value, (by_embedding, by_centers) = jax.value_and_grad(loss, argnums=(0, 1))(embedding, padded)
    kept = np.flatnonzero(real)
    expected = lambda embedding, centers: cosface_loss(embedding[kept], label[kept], centers)  # noqa: E731
    wanted, (wanted_embedding, wanted_centers) = jax.value_and_grad(expected, argnums=(0, 1))(embedding, centers)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(by_embedding, wanted_embedding, atol=1e-5)
    np.testing.assert_allclose(by_centers[:10], wanted_centers, rtol=1e-4, atol=1e-4)
    assert not np.any(by_centers[10:])
    none = lambda embedding: cosface_loss(embedding, label, centers, real=jnp.zeros(6, bool))  # noqa: E731
    assert none(embedding) == 0 and not np.any(jax.grad(none)(embedding))


def test_of_sampled_classes_the_others_take_no_part():
    (embedding, centers), label = inputs()
    number = sample_classes(label, CLASSES, SAMPLED, jax.random.key(1))
    found, gradient = jax.value_and_grad(
        lambda centers: cosface_loss(embedding, label, centers[number], number=number)
    )(centers)
    place = {int(n): i for i, n in enumerate(number)}
    rows = expected_rows(embedding, centers[number], [place[int(n)] for n in label])
    np.testing.assert_allclose(found, rows.mean(), rtol=1e-5)
    others = np.setdiff1d(np.arange(CLASSES), number)
    assert not np.any(gradient[others]) and np.any(gradient[number])


def test_what_is_sampled_depends_on_the_key_alone():
    _, label = inputs()
    drawn = [np.asarray(sample_classes(label, CLASSES, SAMPLED, jax.random.key(seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    for number in drawn:
        assert (
            len(set(number.tolist())) == SAMPLED and (np.diff(number) > 0).all() and set(label.tolist()) <= set(number)
        )
    times = sum(
        np.bincount(sample_classes(label, CLASSES, SAMPLED, jax.random.key(seed)), minlength=CLASSES)
        for seed in range(60)
    )
    others = times[np.setdiff1d(np.arange(CLASSES), label)]
    assert others.min() > 5 and others.max() < 40, "evenly: about 20 of 60 times"
    for size in (ROWS - 1, CLASSES + 1):
        with pytest.raises(ValueError, match=f"^size: found {size}, expected 16 rows of the batch to 64 classes"):
            sample_classes(label, CLASSES, size, jax.random.key(0))


@pytest.mark.parametrize(("fsdp", "sampled"), [(1, False), (4, True), (8, False)])
def test_eight_devices_give_the_value_and_gradients_of_one_and_gather_no_logits(fsdp, sampled):
    (embedding, centers), label = inputs()
    mesh = create_mesh(MeshConfig(-1, fsdp))

    def loss(embedding, centers, label, split=lambda logits: logits, take=lambda rows, number: rows[number]):
        rows, number = centers["embedding"], None
        if sampled:
            number = sample_classes(label, CLASSES, SAMPLED, jax.random.key(0))
            rows = take(rows, number)
        return cosface_loss(embedding, label, rows, number=number, split=split)

    params = {"embedding": centers}
    expected = jax.value_and_grad(loss, argnums=(0, 1))(embedding, params, label)
    params = jax.device_put(params, parameter_shardings(mesh, params))
    assert params["embedding"].sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("fsdp")), 2)
    rows = global_batch(mesh, {"embedding": np.asarray(embedding), "label": np.asarray(label)})
    parts = dict(split=split_classes(mesh), take=take_classes(mesh))
    step = jax.jit(jax.value_and_grad(lambda *args: loss(*args, **parts), argnums=(0, 1)))
    arguments = rows["embedding"], params, rows["label"]
    found = step(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), found, expected)
    most = 4 * WIDTH * (CLASSES // fsdp + ROWS + SAMPLED * sampled)
    assert most < 4 * ROWS * CLASSES, "bytes of the logits"
    sent = [(one.bytes, one.kind, one.shape) for one in collectives(step.lower(*arguments).compile().as_text())]
    assert sent and max(sent)[0] <= most, sent

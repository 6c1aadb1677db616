"""Losses of distillation against their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rice_jax.losses.distillation import direct_loss, relational_loss

TEMPERATURE = 0.2
MASKS = {"all": np.ones(8, bool), "some": np.arange(8) % 3 != 1, "two": np.arange(8) < 2, "one": np.arange(8) == 5}


def rows(size: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((8, size))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def expected_relations(embedding, teacher, mask) -> float:
    """By definition, row by row, over the other rows that the teacher has."""
    total, count = 0.0, 0
    for i in np.flatnonzero(mask):
        others = [j for j in np.flatnonzero(mask) if j != i]
        if not others:
            continue
        target, found = (np.exp([x[i] @ x[j] / TEMPERATURE for j in others]) for x in (teacher, embedding))
        target, found = target / target.sum(), found / found.sum()
        total, count = total + (target * np.log(target / found)).sum(), count + 1
    return total / max(count, 1)


def expected_direct(mapped, teacher, mask) -> float:
    cosines = (mapped * teacher).sum(axis=1) / np.linalg.norm(mapped, axis=1)
    return float((1 - cosines[mask]).mean()) if mask.any() else 0.0


def check(loss, expected, embedding, teacher, mask) -> None:
    """Value, and gradients of the embeddings by differences; none for the teacher."""
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (gradient, of_teacher) = both(embedding, teacher, jnp.asarray(mask))
    exact, other = embedding.astype(np.float64), teacher.astype(np.float64)
    np.testing.assert_allclose(value, expected(exact, other, mask), rtol=1e-5, atol=1e-7)
    assert not np.any(of_teacher) and np.isfinite(gradient).all()
    assert not np.any(np.asarray(gradient)[~mask])
    for place in [(0, 0), (1, 2), (5, 4)]:
        moved, step = [exact.copy(), exact.copy()], 1e-5
        moved[0][place] += step
        moved[1][place] -= step
        numeric = (expected(moved[0], other, mask) - expected(moved[1], other, mask)) / (2 * step)
        np.testing.assert_allclose(gradient[place], numeric, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_relations_and_their_gradient_are_as_defined(mask):
    loss = lambda *x: relational_loss(*x, TEMPERATURE)  # noqa: E731
    check(loss, expected_relations, rows(5, 0), rows(7, 1), mask)


@pytest.mark.parametrize("mask", [*MASKS.values(), np.zeros(8, bool)], ids=[*MASKS, "none"])
def test_the_direct_loss_and_its_gradient_are_as_defined(mask):
    check(direct_loss, expected_direct, 3 * rows(7, 0), rows(7, 1), mask)


def test_the_teachers_own_similarities_are_the_minimum():
    teacher = rows(7, 1)
    turned = teacher @ np.linalg.qr(np.random.default_rng(2).standard_normal((7, 7)))[0].astype(np.float32)
    value, gradient = jax.value_and_grad(relational_loss)(
        jnp.asarray(turned), jnp.asarray(teacher), jnp.ones(8, bool), TEMPERATURE
    )
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_a_mapped_row_of_zeros_has_a_finite_gradient():
    value, gradient = jax.value_and_grad(direct_loss)(jnp.zeros((8, 7)), jnp.asarray(rows(7, 1)), jnp.ones(8, bool))
    assert value == 1 and np.isfinite(gradient).all()


def test_eight_devices_give_the_losses_of_one():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def losses(*x):
        relations = lambda embedding: relational_loss(embedding, *x[1:], TEMPERATURE)  # noqa: E731
        direct = lambda embedding: direct_loss(embedding, *x[1:])  # noqa: E731
        return jax.value_and_grad(relations)(x[0]), jax.value_and_grad(direct)(x[0])

    arguments = rows(7, 0), rows(7, 1), MASKS["some"]
    found = jax.jit(losses)(*jax.device_put(arguments, split))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, jax.jit(losses)(*arguments)
    )

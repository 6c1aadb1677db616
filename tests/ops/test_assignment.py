import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from rice_jax.ops.assignment import assign


@pytest.mark.parametrize(("queries", "boxes"), [(6, 1), (6, 4), (5, 5), (1, 1)])
def test_costs_as_little_as_scipys(queries, boxes):
    rng = np.random.default_rng(queries * 10 + boxes)
    cost = rng.normal(size=(3, 8, queries, boxes)).astype(np.float32)
    mask = rng.random((3, 8, boxes)) < 0.7
    found = np.asarray(jax.jit(assign)(cost, mask))
    for c, m, f in zip(
        cost.reshape(-1, queries, boxes), mask.reshape(-1, boxes), found.reshape(-1, boxes), strict=True
    ):
        assert len(set(f.tolist())) == boxes, "no query answers twice"
        rows, columns = linear_sum_assignment(c[:, m])
        expected = np.empty(m.sum(), int)
        expected[columns] = rows
        np.testing.assert_array_equal(f[m], expected)


def test_padding_takes_no_query_away_whatever_it_holds():
    cost = np.array([[[1.0, 0.0], [2.0, 5.0]]], np.float32)
    mask = np.array([[True, False]])
    for padding in (-100.0, 0.0, 100.0, np.nan, np.inf):
        cost[0, :, 1] = padding
        assert jax.jit(assign)(cost, mask)[0, 0] == 0


def test_ends_even_if_no_cost_is_a_number():
    found = jax.jit(assign)(jnp.full((2, 3, 2), jnp.nan), jnp.ones((2, 2), bool))
    assert all(len(set(row.tolist())) == 2 for row in np.asarray(found))


def test_too_few_queries():
    with pytest.raises(ValueError, match="found 2 queries for 3 boxes"):
        assign(jnp.zeros((1, 2, 3)), jnp.ones((1, 3), bool))

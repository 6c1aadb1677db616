"""The weight of a second score beside a first one, fitted by maximum likelihood.

    score = first + weight · second

Among the products that it may show, a query shows its truth with a probability proportional to
exp(a · first + b · second), and the weight is b / a of the maximum-likelihood estimates. So that no query is ranked
with a weight that it was fitted to, products are divided into halves, and each half is ranked with the weight of the
other.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

MAX_FACTOR = 1000.0  # of both scores, which would grow without bound if all of a few queries were ranked correctly
MAX_WEIGHT = 100.0


def fit(pairs: Sequence[Float[np.ndarray, "_ 2"]], is_truth: Sequence[Bool[np.ndarray, " _"]]) -> float:
    """The weight, 0 or more, by which the truths are likeliest; 0 if there are no queries.

    Args:
        pairs: of each query and all products that it may show, the first and the second score.
        is_truth: which of these it shows, at least one.
    """
    from scipy.optimize import minimize  # slow to import, and most runs only need it at their end

    if not pairs:
        return 0.0
    starts = np.cumsum([0, *map(len, pairs[:-1])])
    sizes = [*map(len, pairs)]
    x, right = np.concatenate(pairs).astype(np.float64), np.concatenate(is_truth)

    def expectation(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        best = np.maximum.reduceat(logits, starts)
        shares = np.exp(logits - np.repeat(best, sizes))
        sums = np.add.reduceat(shares, starts)
        return best + np.log(sums), np.add.reduceat(shares[:, None] * x, starts) / sums[:, None]

    def loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x @ factors
        everything, mean = expectation(logits)
        truths, true_mean = expectation(np.where(right, logits, -1e300))
        return float((everything - truths).mean()), (mean - true_mean).mean(axis=0)

    bounds = [(1e-3, MAX_FACTOR), (0.0, MAX_FACTOR)]
    a, b = minimize(loss, [10.0, 1.0], jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(min(b / a, MAX_WEIGHT))


def cross_fit(products: Sequence[str], fit_among: Callable[[Bool[np.ndarray, " Q"]], float]) -> Float[np.ndarray, " Q"]:
    """For each query the weight that is fitted to the queries of the other half of the products.

    Args:
        products: that each query shows.
        fit_among: the weight of the queries in a mask.
    """
    half = np.array([half_of(product) for product in products])
    weights = [fit_among(half == other) for other in (1, 0)]
    return np.array(weights)[half]


def half_of(product: str) -> int:
    """0 or 1, whatever other products there are."""
    return hashlib.sha256(product.encode()).digest()[0] % 2

"""The scores of products that have several images."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from rice_jax.eval.products import Products

# Of `pool`, relative to the scale by which training multiplies similarities: a constant of the model, so that a new
# calibration does not change the scores that it is fitted to. Chosen on the sample (docs/results.md).
SHARPNESS = 0.1
LEAST_SHARPNESS = 1e-3  # at which the result is the mean, and can still be computed
NUM_PICTURES = 512  # that stand for clips
BLOCK = 64  # of them at a time


class Pooling(NamedTuple):
    """How some products are scored by their images, of which each has one or several."""

    edges: Int[np.ndarray, " p1"]  # see `Products`
    sharpness: float  # of `pool`
    inflation: Float32[np.ndarray, " p"]  # of the products' cosines

    def scores(self, of_images: Float[np.ndarray, "*B g"]) -> Float[np.ndarray, "*B p"]:
        """The products' scores from those of their images, which are neighbors."""
        return pool(of_images, self.edges, self.sharpness)

    def cosines(self, of_images: Float[np.ndarray, "*B g"]) -> Float[np.ndarray, "*B p"]:
        """The same for cosines, which also tell whether a product is shown: without what several images add to them."""
        return self.scores(of_images) - self.inflation


def pool(
    scores: Float[np.ndarray, "*B g"], edges: Int[np.ndarray, " p1"], sharpness: float
) -> Float[np.ndarray, "*B p"]:
    """The scores of products from those of their images: log(mean(exp(sharpness · score))) / sharpness.

    This lies between the mean of a product's scores and the best of them. The best would be the larger the more images
    a product has, and the mean would fall with every image that does not show the product. With one image each,
    products have the very scores of their images.

    Args:
        scores: of the images.
        edges: of the products, see `Products`.
        sharpness: 0 or more; the result is the mean of a product's scores at 0, and near the best if it is large.
    """
    if len(edges) > scores.shape[-1]:
        return scores
    starts, sizes, sharpness = edges[:-1], np.diff(edges), max(sharpness, LEAST_SHARPNESS)
    best = np.maximum.reduceat(scores, starts, axis=-1)
    behind = scores.astype(np.float64) - np.repeat(best, sizes, axis=-1)
    means = np.add.reduceat(np.exp(sharpness * behind), starts, axis=-1) / sizes
    return (best + np.log(means) / sharpness).astype(scores.dtype)


def inflation(vectors: Float32[np.ndarray, "N E"], products: Products, sharpness: float) -> Float32[np.ndarray, " p"]:
    """By how much a product's pooled cosine exceeds the mean of its images' on average, for clips that do not show it.

    A calibration whose products had one image each does not know this: with several, the largest cosine of a gallery
    exceeds the threshold more often, whether a product is shown or not. Pictures of other products stand for the clips.

    Args:
        vectors: of all images of the index.
        products: all of the index.
        sharpness: of `pool`.
    """
    sizes = np.diff(products.edges)
    excess = np.zeros(len(sizes))
    if sizes.max() == 1:
        return excess.astype(np.float32)
    of_row = np.repeat(np.arange(len(sizes)), sizes)
    chosen = np.arange(0, len(of_row), -(-len(of_row) // NUM_PICTURES))
    own = vectors[products.rows]
    for start in range(0, len(chosen), BLOCK):
        places = chosen[start : start + BLOCK]
        cosines = own[places] @ own.T
        means = np.add.reduceat(cosines, products.edges[:-1], axis=-1) / sizes
        found = pool(cosines, products.edges, sharpness) - means
        found[np.arange(len(places)), of_row[places]] = 0
        excess += found.sum(axis=0)
    others = len(chosen) - np.bincount(of_row[chosen], minlength=len(sizes))
    return (excess / np.maximum(others, 1)).astype(np.float32)

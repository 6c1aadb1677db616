"""Smaller vectors of an index: fewer dimensions, and whole numbers of 8 bits.

A projection has the N directions, at right angles, that keep most of the squared lengths of an index's own vectors: the
eigenvectors of their second moments with the largest eigenvalues. The projected vectors, again at unit length, stand
for the vectors of the same directions in the model's space. A query is projected too, but keeps the length that is left
of it, so its score is its cosine with such a vector: a calibration stays valid as far as the vectors are alike.

Titles (`Index.text`) keep their dimensions, and are stored as the vectors are.

Unlike the first N numbers of an embedding, this needs no model that was trained for it.
"""

import dataclasses
import logging

import numpy as np
from jaxtyping import Float32

from rice_jax.index.columns import DTYPES, from_int8, to_int8
from rice_jax.index.store import Index
from rice_jax.types import DataError

BLOCK = 4096  # vectors that are summed at a time

logger = logging.getLogger(__name__)


def make_smaller(index: Index, dimensions: int | None = None, store_as: str | None = None) -> Index:
    """Gives the vectors of an index fewer dimensions, or another type on disk.

    Args:
        index: with vectors of the model's dimensions, or of `dimensions`.
        dimensions: of the vectors; None = as they are.
        store_as: one of `DTYPES`; None = as they are.

    Raises:
        DataError: the vectors have fewer dimensions, there are fewer pictures than dimensions, or `store_as` is
            unknown.
    """
    width = index.vectors.shape[1]
    require_smaller(len(index.vectors), width, index.projection is not None, dimensions, store_as)
    if dimensions is not None and dimensions != width:
        projection = fit_projection(index.vectors, dimensions)
        kept = np.mean(np.linalg.norm(index.vectors @ projection, axis=1))
        index = dataclasses.replace(index, vectors=project(index.vectors, projection), projection=projection)
        told = "vectors of %d dimensions in place of %d; the mean cosine of both is %.4f"
        logger.info(told, dimensions, width, kept)
    index = dataclasses.replace(index, dtype=store_as or index.dtype)
    if index.dtype != "int8":
        return index
    text = index.text and dataclasses.replace(index.text, vectors=from_int8(to_int8(index.text.vectors)))
    return dataclasses.replace(index, vectors=from_int8(to_int8(index.vectors)), text=text)


def require_smaller(num: int, width: int, is_smaller: bool, dimensions: int | None, store_as: str | None) -> None:
    """Refuses what `make_smaller` cannot do, which is known before pictures are embedded.

    Args:
        num: pictures of the index, at most.
        width: dimensions of the vectors.
        is_smaller: whether they have been reduced already.
        dimensions, store_as: as in `make_smaller`.

    Raises:
        DataError: as `make_smaller`.
    """
    if store_as is not None and store_as not in DTYPES:
        raise DataError(f"store_as: found {store_as!r}, expected one of {', '.join(map(repr, DTYPES))}")
    if dimensions is None or dimensions == width:
        return
    if is_smaller:
        raise DataError(
            f"dimensions: found {dimensions}, but the vectors of the index have been reduced to {width} already; "
            "leave it out, or make another index"
        )
    if not 1 <= dimensions < width:
        raise DataError(f"dimensions: found {dimensions}, expected 1 to {width}, the model's")
    if num < dimensions:
        raise DataError(f"dimensions: found {num} pictures, expected at least as many as dimensions ({dimensions})")


def project(
    vectors: Float32[np.ndarray, "G E"], projection: Float32[np.ndarray, "E N"] | None
) -> Float32[np.ndarray, "G N"]:
    """Pictures' vectors as an index with a projection has them: unit length."""
    if projection is None:
        return vectors
    projected = vectors @ projection
    return projected / np.linalg.norm(projected, axis=1, keepdims=True)


def fit_projection(vectors: Float32[np.ndarray, "G E"], dimensions: int) -> Float32[np.ndarray, "E N"]:
    """The directions that keep most of the squared lengths of vectors; columns are of unit length."""
    moments = np.zeros((vectors.shape[1],) * 2)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK].astype(np.float64)
        moments += block.T @ block
    directions = np.linalg.eigh(moments)[1][:, : -dimensions - 1 : -1]
    largest = np.abs(directions).argmax(axis=0)
    signs = np.sign(directions[largest, np.arange(dimensions)])  # which are arbitrary otherwise
    return np.ascontiguousarray(directions * signs, np.float32)

"""Vectors as a column of a Parquet file."""

import math

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int8

DTYPES = ("float32", "int8")  # of embeddings on disk


def to_int8(vectors: Float32[np.ndarray, "G N"]) -> Int8[np.ndarray, "G N"]:
    """Vectors whose largest number is 127 or -127; their lengths are lost, and 0 stays 0."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    return np.rint(vectors * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)


def from_int8(stored: Int8[np.ndarray, "G N"]) -> Float32[np.ndarray, "G N"]:
    """The vectors of unit length that `to_int8` stands for; 0 stays 0."""
    vectors = stored.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def to_column(array: np.ndarray) -> pa.FixedSizeListArray:
    """A column with a list of numbers in each row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), math.prod(array.shape[1:]))


def from_column(column: pa.ChunkedArray, *dtypes: str) -> np.ndarray:
    """The inverse of `to_column`.

    Raises:
        ValueError: the numbers are of none of these types.
    """
    chunks = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in column.chunks]
    numbers = np.concatenate([np.empty(0, column.type.value_type.to_pandas_dtype()), *chunks])
    if numbers.dtype.name not in dtypes:
        raise ValueError(f"found numbers of type {numbers.dtype}, expected {' or '.join(dtypes)}")
    return numbers.reshape(len(column), column.type.list_size)

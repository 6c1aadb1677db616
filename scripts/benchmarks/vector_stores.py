"""Compares the search of pictures in Milvus Lite and FAISS with the built-in one.

    python scripts/benchmarks/vector_stores.py [--pictures=100000] [--width=512] [--by=milvus-flat,faiss-hnsw,…]

Each row has the seconds to build the index, the milliseconds of a search for the first ten of one query, as in live use
(both as time on the clock, and as time of all cores, which other programs hardly change), the share of the exact first
ten that it finds (recall), and the share of queries whose first ten are the same in the same order. All queries are
searched together, and some of them alone for the time. The built-in search is `rice_jax.recognition`'s product of all
vectors and a query, here in numpy.

Vectors are simulated: a picture is a random point of 48 dimensions, which a fixed map and noise spread over all
`--width` numbers (default 512), and a query is a picture with more noise. Unlike independent random vectors, which no
approximate index can search, they have neighbors, as embeddings do. Rows are printed as lines of JSON as they are
measured.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the package need not be installed

import numpy as np

from rice_jax.config import VitConfig
from rice_jax.index.export import FIRST, build_faiss, nearest, recall
from rice_jax.index.milvus_copy import keys_of, write_milvus
from rice_jax.index.store import About, Index
from rice_jax.models.rice import RiceConfig

LATENT = 48
NOISE = 0.3  # of a picture, relative to the rest
CLIP_NOISE = 0.5  # of a query, on top
METHODS = ("built-in", "milvus-flat", "milvus-hnsw", "milvus-ivf", "faiss-flat", "faiss-hnsw", "faiss-ivf")

NUM_TIMED = 10  # queries
Search = Callable[[np.ndarray], np.ndarray]  # from queries to the rows of the first ten of each


def simulate(num: int, width: int, num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of pictures, and of clips that show some of them."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(LATENT, width)).astype(np.float32) / LATENT**0.5
    vectors = np.empty((num, width), np.float32)
    for start in range(0, num, 10000):
        part = vectors[start : start + 10000]
        rng.standard_normal(dtype=np.float32, out=part)
        part *= NOISE
        part += rng.standard_normal((len(part), LATENT), np.float32) @ spread
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    shown = vectors[rng.choice(num, num_queries, replace=False)]
    queries = shown + CLIP_NOISE / width**0.5 * rng.standard_normal(shown.shape, np.float32)
    return vectors, queries / np.linalg.norm(queries, axis=1, keepdims=True)


def build(method: str, vectors: np.ndarray, directory: Path) -> Search:
    """One of `METHODS`, ready to search."""
    store, _, kind = method.partition("-")
    if store == "built":
        return lambda queries: nearest(vectors, queries)
    if store == "faiss":
        built = build_faiss(vectors, kind)
        return lambda queries: built.search(queries, FIRST)[1]
    index = as_index(vectors)
    written = write_milvus(index, str(directory / f"{kind}.db"), kind=kind)
    rows = {key: row for row, key in enumerate(keys_of(index))}
    return lambda queries: np.array([[rows[hit.key] for hit in hits] for hits in written.search(queries, FIRST)])


def as_index(vectors: np.ndarray) -> Index:
    """An index of one picture a product."""
    names, empty = [f"p{row}" for row in range(len(vectors))], [""] * len(vectors)
    about = About(RiceConfig(VitConfig(embed_dim=vectors.shape[1])), 256, 10, "simulated", "", None)
    return Index(empty, names, names, empty, empty, empty, [{}] * len(vectors), vectors, None, about)


def measure(method: str, vectors: np.ndarray, queries: np.ndarray, exact: np.ndarray) -> dict:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as directory:
        search, *building = timed(lambda: build(method, vectors, Path(directory)))
        found = search(queries)
        alone = [timed(functools.partial(search, query[None])) for query in queries[:NUM_TIMED]]
        _, times, cores = zip(*alone, strict=True)
    return {
        "pictures": len(vectors),
        "by": method,
        "build_seconds": round(building[0], 1),
        "build_core_seconds": round(building[1], 1),
        "search_ms": round(1000 * statistics.median(times), 2),
        "search_core_ms": round(1000 * statistics.median(cores), 2),
        "recall": round(recall(found, exact), 4),
        "same_first_ten": float(np.mean([np.array_equal(own, other) for own, other in zip(found, exact, strict=True)])),
    }


def timed(job: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a job returns, and its seconds on the clock and of all cores."""
    start, cores = time.perf_counter(), time.process_time()
    result = job()
    return result, time.perf_counter() - start, time.process_time() - cores


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--by", default="built-in,milvus-flat,milvus-hnsw,faiss-hnsw,faiss-ivf")
    options = parser.parse_args()
    vectors, queries = simulate(options.pictures, options.width, options.queries)
    exact = nearest(vectors, queries)
    for method in options.by.split(","):
        if method not in METHODS:
            parser.error(f"--by: found {method!r}, expected some of {', '.join(METHODS)}")
        print(json.dumps(measure(method, vectors, queries, exact)), flush=True)


if __name__ == "__main__":
    main()

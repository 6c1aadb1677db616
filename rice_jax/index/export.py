"""The vectors of an index for FAISS."""

import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from rice_jax.config import ConfigError
from rice_jax.files import replacing, write_lines
from rice_jax.index.store import TEXTS, Index
from rice_jax.types import DataError

KINDS = ("flat", "hnsw", "ivf")  # exact search, a graph of neighbors, and lists of neighbors
NEIGHBORS, BUILD_EFFORT = 16, 100  # of the graph: neighbors of a picture, and candidates for them
EFFORT = 128  # of a search: candidates in the graph, or lists that are searched
FIRST = 10  # pictures that recall counts
NUM_QUERIES = 256  # pictures that stand for clips when recall is measured

logger = logging.getLogger(__name__)


def require_faiss() -> None:
    """Refuses an export for which a package is missing.

    Raises:
        ConfigError: naming what to install.
    """
    if not importlib.util.find_spec("faiss"):
        raise ConfigError("--export=faiss: faiss is not installed; pip install 'rice-jax[faiss]'")


def export_faiss(directory: str | os.PathLike, index: Index, kind: str = "flat") -> Path:
    """Writes the vectors as a FAISS index for inner products.

    The recall of an approximate index is measured and logged.

    Args:
        directory: to write into.
        index: the index.
        kind: "flat" is exact; "hnsw" and "ivf" are approximate.

    Returns:
        The file, `index.faiss`, which takes embeddings as queries, and projects them if the index has a projection; if
        titles are searched, too (`Index.text`), a query goes on with √weight · the embedding of its speech, or 0.
        Beside it, `index.faiss.json` has the galleries, ids, products, titles, paths, and further columns of its rows,
        the model's fingerprint, and `text`, the text tower's model and fingerprint, the weight, and the size of its
        embeddings.

    Raises:
        DataError: the index is empty, and `kind` is approximate.
        ImportError: faiss is not installed.
    """
    import faiss

    if kind != "flat" and not len(index.vectors):
        raise DataError(f"{directory}: found no pictures in the index, expected at least one for --kind={kind}")
    vectors = index.rows
    built = build_faiss(vectors, kind)
    path = Path(directory) / "index.faiss"
    rows: dict[str, Any] = {TEXTS[name]: getattr(index, name) for name in TEXTS if name not in ("digests", "fields")}
    if any(index.fields):
        rows["fields"] = index.fields
    if index.text:
        rows["text"] = json.loads(index.text.about) | {"dimensions": index.text.vectors.shape[1]}
    ids = json.dumps({"fingerprint": index.about.fingerprint} | rows, ensure_ascii=False)
    with replacing(path) as partial:
        faiss.write_index(_projecting(built, index), str(partial))
    write_lines(path.with_name(path.name + ".json"), [ids])
    if kind != "flat":
        queries = some_pictures(vectors)
        found = built.search(queries, FIRST)[1]
        logger.info("%s", describe_recall(path, kind, recall(found, nearest(vectors, queries)), len(queries)))
    return path


def build_faiss(vectors: Float32[np.ndarray, "N E"], kind: str) -> Any:
    """A FAISS index of one of `KINDS`, set to search with `EFFORT`."""
    import faiss

    num, width = vectors.shape
    flat: Any = faiss.IndexFlatIP(width)
    built: Any
    if kind == "flat":
        built = flat
    elif kind == "hnsw":
        built = faiss.IndexHNSWFlat(width, NEIGHBORS, faiss.METRIC_INNER_PRODUCT)
        built.hnsw.efConstruction, built.hnsw.efSearch = BUILD_EFFORT, EFFORT
    else:
        built = faiss.IndexIVFFlat(flat, width, num_lists(num), faiss.METRIC_INNER_PRODUCT)
        built.nprobe = EFFORT
        built.train(vectors)
    built.add(vectors)
    return built


def _projecting(built: Any, index: Index) -> Any:
    """A FAISS index that projects queries before it searches; what they have of speech stays as it is."""
    import faiss

    if index.projection is None:
        return built
    (size, smaller), num = index.projection.shape, index.text.vectors.shape[1] if index.text else 0
    projection = np.zeros((size + num, smaller + num), np.float32)
    projection[:size, :smaller], projection[size:, smaller:] = index.projection, np.eye(num)
    transform: Any = faiss.LinearTransform(projection.shape[0], projection.shape[1], False)
    faiss.copy_array_to_vector(projection.T.ravel(), transform.A)
    transform.is_trained = True
    return faiss.IndexPreTransform(transform, built)


def num_lists(num: int) -> int:
    """Lists into which an index of kind "ivf" sorts its vectors: as many as an average list has members."""
    return max(round(num**0.5), 1)


def some_pictures(vectors: Float32[np.ndarray, "N E"]) -> Float32[np.ndarray, "Q E"]:
    """Pictures that stand for clips, spread evenly over an index."""
    return vectors[:: max(-(-len(vectors) // NUM_QUERIES), 1)]


def nearest(vectors: Float32[np.ndarray, "N E"], queries: Float32[np.ndarray, "Q E"]) -> np.ndarray:
    """The rows of the `FIRST` most similar vectors of each query, best first, by exact search."""
    found = []
    for query in queries:  # one at a time, as all scores of a large index take memory
        scores = vectors @ query
        rows = np.argpartition(-scores, min(FIRST, len(scores)) - 1)[:FIRST]
        found.append(rows[np.argsort(-scores[rows], kind="stable")])
    return np.stack(found)


def recall(found: Iterable[Sequence[int] | np.ndarray], exact: np.ndarray) -> float:
    """The share of the first rows by exact search that are found."""
    return float(np.mean([np.isin(own, other).mean() for own, other in zip(exact, found, strict=True)]))


def describe_recall(place: object, kind: str, share: float, num: int) -> str:
    """Recall in one line."""
    return f"{place}: {kind} finds {share:.1%} of the first {FIRST} of exact search, with {num} pictures as queries"

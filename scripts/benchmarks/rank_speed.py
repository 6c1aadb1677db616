"""The speed of ranking galleries, here and with plain numpy and faiss (`python scripts/benchmark.py rank`)."""

import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `rice_jax`, in a process of its own

import numpy as np

from rice_jax.eval import ranking

WIDTH = 512  # of an embedding
FIRST = 10  # images that are kept of each ranking
FAISS = "faiss"
COLUMNS = {
    "queries": ",",
    "images": ",",
    "galleries": ",",
    "frames": ",",
    "by": "12",
    "seconds": ".2f",
    "core_seconds": ".2f",
    "of_our_seconds": ".2f",
    "of_our_core_seconds": ".2f",
    "GiB_beside_data": ".2f",
    "GiB_in_all": ".2f",
}


class Size(NamedTuple):
    """Numbers of queries, images and galleries; queries and images are spread evenly over the galleries.

    With frames, each query is ranked by the embeddings of so many (`rice_jax.eval.scores`) instead of by one.
    """

    queries: int
    images: int
    galleries: int
    frames: int = 0


class Data(NamedTuple):
    """Random embeddings of unit length, and the ids that our ranking needs."""

    size: Size
    queries: np.ndarray  # float32 [Q, E], or [Q, T, E] of frames; query q looks in gallery q % galleries
    images: np.ndarray  # float32 [G, E]; image i is in gallery i % galleries
    truths: np.ndarray  # int64 [Q], one image a query
    query_ids: list[str]
    query_gallery_ids: list[str]
    truth_ids: list[list[str]]
    gallery_ids: list[str]
    image_ids: list[str]


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a ranking, with a value for each round."""

    seconds: list[float]
    core_seconds: list[float]
    beside: list[int]  # bytes held at once, beside the data
    peak: list[int]  # bytes held at once by the whole process


def measure(sizes: list[Size], rounds: int) -> Iterator[dict]:
    """Ranks with every installed method, in turns, in a process that does nothing else.

    Args:
        sizes: of the data.
        rounds: number of rankings by each.

    Yields:
        The rows of the table.
    """
    for size in sizes:
        command = [sys.executable, __file__, json.dumps({"size": size, "rounds": rounds})]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        costs = {name: Cost(**cost) for name, cost in json.loads(done.stdout).items()}
        for name, cost in costs.items():
            ours = costs["ours"]
            yield {
                **size._asdict(),
                "by": name,
                "seconds": statistics.median(cost.seconds),
                "core_seconds": statistics.median(cost.core_seconds),
                "of_our_seconds": _ratio(cost.seconds, ours.seconds),
                "of_our_core_seconds": _ratio(cost.core_seconds, ours.core_seconds),
                "GiB_beside_data": max(cost.beside) / 2**30,
                "GiB_in_all": max(cost.peak) / 2**30,
            }


def methods() -> dict[str, Callable[[Data], object]]:
    """The installed methods, by name."""
    installed = {"ours": rank, "numpy": rank_with_numpy, "numpy, named": name_with_numpy}
    return installed | ({FAISS: find_with_faiss} if importlib.util.find_spec("faiss") else {})


def make_data(size: Size, seed: int = 0) -> Data:
    """Makes random embeddings, with little memory beyond them."""
    rng = np.random.default_rng(seed)
    truths = np.arange(size.queries) % size.galleries
    truths += size.galleries * rng.integers(size.images // size.galleries, size=size.queries)
    galleries = [f"g{number}" for number in range(size.galleries)]
    queries = _unit_vectors(rng, size.queries * (size.frames or 1))
    return Data(
        size,
        queries.reshape(size.queries, size.frames, WIDTH) if size.frames else queries,
        _unit_vectors(rng, size.images),
        truths,
        query_ids=[f"q{number}" for number in range(size.queries)],
        query_gallery_ids=[galleries[number % size.galleries] for number in range(size.queries)],
        truth_ids=[[f"i{number}"] for number in truths.tolist()],
        gallery_ids=[galleries[number % size.galleries] for number in range(size.images)],
        image_ids=[f"i{number}" for number in range(size.images)],
    )


def rank(data: Data) -> ranking.Ranking:
    """With `rice_jax.eval.ranking`."""
    mask = np.ones(data.queries.shape[:2], bool) if data.size.frames else None
    queries = ranking.Queries(data.queries, data.query_ids, data.query_gallery_ids, data.truth_ids, mask)
    return ranking.rank(queries, ranking.GalleryImages(data.images, data.gallery_ids, data.image_ids), num_top=FIRST)


def rank_with_numpy(data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks in float32, all scores of a gallery at once, without a rule for ties.

    Returns:
        The ranks of the truths [Q], and the rows and scores of the first images [Q, FIRST].
    """
    found, first = np.zeros(data.size.queries, np.int64), np.zeros((data.size.queries, FIRST), np.int64)
    first_scores = np.zeros(first.shape, np.float32)
    for gallery in range(data.size.galleries):
        own = slice(gallery, None, data.size.galleries)
        images = data.images[own]
        if data.size.frames:
            scores = data.queries[own].reshape(-1, WIDTH) @ (images - images.mean(axis=0)).T
            scores = scores.reshape(-1, data.size.frames, len(images)).max(axis=1)
        else:
            scores = data.queries[own] @ images.T
        truth_scores = np.take_along_axis(scores, data.truths[own, None] // data.size.galleries, axis=1)
        found[own] = np.count_nonzero(scores >= truth_scores, axis=1)
        best = np.argpartition(scores, -FIRST, axis=1)[:, -FIRST:]
        own_scores = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-own_scores, axis=1)
        first[own] = gallery + data.size.galleries * np.take_along_axis(best, order, axis=1)
        first_scores[own] = np.take_along_axis(own_scores, order, axis=1)
    return found, first, first_scores


def name_with_numpy(data: Data) -> tuple[list[tuple[int]], list[tuple[tuple[str, float], ...]], list[tuple[str, ...]]]:
    """Ranks as `rank_with_numpy` does, and gives the result as ours has it, with the ids of the images."""
    found, first, scores = rank_with_numpy(data)
    top, images = [], []
    for rows, of_rows in zip(first.tolist(), scores.tolist(), strict=True):
        names = tuple(data.image_ids[row] for row in rows)
        top.append(tuple(zip(names, of_rows, strict=True)))
        images.append(names)
    return [(rank,) for rank in found.tolist()], top, images


def find_with_faiss(data: Data) -> np.ndarray:
    """Finds the first images in float32, by exact search, but not the rank of a truth that comes after them."""
    import faiss

    first = np.zeros((data.size.queries, FIRST), np.int64)
    for gallery in range(data.size.galleries):
        own = slice(gallery, None, data.size.galleries)
        index = faiss.IndexFlatIP(WIDTH)
        index.add(np.ascontiguousarray(data.images[own]))
        first[own] = gallery + data.size.galleries * index.search(np.ascontiguousarray(data.queries[own]), FIRST)[1]
    return first


def _ratio(values: list[float], others: list[float]) -> float:
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def _unit_vectors(rng: np.random.Generator, number: int) -> np.ndarray:
    vectors = np.empty((number, WIDTH), np.float32)
    for start in range(0, number, 4096):
        part = vectors[start : start + 4096]
        rng.standard_normal(dtype=np.float32, out=part)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def _costs(size: Size, rounds: int) -> dict[str, Cost]:
    data = make_data(size)
    few = make_data(Size(2 * FIRST, 2 * FIRST, 1, size.frames))
    able = {name: method for name, method in methods().items() if name != FAISS or not size.frames}
    costs = {name: Cost([], [], [], []) for name in able}
    for method in able.values():
        method(few)  # imports, and starts the threads
    for _ in range(rounds):
        for name, method in able.items():
            cost = costs[name]
            Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory so far
            held, start, core_start = _memory("VmRSS"), time.perf_counter(), time.process_time()
            method(data)
            cost.seconds.append(time.perf_counter() - start)
            cost.core_seconds.append(time.process_time() - core_start)
            cost.peak.append(_memory("VmHWM"))
            cost.beside.append(cost.peak[-1] - held)
    return costs


def _memory(kind: str) -> int:
    """Bytes that this process uses now, `VmRSS`, or its peak, `VmHWM`."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[kind].split()[0]) * 1024


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps({name: vars(cost) for name, cost in _costs(Size(*given["size"]), given["rounds"]).items()}))

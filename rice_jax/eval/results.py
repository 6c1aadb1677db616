"""Results on disk: `results.json` and `rankings.jsonl`."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

from rice_jax.eval.metrics import Result
from rice_jax.eval.ranking import Ranking
from rice_jax.files import write_lines

R = TypeVar("R")


def write_results(path: str | os.PathLike, results: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
    """Writes evaluations as JSON, whole or not at all.

    Args:
        path: a file, usually `results.json`; replaced if it exists, its directory is made if it does not.
        results: {row name: its result}, a `Result` or what else has `to_dict`.
        about: what else a reader should know (checkpoint, step, data set), ready for JSON.
    """
    document = {"about": dict(about or {}), "results": {name: result.to_dict() for name, result in results.items()}}
    write_lines(path, [json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)])


def read_results(path: str | os.PathLike, kind: type[R] = Result) -> dict[str, R]:
    """{row name: its result} of a file by `write_results`; `kind` is the class of the results."""
    document = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    return {name: kind.from_dict(values) for name, values in document["results"].items()}


def write_rankings(path: str | os.PathLike, ranking: Ranking) -> None:
    """Writes one JSON line a query: its rank, its ground truth, and the images that came first with their scores.

    Args:
        path: a file, usually `rankings.jsonl`; replaced if it exists, its directory is made if it does not.
        ranking: of the queries; a re-ranked one lists the images in their last order.
    """
    write_lines(
        path,
        (
            json.dumps(
                {
                    "query": ranking.query_ids[i],
                    "gallery": ranking.gallery_ids[i],
                    "gallery_size": int(ranking.gallery_size[i]),
                    "rank": int(ranking.rank[i]),
                    "truths": ranking.truths[i],
                    "top": ranking.top[i],
                },
                ensure_ascii=False,
                allow_nan=False,
            )
            for i in range(len(ranking.query_ids))
        ),
    )

"""Results on disk: `results.json` and `rankings.jsonl`.

`results.json` has an object `about` and a list `results`. Each result starts with the fields of its `Row`, e.g.
{"step": 120, "ranking": "embedding", "num_matched": 0, "source": "", "score": …}. All rows are of one evaluation
(`eval.place`), which `about` describes.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rice_jax.eval.metrics import Result
from rice_jax.eval.ranking import Ranking
from rice_jax.files import write_lines
from rice_jax.types import DataError

FILE = "results.json"
PIXEL_RANKINGS = "rankings_pixels.jsonl"  # like `rankings.jsonl`, of the row `PIXELS`
EMBEDDING, FUSED, WITHOUT_TEXT = "embedding", "fused", "without_text"
MATCH, WEIGHTED_MATCH = "match", "weighted_match"

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Row:
    """The key of a row of `results.json`: what was evaluated.

    Attributes:
        step: training steps before the evaluation; None = a baseline without a model.
        ranking: for retrieval "embedding", "fused" (by picture and text), "match" (re-ranked by the decoder),
            "weighted_match" (re-ranked by the sum of the score and the decoder's), "without_text" (by the embeddings of
            a model that reads texts, without any), or "pixels" (the baseline of nearest raw pixels); for detection
            "detector" or "mean_box" (its baseline).
        num_matched: with "match" and "weighted_match", the number of first products of each query that were re-ordered.
        source: the weights, if they do not come from the run; "" = they do.
    """

    step: int | None
    ranking: str = EMBEDDING
    num_matched: int = 0
    source: str = ""

    @property
    def label(self) -> str:
        """The name of the row in printed tables."""
        if self.step is None:
            return {"pixels": "nearest raw pixels", "mean_box": "mean training box"}[self.ranking]
        by = "by both" if self.ranking == WEIGHTED_MATCH else "matched"
        matched = f", first {self.num_matched} {by}" if self.num_matched else ""
        texts = {WITHOUT_TEXT: ", without texts", FUSED: ", with texts"}.get(self.ranking, "")
        return (self.source or (f"after {self.step:,} steps" if self.step else "before training")) + matched + texts


PIXELS = Row(None, "pixels")
MEAN_BOX = Row(None, "mean_box")


def rankings_file(ranking: str) -> str:
    """The file, like `rankings.jsonl`, of a ranking that is not the newest one of its evaluation."""
    return f"rankings_{ranking}.jsonl"


def ranked_row(about: Mapping[str, Any]) -> Row:
    """The row that `rankings.jsonl` belongs to, from the `about` of `results.json`.

    Raises:
        KeyError: the results are not of retrieval.
    """
    found = about["rankings"]
    return Row(**found) if isinstance(found, dict) else _read_name(found, is_detector=False)


def labeled(results: Mapping[Row, R]) -> dict[str, R]:
    """{label of a row: its result}, for tables."""
    return {row.label: result for row, result in results.items()}


def write_results(path: str | os.PathLike, results: Mapping[Row, Any], about: Mapping[str, Any] | None = None) -> None:
    """Writes evaluations as JSON, whole or not at all.

    Args:
        path: a file, usually `results.json`; replaced if it exists, its directory is created if it does not.
        results: {row: its result}, a dict or an object with `to_dict`.
        about: more about the evaluation (step, data set), ready for JSON.
    """
    rows = [
        dataclasses.asdict(row) | (result if isinstance(result, dict) else result.to_dict())
        for row, result in results.items()
    ]
    document = {"about": dict(about or {}), "results": rows}
    write_lines(path, [json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)])


def read_results(path: str | os.PathLike, kind: type[Any] = Result) -> dict[Row, Any]:
    """Reads a file written by `write_results`.

    Args:
        path: of the file, also one of version 0.1.
        kind: class of the results, with `from_dict`, or `dict`.

    Returns:
        {row: its result}, in the order of the file.

    Raises:
        DataError: the file is damaged.
    """
    found = _read_document(path)["results"]
    pairs = _read_names(found) if isinstance(found, dict) else [_split(values) for values in found]
    return {row: values if kind is dict else kind.from_dict(values) for row, values in pairs}


def read_about(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what a file of `write_results` says about its evaluation.

    Raises:
        DataError: the file is damaged.
    """
    return _read_document(path)["about"]


def read_rankings(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a file of `write_rankings`.

    Raises:
        DataError: a line is damaged.
    """
    rankings = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            rankings.append(json.loads(line))
            rankings[-1]["rank"], rankings[-1]["top"]  # the last fields
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: is damaged, expected the JSON of a query; delete the file and evaluate the run "
                "again (rice eval)"
            ) from error
    return rankings


def write_rankings(path: str | os.PathLike, ranking: Ranking) -> None:
    """Writes one JSON line per query: the ranks of its true products, these, and the best products with their scores.

    `images` names the image of each of the best products that is most similar to the query.

    Args:
        path: a file, usually `rankings.jsonl`; replaced if it exists, its directory is created if it does not.
        ranking: of the queries.
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
                    "truth_ranks": ranking.truth_ranks[i],
                    "truths": ranking.truths[i],
                    "images": ranking.images[i],
                    "top": ranking.top[i],
                },
                ensure_ascii=False,
                allow_nan=False,
            )
            for i in range(len(ranking.query_ids))
        ),
    )


def _read_document(path: str | os.PathLike) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        document["about"], document["results"]
    except (ValueError, KeyError, TypeError) as error:
        reason = "it is empty" if not Path(path).stat().st_size else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: is damaged, expected the results of a run ({reason}); delete the file and evaluate the run again "
            "(rice eval)"
        ) from error
    return document


def _split(values: Mapping[str, Any]) -> tuple[Row, dict[str, Any]]:
    names = [field.name for field in dataclasses.fields(Row) if field.name in values]  # version 0.2 had no `source`
    rest = {name: value for name, value in values.items() if name not in names}
    return Row(**{name: values[name] for name in names}), rest


def _read_names(results: Mapping[str, dict]) -> list[tuple[Row, dict]]:
    """Rows as versions before 0.2 wrote them, keyed by their label."""
    is_detector = not any("score" in values or "retrieval" in values for values in results.values())
    return [(_read_name(name, is_detector), values) for name, values in results.items()]


def _read_name(name: str, is_detector: bool) -> Row:
    step = re.match(r"after ([\d,]+) steps|before training", name)
    if step is None:
        return PIXELS if name == PIXELS.label else MEAN_BOX
    number = int(step[1].replace(",", "")) if step[1] else 0
    if matched := re.search(r", first (\d+) matched", name):
        return Row(number, MATCH, int(matched[1]))
    return Row(number, "detector" if is_detector else "embedding")

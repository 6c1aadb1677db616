"""Tables of results in plain text."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from rice_jax.eval.coco import METRICS
from rice_jax.eval.domains import DomainResult
from rice_jax.eval.metrics import Result, Score
from rice_jax.types import DataError, counted

_MAX_NAME = 36  # columns of a terminal, so that the widest table has 100


def table(results: Mapping[str, Result]) -> str:
    """Tabulates several evaluations of the same queries, below chance.

    Args:
        results: {row name: its result}, at least one, in the order of the rows.

    Returns:
        Lines of at most 100 columns, without a newline at the end: a block with rank-k, and one with mAP, MRR, and nDCG
        (`order_table`). If durations were measured, they are in the last column of the first, in seconds.

    Raises:
        DataError: naming the row, if its queries or galleries are not those of the first row.
    """
    first_name, first = next(iter(results.items()))
    for name, result in results.items():
        if (result.score.num_queries, result.galleries) != (first.score.num_queries, first.galleries):
            raise DataError(
                f"Row {name!r} is of {_about(result)}, row {first_name!r} of {_about(first)}: expected rows of the "
                "same queries and galleries, which alone can be compared."
            )
    cutoffs = list(first.score.rank)
    header = ["", *cutoffs, f"{cutoffs[0]} / chance"]
    rows = [["chance", *_percents(first.score.chance)]]
    rows += [
        [name, *_percents(result.score.rank), _times(result.score, cutoffs[0]), *_seconds(result)]
        for name, result in results.items()
    ]
    if any(map(_seconds, results.values())):
        header.append("seconds")
    of_order = order_table(results)
    return "\n".join([_about(first), "", *align(header, rows), *(["", of_order] if of_order else [])])


def order_table(results: Mapping[str, Result], *, with_chance: bool = True) -> str:
    """Tabulates mAP, MRR, and nDCG.

    Args:
        results: {row name: its result}, in the order of the rows; cells of those of version 0.2 stay empty.
        with_chance: whether the first row is chance, which is that of the first result.

    Returns:
        Lines of at most 100 columns, without a newline at the end; "" if nothing was measured.
    """
    orders = {name: result.score.order for name, result in results.items()}
    measured = [order for order in orders.values() if order]
    if not measured:
        return ""
    rows = [["chance", *(_percent(mean.chance) for mean in measured[0].values())]] if with_chance else []
    rows += [[name, *(_percent(mean.mean) for mean in order.values())] for name, order in orders.items()]
    return "\n".join(align(["", *measured[0]], rows))


def subset_table(result: Result) -> str:
    """Tabulates the subsets of one evaluation, with a block for each label.

    Args:
        result: with `subsets` in the order of blocks and rows.

    Returns:
        Lines of at most 100 columns, without a newline at the end; "" if there are no subsets.
    """
    cutoffs = list(result.score.rank)
    rows: list[list[str]] = []
    for label, scores in result.subsets.items():
        rows.append([label])
        rows += [
            [f"  {value}", str(score.num_queries), *_percents(score.rank), _times(score, cutoffs[0])]
            for value, score in scores.items()
        ]
        if result.num_unknown[label]:
            rows.append(["  (unknown, in none)", str(result.num_unknown[label])])
    return "\n".join(align(["", "queries", *cutoffs, f"{cutoffs[0]} / chance"], rows)) if rows else ""


def gallery_table(results: Mapping[str, Result]) -> str:
    """Tabulates evaluations that each have their own queries and galleries.

    Args:
        results: {row name: its result}, at least one, in the order of the rows, all with the same cutoffs.

    Returns:
        Lines of at most 100 columns, without a newline at the end. If there are such queries, columns count those that
        were not ranked (misses) and those without a truth (left out).
    """
    cutoffs = list(next(iter(results.values())).score.rank)
    counts = {
        "not ranked": {name: result.num_missing for name, result in results.items()},
        "without truth": {name: result.num_without_truth for name, result in results.items()},
    }
    shown = [column for column, count in counts.items() if any(count.values())]
    rows = [
        [
            name,
            f"{result.score.num_queries:,}",
            f"{result.galleries.max_size:,}",
            *_percents(result.score.rank),
            _times(result.score, cutoffs[0]),
            *(f"{counts[column][name]:,}" for column in shown),
        ]
        for name, result in results.items()
    ]
    return "\n".join(align(["", "queries", "gallery", *cutoffs, f"{cutoffs[0]} / chance", *shown], rows))


def domain_tables(result: DomainResult) -> str:
    """Tabulates one evaluation between domains, in lines of at most 100 columns, without a newline at the end."""
    blocks = [
        "Retrieval: items of one domain among all items of another",
        gallery_table(result.retrieval),
        order_table(result.retrieval, with_chance=False),
        "One-shot classification: among one item of each product",
        gallery_table(result.one_shot),
    ]
    return "\n\n".join(filter(None, blocks))


def detection_table(results: Mapping[str, Mapping[str, Any]], num_clips: int, num_skipped: int) -> str:
    """Tabulates evaluations of a detector on the same frames.

    Args:
        results: {row name: the metrics of `coco.evaluate`, with `num_frames` and `num_boxes`}, at least one.
        num_clips: number of clips with these frames.
        num_skipped: number of clips that the data set's builder left out.

    Returns:
        Lines of at most 120 columns, without a newline at the end.
    """
    first = next(iter(results.values()))
    frames, clips = counted(first["num_frames"], "frame"), counted(num_clips, "clip")
    title = f"{frames} of {clips}, {first['num_boxes']:,} {'box' if first['num_boxes'] == 1 else 'boxes'}"
    if num_skipped:
        were = "was" if num_skipped == 1 else "were"
        title += f"; {counted(num_skipped, 'clip')} {were} left out when the data set was built"
    rows = [
        [name, *("" if scores[m] is None else _percent(scores[m]) for m in METRICS)] for name, scores in results.items()
    ]
    return "\n".join([title, "", *align(["", *METRICS], rows)])


def _about(result: Result) -> str:
    galleries = result.galleries
    sizes = (
        counted(galleries.min_size, "product")
        if galleries.min_size == galleries.max_size
        else f"{galleries.min_size}-{galleries.max_size} products (mean {galleries.mean_size:.1f})"
    )
    missing = f", {result.num_missing:,} not ranked: misses" if result.num_missing else ""
    return f"{counted(result.score.num_queries, 'query')}{missing}; {counted(galleries.num, 'gallery')} of {sizes}"


def _percents(shares: Mapping[str, float]) -> list[str]:
    return [_percent(share) for share in shares.values()]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _times(score: Score, cutoff: str) -> str:
    return f"{score.rank[cutoff] / score.chance[cutoff]:.1f} x" if score.chance[cutoff] else ""


def _seconds(result: Result) -> list[str]:
    return [] if result.seconds is None else [f"{result.seconds:,.1f}"]


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns a table: the first column to the left, others to the right, with a rule below the header.

    Args:
        header: of the columns.
        rows: cells of each row, at most as many as columns; long names in the first column are shortened.

    Returns:
        The lines of the table.
    """
    rows = [[_shorten(row[0]), *row[1:], *[""] * (len(header) - len(row))] for row in rows]
    widths = [max(_width(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell + " " * (width - _width(cell)) if i == 0 else " " * (width - _width(cell)) + cell
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    return [lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def _shorten(name: str) -> str:
    if _width(name) <= _MAX_NAME:
        return name
    while _width(name) >= _MAX_NAME:
        name = name[:-1]
    return name + "…"


def _width(text: str) -> int:
    """Width on a terminal, where Chinese characters (as in LPR4M's categories) take two columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)

"""Sorts more lines than fit into memory, by merging sorted runs on disk."""

import heapq
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

RUN_BYTES = 16 * 2**20  # the size of the lines that are in memory at a time
MAX_OPEN_RUNS = 128


def sort_lines(lines: Iterable[bytes], directory: Path) -> Iterator[bytes]:
    """Yields lines in the order of their bytes, in memory that does not grow with their number.

    Args:
        lines: lines that end in "\\n" and contain no other.
        directory: holds a temporary folder with up to twice the size of the lines.
    """
    with tempfile.TemporaryDirectory(dir=directory, prefix="sorting_") as scratch:
        names = (Path(scratch) / f"{number}.run" for number in itertools.count())
        runs = [_write(next(names), sorted(run)) for run in _runs(lines)]
        while len(runs) > MAX_OPEN_RUNS:
            first, runs = runs[:MAX_OPEN_RUNS], runs[MAX_OPEN_RUNS:]
            runs.append(_write(next(names), _merge(first)))
            for run in first:
                run.unlink()
        yield from _merge(runs)


def _runs(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    run, size = [], 0
    for line in lines:
        run.append(line)
        size += sys.getsizeof(line)
        if size >= RUN_BYTES:
            yield run
            run, size = [], 0
    if run:
        yield run


def _merge(runs: Iterable[Path]) -> Iterator[bytes]:
    return heapq.merge(*map(_read, runs))


def _read(run: Path) -> Iterator[bytes]:
    with run.open("rb") as file:
        yield from file


def _write(path: Path, lines: Iterable[bytes]) -> Path:
    with path.open("wb") as file:
        file.writelines(lines)
    return path

"""Collects the faults of raw data before a build: each fault once, and counts beside the published ones."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from .errors import FormatError, RawDataError, RepeatedId
from .skip_report import SkipReport

T = TypeVar("T")


class Findings(SkipReport):
    """A report that keeps each fault once, however often a reader reports it, and that accepts errors too.

    Its memory grows with the number of faults, not with the data set. `by_kind` returns the faults; `lines` stays
    empty. The kinds are those of the builders ("clips", "pictures", "boxes", ...) and "files", "rows", "ids", "shards",
    "urls" and "ground truth".

    Attributes:
        scratch: a temporary directory for data that exceeds memory.
        published: the size of the complete data set, by kind.
    """

    def __init__(self, scratch: Path):
        super().__init__()
        self.scratch = scratch
        self.published: dict[str, int] = {}
        self._faults: dict[tuple[str, str], dict[tuple[str, str], dict[str, str]]] = {}  # (kind, id) -> (file, reason)

    def skipped(self, kind: str, name: str, file: Path | str, reason: str) -> None:
        """Lists one fault unless it is already listed; takes the arguments of `SkipReport.skipped`."""
        line = {"kind": kind, "id": name, "file": str(file), "reason": reason}
        self._faults.setdefault((kind, name), {})[str(file), reason] = line

    def error(self, kind: str, error: RawDataError) -> None:
        """Lists an error that would end a build.

        Args:
            kind: the kind to list it under; a repeated id is listed under "ids" instead.
            error: the error.
        """
        where = error.where if isinstance(error, FormatError) else ""
        name = where.rpartition("/")[2]
        self.skipped("ids" if isinstance(error, RepeatedId) else kind, name, where, str(error))

    def error_handler(self, kind: str) -> Callable[[RawDataError], None]:
        """Returns an error handler for readers that lists each error under a kind."""
        return functools.partial(self.error, kind)

    def forget(self, kind: str, name: str) -> None:
        """Removes the faults of one item, which follow from another fault."""
        self._faults.pop((kind, name), None)

    def ids(self, kind: str) -> set[str]:
        """Returns the ids of all faulty items of a kind."""
        return {name for its_kind, name in self._faults if its_kind == kind}

    def by_kind(self) -> dict[str, list[dict[str, str]]]:
        """Returns all faults, by kind."""
        faults: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
        for (kind, _), lines in self._faults.items():
            faults[kind] += lines.values()
        return dict(faults)

    def counted(self, kind: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
        """Yields the items, counting them and showing a progress bar.

        Args:
            kind: the kind to count them under.
            items: any items.
            total: their number, if known.
        """
        for item in tqdm(items, total=total, desc=kind, disable=None):
            self.tried(kind)
            yield item

    def check_frames(self, kind: str, name: str, where: str, usable: int, min_frames: int) -> None:
        """Lists a clip if it has fewer than `min_frames` usable frames."""
        if usable < min_frames:
            self.skipped(kind, name, where, f"{usable} usable frames, fewer than {min_frames}")

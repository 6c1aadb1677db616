"""What is wrong with raw data, found before a build: each fault once, and counts beside the published ones."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from data.errors import DataError, FormatError, RepeatedId
from data.skip_report import SkipReport

T = TypeVar("T")


class Findings(SkipReport):
    """A report that keeps each fault once, however often a builder's reader meets it, and takes errors as well.

    Its memory grows with the faults, not with the data set; `lines` stays empty, see `by_kind`. Kinds are
    those of the builders ("clips", "pictures", "boxes", ...), "files", "rows", "ids", "shards", "urls" and "ground
    truth".

    Attributes:
        scratch: a directory for what is too much for memory; gone at the end.
        published: how many of a kind there are in the whole data set.
    """

    def __init__(self, scratch: Path):
        super().__init__()
        self.scratch = scratch
        self.published: dict[str, int] = {}
        self._faults: dict[tuple[str, str], dict[tuple[str, str], dict[str, str]]] = {}  # (kind, id) -> (file, reason)

    def skipped(self, kind: str, name: str, file: Path | str, reason: str) -> None:
        """Lists one fault, unless it stands there already; as `SkipReport.skipped`."""
        line = {"kind": kind, "id": name, "file": str(file), "reason": reason}
        self._faults.setdefault((kind, name), {})[str(file), reason] = line

    def error(self, kind: str, error: DataError) -> None:
        """Lists an error: what would end a build."""
        where = error.where if isinstance(error, FormatError) else ""
        name = where.rpartition("/")[2]
        self.skipped("ids" if isinstance(error, RepeatedId) else kind, name, where, str(error))

    def errors(self, kind: str) -> Callable[[DataError], None]:
        """Returns what a reader is to do with errors: list them under that kind."""
        return functools.partial(self.error, kind)

    def forget(self, kind: str, name: str) -> None:
        """Takes the faults of one thing away: they follow from another one."""
        self._faults.pop((kind, name), None)

    def ids(self, kind: str) -> set[str]:
        """Returns the ids of all faulty things of a kind."""
        return {name for its_kind, name in self._faults if its_kind == kind}

    def by_kind(self) -> dict[str, list[dict[str, str]]]:
        """Returns all faults, by kind."""
        faults = collections.defaultdict(list)
        for (kind, _), lines in self._faults.items():
            faults[kind] += lines.values()
        return dict(faults)

    def looked_at(self, kind: str, things: Iterable[T], total: int | None = None) -> Iterator[T]:
        """Yields the things, counted, under a progress bar."""
        for thing in tqdm(things, total=total, desc=kind, disable=None):
            self.tried(kind)
            yield thing

    def check_frames(self, kind: str, name: str, where: str, usable: int, min_frames: int) -> None:
        """Lists a clip if it has too few frames that can be used."""
        if usable < min_frames:
            self.skipped(kind, name, where, f"{usable} usable frames, fewer than {min_frames}")

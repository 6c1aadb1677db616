"""Reports what a build skips: a file with one JSON line per item, counts by reason, and the limit."""

import collections
import json
from pathlib import Path
from typing import Any, Self

from .errors import RawDataError


class TooMuchSkipped(RawDataError):
    """More items were skipped than the limit allows; nothing was built."""


class SkipReport:
    """What one shard read and what it skipped.

    Attributes:
        counts: how many items of each kind were read, whether used or skipped.
        lines: the skipped items: dicts of kind, id, file and reason.
    """

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.lines: list[dict[str, str]] = []

    def tried(self, kind: str) -> None:
        """Counts one item that was read, whether used or skipped."""
        self.counts[kind] += 1

    def skipped(self, kind: str, name: str, file: Path | str, reason: str) -> None:
        """Lists one skipped item.

        Args:
            kind: the item's kind in the plural ("clips"), as given to `tried`.
            name: the item's id.
            file: the file or `file:line` that holds the item.
            reason: a few words, equal for equal reasons.
        """
        self.lines.append({"kind": kind, "id": name, "file": str(file), "reason": reason})


class SkipSummary:
    """The joined reports of all shards: a context manager that counts items and lists the skipped ones in a file."""

    def __init__(self, path: Path):
        """Makes a summary.

        Args:
            path: the file to write; an existing one is replaced.
        """
        self.path = path
        self._tried: collections.Counter[str] = collections.Counter()
        self._skipped: collections.Counter[tuple[str, str]] = collections.Counter()

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace")  # in JSON a file name's bytes
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, counts: dict[str, int], lines: list[dict[str, str]]) -> None:
        """Adds the report of one shard."""
        self._tried.update(counts)
        for line in lines:
            self._skipped[line["kind"], line["reason"]] += 1
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()  # so that it can be read during the build

    def num_tried(self, kind: str) -> int:
        """Returns how many items of a kind were read."""
        return self._tried[kind]

    def num_skipped(self, kind: str) -> int:
        """Returns how many items of a kind were skipped."""
        return sum(count for (its_kind, _), count in self._skipped.items() if its_kind == kind)

    def reasons(self, kind: str) -> dict[str, str]:
        """Returns {id: reason} for the skipped items of a kind; an id that was skipped twice has its first reason."""
        reasons: dict[str, str] = {}
        with self.path.open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                if line["kind"] == kind:
                    reasons.setdefault(line["id"], line["reason"])
        return reasons

    def counts(self) -> dict[str, dict[str, Any]]:
        """Returns for each kind how many items were `read`, and how many were `skipped` for each reason."""
        return {
            kind: {
                "read": tried,
                "skipped": {reason: n for (its, reason), n in self._skipped.most_common() if its == kind},
            }
            for kind, tried in self._tried.items()
        }

    def text(self) -> str:
        """Returns the counts by kind and reason as one line of text."""
        counts = []
        for kind, found in self.counts().items():
            reasons = ", ".join(f"{n} {reason}" for reason, n in found["skipped"].items())
            skipped = f"{self.num_skipped(kind)} of {found['read']} {kind} skipped"
            counts.append(skipped + (f" ({reasons})" if reasons else ""))
        return "; ".join(counts)

    def fail_above(self, max_percent: float) -> None:
        """Checks how much was skipped.

        Args:
            max_percent: the limit for each kind, 0..100.

        Raises:
            TooMuchSkipped: more of some kind was skipped.
        """
        for kind, tried in self._tried.items():
            if self.num_skipped(kind) * 100 > max_percent * tried:
                raise TooMuchSkipped(
                    f"{self.path}: found {self.text()}, expected at most {max_percent:g} % of each; fix or "
                    "download again what this file lists and build with --overwrite, or raise --max_skipped_percent"
                )

"""What a build left out: one JSON line each in a file beside the data set, counts for the summary, and the limit."""

import collections
import json
from pathlib import Path

from data.errors import DataError


class TooMuchSkipped(DataError):
    """More was skipped than the user allows; nothing was built."""


class SkipReport:
    """What one shard looked at and left out.

    Attributes:
        counts: how many of each kind were looked at, be they used or skipped.
        lines: what was left out: dicts of kind, id, file and reason.
    """

    def __init__(self):
        self.counts: collections.Counter[str] = collections.Counter()
        self.lines: list[dict[str, str]] = []

    def tried(self, kind: str) -> None:
        """Counts one thing that was looked at, be it used or skipped."""
        self.counts[kind] += 1

    def skipped(self, kind: str, name: str, file: Path | str, reason: str) -> None:
        """Counts and lists one thing that was left out.

        Args:
            kind: what it is, in the plural ("clips"), as given to `tried`.
            name: its id.
            file: the file or `file:line` to look at.
            reason: one of a few words, the same for the same reason.
        """
        self.lines.append({"kind": kind, "id": name, "file": str(file), "reason": reason})


class SkipSummary:
    """The reports of all shards: counted here, listed in a file; a context manager that owns the file."""

    def __init__(self, path: Path):
        """Makes a summary.

        Args:
            path: the file to write, replaced if it is there.
        """
        self.path = path
        self._tried: collections.Counter[str] = collections.Counter()
        self._skipped: collections.Counter[tuple[str, str]] = collections.Counter()

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_):
        self._file.close()

    def add(self, counts: dict[str, int], lines: list[dict[str, str]]) -> None:
        """Adds the report of one shard."""
        self._tried.update(counts)
        for line in lines:
            self._skipped[line["kind"], line["reason"]] += 1
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()  # to be read while the build goes on

    def num_tried(self, kind: str) -> int:
        """Returns how many of a kind were looked at."""
        return self._tried[kind]

    def num_skipped(self, kind: str) -> int:
        """Returns how many of a kind were left out."""
        return sum(count for (its_kind, _), count in self._skipped.items() if its_kind == kind)

    def reasons(self, kind: str) -> dict[str, str]:
        """Returns {id: reason} of all of a kind that were left out; the first reason of an id left out twice."""
        reasons: dict[str, str] = {}
        with self.path.open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                if line["kind"] == kind:
                    reasons.setdefault(line["id"], line["reason"])
        return reasons

    def text(self) -> str:
        """Returns counts by kind and reason, in words."""
        counts = []
        for kind, tried in self._tried.items():
            reasons = ", ".join(f"{n} {reason}" for (its, reason), n in self._skipped.most_common() if its == kind)
            counts.append(f"{self.num_skipped(kind)} of {tried} {kind} skipped" + (f" ({reasons})" if reasons else ""))
        return "; ".join(counts)

    def fail_above(self, max_percent: float) -> None:
        """Raises TooMuchSkipped if of any kind more than `max_percent` percent was skipped."""
        for kind, tried in self._tried.items():
            if self.num_skipped(kind) * 100 > max_percent * tried:
                raise TooMuchSkipped(
                    f"{self.path}: found {self.text()}, expected at most {max_percent:g} % of each; mend or download "
                    "again what the report lists and build with --overwrite, or allow more with --max_skipped_percent"
                )

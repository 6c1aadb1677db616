"""ROPE's text files: what they are called and what a line holds."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from data.errors import DataError, FormatError, fail
from data.text import decode_line, read_object

NAMES = "names.json"
SPLITS = {"train": "training", "test": "test"}  # what their files' names begin with
_ID = re.compile(r"[^,/\s\x00-\x1f]+")
_PICTURE = re.compile(r"[^,\s\x00-\x1f]+")
_FIELDS = {"number": re.compile(r"[0-9]{1,18}"), "picture": _PICTURE, "text": re.compile(r".*", re.DOTALL)}


@dataclasses.dataclass(frozen=True)
class Domain:
    """Pages, short videos or live clips: the names of its three files less split and extension, and their columns."""

    name: str
    pairs: str
    texts: str
    pictures: str
    has_numbers: bool  # whether a line of `pictures` has a number to sort by

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """{file: its columns}."""
        numbers = ("number",) if self.has_numbers else ()
        return {
            self.pairs: ("product", "item"),
            self.texts: ("item", "text"),
            self.pictures: ("item", *numbers, "picture"),
        }


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("pages", "product_pages_pair", "page_titles", "page_images", has_numbers=False),
        Domain("videos", "product_videos_pair", "video_asrs", "video_frames", has_numbers=True),
        Domain("lives", "product_lives_pair", "live_asrs", "live_clips", has_numbers=True),
    )
}


def read_rows(
    path: Path, columns: tuple[str, ...], on_error: Callable[[FormatError], None] = fail
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (number of the line, {column: field without the blanks around it}).

    Only the first commas part columns, so that a text may hold some.

    Args:
        path: one of the files.
        columns: "product", "item", "number", "picture" or, as the last one, "text".
        on_error: is told of a line that is not so, and raises it; if it does not, the line is left out.
    """
    with path.open("rb") as file:  # bytes: nothing but "\n" ends a line, whatever separators a text holds
        for number, line in enumerate(file, start=1):
            try:
                yield number, _parse(line, f"{path}:{number}", columns)
            except FormatError as error:
                on_error(error)


def files_of(raw_dir: Path, split: str, domain: Domain) -> dict[str, Path]:
    """Finds a domain's three files.

    Args:
        raw_dir: the raw files; `names.json` there may say which of them are called otherwise.
        split: "train" or "test".
        domain: one of DOMAINS.

    Returns:
        {name in `Domain.kinds`: file}.

    Raises:
        FormatError: `names.json` is not {published name: name below `raw_dir`}.
        DataError: a file is not there.
    """
    names = _names(raw_dir)
    files = {}
    for kind in domain.kinds:
        name = f"{SPLITS[split]}_{kind}.txt"
        files[kind] = raw_dir / names.get(name, name)
        if not files[kind].is_file():
            raise DataError(
                f"{raw_dir}: found no {names.get(name, name)}, expected it here, or its name in {NAMES}; "
                "data/rope/README.md tells where it comes from, and --configs leaves its set out, "
                "--option splits=train all of testing"
            )
    return files


def _parse(line: bytes, where: str, columns: tuple[str, ...]) -> dict[str, str]:
    text = decode_line(line, where)
    fields = [field.strip(" ") for field in text.split(",", len(columns) - 1)]
    row = dict(zip(columns, fields, strict=False))
    if len(row) < len(columns) or not all(_FIELDS.get(name, _ID).fullmatch(row[name]) for name in columns):
        expected = f"{len(columns)} columns: {', '.join(columns)}"
        raise FormatError(where, repr(text), expected, "mend the line or take it away")
    return row


def _names(raw_dir: Path) -> dict[str, str]:
    path = raw_dir / NAMES
    if not path.exists():
        return {}
    names = read_object(path)
    known = [
        f"{prefix}_{kind}.txt" for prefix in SPLITS.values() for domain in DOMAINS.values() for kind in domain.kinds
    ]
    for name, actual in names.items():
        if name not in known:
            raise FormatError(f"{path}: {name}", "an unknown name", f"one of {', '.join(known)}", "mend the file")
        if not isinstance(actual, str) or not actual or ".." in Path(actual).parts:
            raise FormatError(f"{path}: {name}", json.dumps(actual), "a file in the raw directory", "mend the file")
    return names

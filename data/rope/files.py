"""The names and columns of ROPE's text files, and reading their lines."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import FormatError, RawDataError, fail
from ..text import decode_line, read_object

README = str(Path(__file__).with_name("README.md"))  # named by errors
NAMES = "names.json"
SPLITS = {"train": "training", "test": "test"}  # split: prefix of its files' names
_ID = re.compile(r"[^,/\s\x00-\x1f]+")
_PICTURE = re.compile(r"[^,\s\x00-\x1f]+")
_FIELDS = {"number": re.compile(r"[0-9]{1,18}"), "picture": _PICTURE, "text": re.compile(r".*", re.DOTALL)}


@dataclasses.dataclass(frozen=True)
class Domain:
    """Pages, short videos or live clips.

    Attributes:
        name: "pages", "videos" or "lives".
        pairs: the name of the file of pairs, without split and extension.
        texts: likewise, of titles or speech.
        pictures: likewise, of pictures.
        has_numbers: whether a line of `pictures` has a number to sort by.
    """

    name: str
    pairs: str
    texts: str
    pictures: str
    has_numbers: bool

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """Returns {file name without split and extension: its columns}."""
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
    """Yields the rows of a file.

    Only the first commas separate columns, because a text may contain more.

    Args:
        path: one of the files.
        columns: "product", "item", "number", "picture" or, only at the end, "text".
        on_error: called with the error of a line that violates this format; the line is left out if it returns.

    Yields:
        (line number, {column: field without surrounding spaces}).

    Raises:
        FormatError: `on_error` raised it.

    Source: data/rope/README.md, "Raw files".
    """
    with path.open("rb") as file:  # as bytes: only "\n" ends a line, even if a text holds other separators
        for number, line in enumerate(file, start=1):
            try:
                yield number, _parse(line, f"{path}:{number}", columns)
            except FormatError as error:
                on_error(error)


def files_of(raw_dir: Path, split: str, domain: Domain) -> dict[str, Path]:
    """Finds a domain's three files.

    Args:
        raw_dir: the raw files; `names.json` among them may give other names.
        split: "train" or "test".
        domain: one of DOMAINS.

    Returns:
        {name in `Domain.kinds`: file}.

    Raises:
        FormatError: `names.json` is not {published name: path relative to `raw_dir`}.
        RawDataError: a file is missing.
    """
    names = _names(raw_dir)
    files = {}
    for kind in domain.kinds:
        name = f"{SPLITS[split]}_{kind}.txt"
        files[kind] = raw_dir / names.get(name, name)
        if not files[kind].is_file():
            raise RawDataError(
                f"{raw_dir}: found no {names.get(name, name)}, expected it here, or its name in {NAMES}; "
                f"{README} says where it comes from, --configs can leave out the set that needs it, and "
                "--option splits=train leaves out all test sets"
            )
    return files


def _parse(line: bytes, where: str, columns: tuple[str, ...]) -> dict[str, str]:
    text = decode_line(line, where)
    fields = [field.strip(" ") for field in text.split(",", len(columns) - 1)]
    row = dict(zip(columns, fields, strict=False))
    if len(row) < len(columns) or not all(_FIELDS.get(name, _ID).fullmatch(row[name]) for name in columns):
        expected = f"{len(columns)} columns: {', '.join(columns)}"
        raise FormatError(where, repr(text), expected, "fix the line or remove it")
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
            raise FormatError(f"{path}: {name}", "an unknown name", f"one of {', '.join(known)}", "fix the file")
        if not isinstance(actual, str) or not actual or ".." in Path(actual).parts:
            raise FormatError(f"{path}: {name}", json.dumps(actual), "a file in the raw directory", "fix the file")
    return names

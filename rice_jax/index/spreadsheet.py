"""The rows of a CSV as spreadsheets and shops write it, with the columns that have a meaning told from all others."""

import csv
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rice_jax.types import DataError, normal_form

# {column: other names for it}. The first column that a name fits gets it, unless one has the column's own name: a SKU
# is the product, or, beside a column `product`, the id.
COLUMNS = {
    "product": ("product_id", "sku", "item_id", "article_id"),
    "id": ("sku", "image_id", "photo_id", "picture_id"),
    "path": (
        "image", "photo", "picture", "img", "file", "filename", "file_name",
        "image_path", "photo_path", "picture_path", "image_file", "photo_file", "picture_file",
    ),
    "gallery": ("gallery_id", "live", "live_id", "livestream"),
    "title": ("name", "product_name", "product_title"),
}  # fmt: skip
DELIMITERS = ",;\t"
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """A row that is not empty; cells without the spaces around them."""

    cells: dict[str, str]  # of the file's columns that are among `COLUMNS`; names in `types.normal_form`
    fields: dict[str, str]  # of all others, by the names in the file
    line: int  # where the row ends


def read_rows(path: Path, *, with_paths: bool = True) -> Iterator[Row]:
    """Reads a CSV that lists pictures or products.

    Args:
        path: of a file in UTF-8 or, with a byte order mark, UTF-16. Commas, semicolons, or tabs separate its cells. Its
            first line has the names of the columns, in any case; a line `sep=…` may come before it.
        with_paths: whether a column `path` is needed.

    Raises:
        DataError: a line is not that of a CSV, or the columns `id` and `product`, or `path`, are missing or in doubt.
    """
    lines = read_lines(path)
    line, names = next(lines)
    columns = _columns(f"{path}:{line}", names, with_paths)
    for line, cells in lines:
        yield _row(f"{path}:{line}", names, columns, cells, line)


def read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Reads the lines of a CSV; see `read_rows`.

    Yields:
        The number of a line and its cells, without the spaces around them: first the names of the columns, then all
        lines that are not empty.

    Raises:
        DataError: a line is not that of a CSV.
    """
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in UTF16 else "utf-8-sig"
    before = 0  # lines before those that `csv` reads
    lines = None
    with path.open(newline="", encoding=encoding) as file:
        try:
            first = file.readline()
            if first.startswith("sep="):  # tells Excel the delimiter
                before, first = 1, file.readline()
            lines = csv.reader(
                itertools.chain([first], file), delimiter=_delimiter(first), skipinitialspace=True, strict=True
            )
            yield before + 1, [name.strip() for name in next(lines, [])]
            for cells in lines:
                if any(map(str.strip, cells)):
                    yield before + lines.line_num, [cell.strip() for cell in cells]
        except csv.Error as error:
            line = before + (lines.line_num if lines else 0)
            raise DataError(f"{path}:{line}: {error}; expected a CSV") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {error}; expected a CSV in UTF-8, which spreadsheets can save") from error


def _delimiter(header: str) -> str:
    """The delimiter that divides the names of the columns into the most parts."""
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark))))


def plain_name(name: str) -> str:
    """The name of a column without what does not tell names apart: case, and spaces, dashes or underscores."""
    return re.sub(r"[\s_-]+", "_", name.casefold())


def _columns(place: str, names: Sequence[str], with_paths: bool) -> dict[str, int]:
    """{column: its place}, for those of `COLUMNS` that the file has."""
    plain = [plain_name(name) for name in names]
    found = ", ".join(map(repr, names)) or "of an empty file"
    if any(name and plain.count(name) > 1 for name in plain):
        raise DataError(f"{place}: found the columns {found}, expected every name once")
    columns: dict[str, int] = {}
    for column, synonyms in COLUMNS.items():
        free = [number for number in range(len(plain)) if number not in columns.values()]
        fitting = [number for number in free if plain[number] == column]
        fitting = fitting or [number for number in free if plain[number] in synonyms]
        if len(fitting) > 1:
            several = " and ".join(repr(names[number]) for number in fitting)
            raise DataError(
                f"{place}: found the columns {several}, each of which could be the {column}; rename the right one to "
                f"{column!r}"
            )
        if fitting:
            columns[column] = fitting[0]
    if not {"id", "product"} & columns.keys() or (with_paths and "path" not in columns):
        raise DataError(
            f"{place}: found the columns {found}, expected id{' and path' * with_paths} in the first line, or other "
            f"names for them: product, sku{'; image, photo, picture, file' * with_paths}"
        )
    others = [name for number, name in enumerate(names) if name and number not in columns.values()]
    renamed = [f"{names[number]!r} is the {column}" for column, number in columns.items() if plain[number] != column]
    if others or renamed:
        kept = f"kept with every match: {', '.join(map(repr, others))}" if others else ""
        logger.info("%s: columns: %s", place, "; ".join(filter(None, [*renamed, kept])))
    return columns


def _row(place: str, names: Sequence[str], columns: dict[str, int], cells: Sequence[str], line: int) -> Row:
    if len(cells) != len(names):
        raise DataError(f"{place}: found {len(cells)} values, expected {len(names)}: {', '.join(names)}")
    fields = {}
    for number, (name, value) in enumerate(zip(names, cells, strict=True)):
        if value and not name:
            raise DataError(f"{place}: found {value!r} in a column without a name, expected one in the first line")
        if name and number not in columns.values():
            fields[name] = value
    own = {column: cells[number] for column, number in columns.items()}
    return Row(own | {name: normal_form(own[name]) for name in own.keys() & {"gallery", "id", "product"}}, fields, line)

"""The pictures of a shop: a directory, or a CSV that lists them."""

import csv
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rice_jax.input.pictures import is_hidden
from rice_jax.types import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
COLUMNS = ("id", "path", "gallery", "title")

logger = logging.getLogger(__name__)


class Picture(NamedTuple):
    """A picture to index, identified by its gallery and id together."""

    gallery: str  # "" = the shop has no galleries
    id: str
    path: Path
    title: str  # "" = unknown
    place: str  # for messages: the file itself, or the line of the CSV


def read_shop(path: str | os.PathLike, *, with_paths: bool = True) -> list[Picture]:
    """Lists the pictures of a shop, without opening them.

    Args:
        path: a directory with the files ID.jpg or GALLERY/ID.jpg (also .jpeg, .png, .webp; other files are left out),
            or a CSV in UTF-8 with the columns `id`, `path` (relative to the CSV) and, optionally, `gallery` and
            `title`.
        with_paths: whether a CSV needs the column `path`.

    Returns:
        The pictures, ordered by gallery and id.

    Raises:
        DataError: there is no picture, an id is missing or repeated, a file's name is not UTF-8, or the CSV or
            directory has another form.
        FileNotFoundError: `path` does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: does not exist, expected a directory of pictures or a CSV")
    pictures = list(_read_directory(path) if path.is_dir() else _read_csv(path, with_paths))
    if not pictures:
        expected = f"pictures ({', '.join(SUFFIXES)})" if path.is_dir() else "a line for each picture"
        raise DataError(f"{path}: found no picture, expected {expected}")
    places: dict[tuple[str, str], str] = {}
    for picture in pictures:
        try:
            f"{picture.gallery}/{picture.id}/{picture.path}".encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{picture.place!r}: found a name that is not UTF-8, expected one that is; rename it"
            ) from None
        if not picture.id.strip():
            raise DataError(f"{picture.place}: found no id, expected one for each picture")
        other = places.setdefault((picture.gallery, picture.id), picture.place)
        if other != picture.place:
            raise DataError(
                f"{picture.place}: found the id {picture.id!r} of gallery {picture.gallery!r}, which {other} has too; "
                "expected every id once in its gallery"
            )
    return sorted(pictures)


def _read_directory(directory: Path) -> Iterator[Picture]:
    left_out = 0
    for entry in sorted(directory.iterdir()):
        in_gallery = entry.is_dir() and not is_hidden(entry.name)
        for file in sorted(entry.iterdir()) if in_gallery else [entry]:
            if is_hidden(file.name):
                continue
            if file.is_dir():
                raise DataError(
                    f"{file}: found a directory in a gallery, expected {directory}/ID.jpg or "
                    f"{directory}/GALLERY/ID.jpg; use a CSV for pictures that are elsewhere"
                )
            if file.suffix.lower() in SUFFIXES:
                yield Picture(entry.name if in_gallery else "", file.stem, file, "", str(file))
            else:
                left_out += 1
    if left_out:
        logger.info("%s: left out %d files that do not end in %s", directory, left_out, ", ".join(SUFFIXES))


def _read_csv(path: Path, with_paths: bool) -> Iterator[Picture]:
    required = {"id", "path"} if with_paths else {"id"}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            found = rows.fieldnames or []
            if len(set(found)) < len(found) or not required <= set(found) <= set(COLUMNS):
                raise DataError(
                    f"{path}:1: found the columns {', '.join(map(repr, found)) or 'of an empty file'}, expected "
                    f"{' and '.join(sorted(required))}, and no others than {', '.join(COLUMNS)}"
                )
            for row in rows:
                place = f"{path}:{rows.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{place}: found {_count(row)} values, expected {len(found)}: {', '.join(found)}")
                if with_paths and not row["path"]:
                    raise DataError(f"{place}: found no path of {row['id']!r}, expected one for each picture")
                file_path = path.parent / row.get("path", "")
                yield Picture(row.get("gallery", ""), row["id"], file_path, row.get("title", ""), place)
        except csv.Error as error:
            raise DataError(f"{path}:{rows.reader.line_num}: {error}; expected a CSV") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {error}; expected a CSV in UTF-8") from error


def _count(row: dict) -> int:
    return sum(len(value) if key is None else value is not None for key, value in row.items())

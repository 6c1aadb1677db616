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
COLUMNS = ("id", "path", "gallery", "title", "product")

logger = logging.getLogger(__name__)


class Picture(NamedTuple):
    """A picture to index, identified by its gallery and id together."""

    gallery: str  # "" = the shop has no galleries
    id: str
    product: str  # of the gallery, which may have several pictures of it
    path: Path
    title: str  # "" = unknown
    place: str  # for messages: the file itself, or the line of the CSV


def read_shop(path: str | os.PathLike, *, with_paths: bool = True) -> list[Picture]:
    """Lists the pictures of a shop, without opening them.

    Args:
        path: a directory with the files ID.jpg, GALLERY/ID.jpg, or GALLERY/PRODUCT/PICTURE.jpg (also .jpeg, .png,
            .webp; other files are left out), or a CSV in UTF-8 with the columns `id`, `path` (relative to the CSV) and,
            optionally, `gallery`, `title`, and `product`. Pictures without a product are each a product of their own,
            named by their id. The id of PRODUCT/PICTURE.jpg is PRODUCT/PICTURE. If a CSV without the column `product`
            repeats an id with other paths, these are pictures of one product: ID, ID/2, ID/3, ….
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
                "expected every id once in its gallery; pictures of one product have ids of their own and the same "
                "`product`"
            )
    return sorted(pictures)


def _read_directory(directory: Path) -> Iterator[Picture]:
    left_out = 0
    for file in _files(directory, 2):
        gallery, product = [*file.relative_to(directory).parts[:-1], "", ""][:2]
        name = f"{product}/{file.stem}" if product else file.stem
        if file.suffix.lower() in SUFFIXES:
            yield Picture(gallery, name, product or name, file, "", str(file))
        else:
            left_out += 1
    if left_out:
        logger.info("%s: left out %d files that do not end in %s", directory, left_out, ", ".join(SUFFIXES))


def _files(directory: Path, depth: int) -> Iterator[Path]:
    """The files in a directory and in those below it, at most `depth` deep; what is hidden is left out."""
    for entry in sorted(directory.iterdir()):
        if is_hidden(entry.name):
            continue
        if not entry.is_dir():
            yield entry
        elif depth:
            yield from _files(entry, depth - 1)
        else:
            raise DataError(
                f"{entry}: found a directory in a product's directory, expected ID.jpg, GALLERY/ID.jpg, or "
                "GALLERY/PRODUCT/PICTURE.jpg; use a CSV for pictures that are elsewhere"
            )


def _read_csv(path: Path, with_paths: bool) -> Iterator[Picture]:
    required = {"id", "path"} if with_paths else {"id"}
    paths: dict[tuple[str, str], list[Path]] = {}  # of each id
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
                name, gallery, file_path = row["id"], row.get("gallery", ""), path.parent / row.get("path", "")
                product = row.get("product", "")
                earlier = paths.setdefault((gallery, name), [])
                if "product" not in found and earlier and file_path not in earlier:
                    name, product = f"{name}/{len(earlier) + 1}", name
                earlier.append(file_path)
                product = product if product.strip() else name
                yield Picture(gallery, name, product, file_path, row.get("title", ""), place)
            repeated = [name for (_, name), own in paths.items() if len(own) > 1]
            if repeated:
                logger.info(
                    "%s: %d ids have several pictures, the first is %r; these count as pictures of one product",
                    path,
                    len(repeated),
                    repeated[0],
                )
        except csv.Error as error:
            raise DataError(f"{path}:{rows.reader.line_num}: {error}; expected a CSV") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {error}; expected a CSV in UTF-8") from error


def _count(row: dict) -> int:
    return sum(len(value) if key is None else value is not None for key, value in row.items())

"""The pictures of a shop: a directory, or a CSV that lists them."""

import logging
import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rice_jax.index.spreadsheet import read_rows
from rice_jax.input.pictures import is_hidden, read_file
from rice_jax.types import DataError, counted, listed, normal_form

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

logger = logging.getLogger(__name__)


class Picture(NamedTuple):
    """A picture to index, identified by its gallery and id together."""

    gallery: str  # "" = the shop has no galleries
    id: str
    product: str  # of the gallery, which may have several pictures of it
    path: Path
    title: str  # "" = unknown
    place: str  # for messages: the file itself, or the line of the CSV
    fields: Mapping[str, str] = {}  # further columns of the CSV

    def read(self) -> bytes:
        """The content of the file.

        Raises:
            OSError: it cannot be read.
        """
        return read_file(self.path)


class Names(NamedTuple):
    """Pictures and whole products, each by its gallery and id."""

    pictures: set[tuple[str, str]]
    products: set[tuple[str, str]]


def read_shop(path: str | os.PathLike) -> list[Picture]:
    """Lists the pictures of a shop, without opening them.

    Args:
        path: a directory with the files ID.jpg, GALLERY/ID.jpg, or GALLERY/PRODUCT/PICTURE.jpg (also .jpeg, .png,
            .webp; other files are left out), or a CSV (`read_rows`) with the columns `path`, relative to the CSV, and
            `id` or `product` or both, and optionally `gallery` and `title`. Pictures without a product are each a
            product of their own, named by their id. The id of PRODUCT/PICTURE.jpg is PRODUCT/PICTURE. If a CSV has only
            one of the columns `id` and `product`, and repeats a name with other paths, these are pictures of one
            product: ID, ID/2, ID/3, ….

    Returns:
        The pictures, ordered by gallery and id.

    Raises:
        DataError: there is no picture, an id is missing or repeated, a file's name is not UTF-8, or the CSV or
            directory has another form.
        FileNotFoundError: `path` does not exist.
    """
    path = require_shop(path)
    pictures = list(_read_directory(path) if path.is_dir() else _read_csv(path))
    _require_some(path, pictures)
    places: dict[tuple[str, str], str] = {}
    wrong = []
    for picture in pictures:
        other = places.setdefault((picture.gallery, picture.id), picture.place)
        if not _is_utf_8(f"{picture.gallery}/{picture.id}/{picture.path}"):
            wrong.append(f"{picture.place!r}: found a name that is not UTF-8, expected one that is; rename it")
        elif not picture.id.strip():
            wrong.append(f"{picture.place}: found no id, expected one for each picture")
        elif other != picture.place:
            wrong.append(
                f"{picture.place}: found the id {of_gallery(picture.gallery, picture.id)}, which {other} has too; "
                "expected every id once in its gallery; pictures of one product have ids of their own and the same "
                "`product`"
            )
    if wrong:
        some = f"{path}: {len(wrong)} of {counted(len(pictures), 'picture')} have no usable id of their own:"
        raise DataError(wrong[0] if len(wrong) == 1 else listed(some, wrong))
    return sorted(pictures)


def _is_utf_8(text: str) -> bool:
    """Whether a text has no bytes of a file's name that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def of_gallery(gallery: str, name: str) -> str:
    """The name of a picture or product in a message."""
    return f"{name!r} of gallery {gallery!r}" if gallery else repr(name)


def read_names(path: str | os.PathLike) -> Names:
    """Lists pictures and products by their names alone; their files need not exist.

    Args:
        path: a directory, see `read_shop`, or a CSV (`read_rows`) with the columns `id` or `product` or both, and
            optionally `gallery`. A row with an id names a picture, and one without a product.

    Raises:
        DataError: there is no name, or the CSV or directory has another form.
        FileNotFoundError: `path` does not exist.
    """
    path = require_shop(path)
    if path.is_dir():
        return Names({(picture.gallery, picture.id) for picture in read_shop(path)}, set())
    names = Names(set(), set())
    for row in read_rows(path, with_paths=False):
        gallery, name, product = (row.cells.get(column, "") for column in ("gallery", "id", "product"))
        if not name and not product:
            raise DataError(f"{path}:{row.line}: found no id and no product, expected one of them")
        (names.pictures if name else names.products).add((gallery, name or product))
    _require_some(path, names.pictures | names.products)
    return names


def require_shop(path: str | os.PathLike) -> Path:
    """Refuses a path at which there is nothing.

    Raises:
        FileNotFoundError: it does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: does not exist, expected a directory of pictures or a CSV")
    return path


def _require_some(path: Path, pictures: Collection) -> None:
    if not pictures:
        expected = f"pictures ({', '.join(SUFFIXES)})" if path.is_dir() else "a line for each picture"
        if path.is_dir() and any(path.glob("*.tar")):
            expected += ", or --worker=0/1, which embeds the pictures of tars"
        raise DataError(f"{path}: found no picture, expected {expected}")


def _read_directory(directory: Path) -> Iterator[Picture]:
    others = []
    for file in _files(directory, 2):
        names = [*file.relative_to(directory).parts[:-1], "", ""][:2] + [file.stem]
        gallery, product, stem = (normal_form(name.strip()) for name in names)
        name = f"{product}/{stem}" if product else stem
        if file.suffix.lower() in SUFFIXES:
            yield Picture(gallery, name, product or name, file, "", str(file))
        else:
            others.append(ascii(file.name)[1:-1])
    if others:
        named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        suffixes = ", ".join(SUFFIXES)
        number = counted(len(others), "file")
        logger.info("%s: left out %s whose names do not end in %s: %s", directory, number, suffixes, named)


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


def _find(directory: Path, name: str) -> Path:
    """The file that a cell names, also if the CSV was written on another system, with other accents or backslashes."""
    path = directory / name
    if name.isascii() and "\\" not in name:
        return path
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    others = [directory / one for form in forms for one in (form, form.replace("\\", "/"))]
    return next((other for other in (path, *others) if os.path.exists(other)), path)


def _read_csv(path: Path) -> Iterator[Picture]:
    paths: dict[tuple[str, str], list[Path]] = {}  # of each id
    for row in read_rows(path):
        place, cells = f"{path}:{row.line}", row.cells
        product, gallery = cells.get("product", ""), cells.get("gallery", "")
        name = cells.get("id", product)
        if not cells["path"]:
            raise DataError(f"{place}: found no path of {name!r}, expected one for each picture")
        file_path = _find(path.parent, cells["path"])
        earlier = paths.setdefault((gallery, name), [])
        if not {"id", "product"} <= cells.keys():
            product = name
            if earlier and file_path not in earlier:
                name = f"{name}/{len(earlier) + 1}"
        earlier.append(file_path)
        yield Picture(gallery, name, product or name, file_path, cells.get("title", ""), place, row.fields)
    repeated = [name for (_, name), own in paths.items() if len(set(own)) > 1]
    if repeated:
        logger.info(
            "%s: %d %s several pictures, the first is %r; these count as pictures of one product",
            path,
            len(repeated),
            "id has" if len(repeated) == 1 else "ids have",
            repeated[0],
        )

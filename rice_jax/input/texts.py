"""Texts of images, videos, and product items: from data sets, CSVs and JSON lines, cleaned."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rice_jax.input.source import Source, splits
from rice_jax.types import DataError

# {kind of text: (feature with the id of what it belongs to, feature with the text)} of data sets.
KINDS = {"titles": ("image_id", "title"), "speech": ("clip_id", "asr")}
# {last part of the name of a set of product items: kind of their texts}
ITEM_KINDS = {"pages": "titles", "videos": "speech", "lives": "speech"}
ITEM = "item_id", "text"  # features of such a set


class Texts(NamedTuple):
    """Texts by the id of what they belong to, without missing ones."""

    texts: dict[str, str]
    num_missing: int  # ids that have none
    num_other: int  # ids with another text than before, which is left out


def clean(text: str) -> str:
    """A text as towers read it; "" = it is missing.

    LPR4M separates pieces of speech by "\\x01", and writes a missing text as `null`.

    Source: docs/reference.md, section 7.
    """
    pieces = (piece.strip() for piece in text.replace("|", "").split("\x01"))
    joined = ",".join(piece for piece in pieces if piece not in ("", "null"))
    return joined.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair is no text


def tidy(text: str) -> str:
    """A product item's text as towers read it; "" = it is missing.

    ROPE's texts are kept as they are: unlike in LPR4M, no word stands for a missing text.
    """
    return " ".join(text.split())


def item_key(name: str, item_id: str) -> str:
    """What names an item's text: the ids of short videos and live clips may be the same.

    Args:
        name: of the set of items, such as "rope/lives".
        item_id: of the item.

    Returns:
        Such as "lives/24".
    """
    return f"{name.rpartition('/')[2]}/{item_id}"


def collect(pairs: Iterable[tuple[str, str]]) -> Texts:
    """Keeps the first text of each id that is not missing; the texts are clean."""
    texts: dict[str, str] = {}
    others, ids = set(), set()
    for key, text in pairs:
        ids.add(key)
        if text and texts.setdefault(key, text) != text:
            others.add(key)
    return Texts(texts, len(ids) - len(texts), len(others))


def stored_texts(data_dir: str, names: Iterable[str], kind: str) -> Iterator[tuple[str, str]]:
    """Pairs of an id and a clean text of the data sets that have both, in their order.

    Args:
        data_dir: directory that `rice build --data_dir` wrote.
        names: data sets below it; of product items, all splits are read.
        kind: one of `KINDS`.

    Raises:
        FileNotFoundError: a data set is missing.
        DataError: it is damaged.
    """
    for name in names:
        of_items = name.rpartition("/")[2] in ITEM_KINDS
        if of_items and ITEM_KINDS[name.rpartition("/")[2]] != kind:
            continue
        key, feature = ITEM if of_items else KINDS[kind]
        for split in splits(data_dir, name) if of_items else (None,):
            for row in Source(data_dir, name, (), optional=(key, feature), split=split):
                if key not in row or feature not in row:
                    break
                found, text = row[key].decode(), row[feature].decode()
                yield (item_key(name, found), tidy(text)) if of_items else (found, clean(text))


def listed_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of an id and a clean text in a CSV with the columns `id` and `text`, or in JSON lines with these keys.

    Raises:
        DataError: naming the line that has another form.
        OSError: the file cannot be read.
    """
    read = _json_lines if path.suffix in (".jsonl", ".json") else _csv_rows
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in read(file, path):
                key, text = row.get("id"), row.get("text")
                if not (isinstance(key, str) and isinstance(text, str) and key):
                    raise DataError(f"{path}:{number}: found {row!r}, expected an `id` and a `text`, both strings")
                yield key, clean(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: found bytes that are not UTF-8 ({error}); convert the file") from error


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(file, strict=True)
    try:
        if missing := {"id", "text"} - set(reader.fieldnames or ()):
            raise DataError(
                f"{path}:1: found the columns {reader.fieldnames}, expected {sorted(missing)[0]!r} among them"
            )
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num + 1}: {error}; expected a CSV as spreadsheets write it") from error


def _json_lines(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: found no JSON ({error}), expected one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: found a {type(row).__name__}, expected an object")
        yield number, row

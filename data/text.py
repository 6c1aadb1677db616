"""Reads text files: lines, lists in a column, JSON objects."""

import ast
import codecs
import collections
import json
import re
from collections.abc import Iterator
from pathlib import Path

from .errors import FormatError, RawDataError, RepeatedId

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the lines of a file; they are never stripped, because trailing empty columns count.

    Args:
        path: a text file in UTF-8.

    Yields:
        (`file:line`, the line as `decode_line` returns it).

    Raises:
        FormatError: the file is not UTF-8, or only "\\r" ends its lines.
    """
    with path.open("rb") as file:  # as bytes: only "\\n" ends a line, even if a text holds other separators
        for number, line in enumerate(file, start=1):
            yield f"{path}:{number}", decode_line(line, f"{path}:{number}")


def decode_line(line: bytes, where: str) -> str:
    """Decodes a line of UTF-8, without the "\\n" or "\\r\\n" at its end and a byte order mark at its start.

    Args:
        line: the line as it is in the file.
        where: `file:line`, for errors.

    Raises:
        FormatError: the line is not UTF-8, or it is a file in which only "\\r" ends lines.
    """
    if b"\r" in line and not line.endswith(b"\n"):
        raise FormatError(where, 'a "\\r" that no "\\n" follows', 'lines that end in "\\n"', "convert the line ends")
    try:
        # A mark may be in any line, because files are made by joining others.
        return without_mark(line).removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(where, f"bytes that are not UTF-8 ({error})", "UTF-8", "download the file again") from error


def without_mark(line: bytes) -> bytes:
    """Removes the byte order mark with which some editors begin files in UTF-8."""
    return line.removeprefix(codecs.BOM_UTF8)


def parse_list(text: str, where: str) -> list:
    """Parses a list written as JSON or as a Python literal, without ever running code in the text.

    Args:
        text: the content of a column.
        where: file, line and column, for errors.

    Raises:
        FormatError: the text is not a list in either notation.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = None
    if not isinstance(value, list | tuple):
        raise FormatError(where, repr(text), "a list as JSON or as a Python literal", "fix the row")
    return list(value)


def read_object(path: Path) -> dict:
    """Reads a file that holds one JSON object with unique keys.

    Args:
        path: a file in UTF-8, with or without a byte order mark.

    Raises:
        FormatError: the file does not hold such an object.
    """

    def without_repeats(pairs: list[tuple[str, object]]) -> dict:
        members = dict(pairs)
        if len(members) < len(pairs):  # json would silently keep the last one
            keys = collections.Counter(key for key, _ in pairs)
            repeated = keys.most_common(1)[0][0]
            raise RepeatedId(str(path), f"key {repeated!r} twice", "unique keys", "remove one of them")
        return members

    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text, object_pairs_hook=without_repeats)
        if _SURROGATE.search(text):  # half of a pair is no character, and cannot be stored
            json.dumps(value, ensure_ascii=False).encode()
    except (json.JSONDecodeError, UnicodeError) as error:
        line = getattr(error, "lineno", 1)
        raise FormatError(f"{path}:{line}", str(error), "JSON in UTF-8", "download the file again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}:1", type(value).__name__, "a JSON object", "download the file again")
    return value


def check_strings(value: object, where: str) -> list[str]:
    """Checks that a value is a list of non-empty strings.

    Args:
        value: what the file holds.
        where: place in the file, for errors.

    Returns:
        The value.

    Raises:
        FormatError: the value is not such a list.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise FormatError(where, repr(value), "a list of strings", "download the file again")
    return value


def find_file(directories: list[Path], pattern: str, readme: str) -> Path:
    """Finds the only file whose name matches a pattern.

    Args:
        directories: where to look; errors name the first one as the raw directory.
        pattern: a file name with `*` in place of the counts in published names.
        readme: the page that says where raw files come from, for errors.

    Raises:
        RawDataError: the file is missing.
        FormatError: several files match.
    """
    file = find_optional_file(directories, pattern)
    if file is None:
        places = " or ".join(["here", *(f"in {directory.name}/" for directory in directories[1:])])
        raise RawDataError(
            f"{directories[0]}: found no {pattern}, expected it {places}; {readme} says where it comes from, and "
            "--configs can leave out the set that needs it"
        )
    return file


def find_optional_file(directories: list[Path], pattern: str) -> Path | None:
    """Finds the only file whose name matches a pattern, or returns None if there is none.

    Args:
        directories: where to look; errors name the first one as the raw directory.
        pattern: a file name with `*` in place of the counts in published names.

    Raises:
        FormatError: several files match.
    """
    found = [path for directory in directories for path in sorted(directory.glob(pattern))]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise FormatError(str(directories[0]), names, f"one file {pattern}", "remove the others")
    return found[0] if found else None

"""Reading text files as they are: lines, lists in a column, JSON objects."""

import ast
import collections
import json
from collections.abc import Iterator
from pathlib import Path

from data.errors import DataError, FormatError, RepeatedId


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (`file:line`, line without its "\\n"); a line is never stripped, since empty last columns count.

    Args:
        path: a text file in UTF-8.

    Raises:
        FormatError: bytes that are not UTF-8.
    """
    with path.open("rb") as file:  # bytes: nothing but "\\n" ends a line, whatever separators a text holds
        for number, line in enumerate(file, start=1):
            yield f"{path}:{number}", decode_line(line, f"{path}:{number}")


def decode_line(line: bytes, where: str) -> str:
    """Decodes a line and takes its "\\n" off."""
    try:
        return line.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise FormatError(where, f"bytes that are not UTF-8 ({error})", "UTF-8", "download the file again") from error


def parse_list(text: str, where: str) -> list:
    """Reads a list written as JSON or as a Python literal; code in the text is never run.

    Args:
        text: a column.
        where: `file:line column`, for errors.

    Raises:
        FormatError: the text is neither.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = None
    if not isinstance(value, list | tuple):
        raise FormatError(where, repr(text), "a list as JSON or as a Python literal", "mend the row")
    return list(value)


def read_object(path: Path) -> dict:
    """Reads a file that is one JSON object with each key once.

    Raises:
        FormatError: it is not.
    """

    def without_repeats(pairs: list[tuple[str, object]]) -> dict:
        members = dict(pairs)
        if len(members) < len(pairs):  # json would keep the last one and tell nobody
            keys = collections.Counter(key for key, _ in pairs)
            repeated = keys.most_common(1)[0][0]
            raise RepeatedId(str(path), f"key {repeated!r} twice", "each key once", "take one of them away")
        return members

    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_repeats)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", 1)
        raise FormatError(f"{path}:{line}", str(error), "JSON in UTF-8", "download the file again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}:1", type(value).__name__, "a JSON object", "download the file again")
    return value


def check_strings(value: object, where: str) -> list[str]:
    """Returns a list of strings that are not empty, or raises FormatError."""
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise FormatError(where, repr(value), "a list of strings", "download the file again")
    return value


def find_file(directories: list[Path], pattern: str, readme: str, required: bool = True) -> Path | None:
    """Finds the one file of that name.

    Args:
        directories: where to look; the first one names the raw directory in errors.
        pattern: a name with `*` for the counts that published names carry.
        readme: the file that tells where raw files come from, for errors.
        required: whether its absence is an error.

    Raises:
        DataError: there is none and it is required.
        FormatError: there are several.
    """
    found = [path for directory in directories for path in sorted(directory.glob(pattern))]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise FormatError(str(directories[0]), names, f"one file {pattern}", "take the others away")
    if not found and required:
        places = " or ".join(["here", *(f"in {directory.name}/" for directory in directories[1:])])
        raise DataError(
            f"{directories[0]}: found no {pattern}, expected it {places}; {readme} tells where it comes from, and "
            "--configs leaves its set out"
        )
    return found[0] if found else None

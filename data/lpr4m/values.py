"""What LPR4M's raw files are made of: lines, ids, lists and boxes."""

import ast
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from data.errors import FormatError

Box = tuple[float, float, float, float]  # x1, y1, x2, y2, in the file's own unit

CLIP_ID = re.compile(r"[^/\\\s]+-\d+-\d+")  # live_id-START-END
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
_UUID_AND_INDEX = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-\d+", re.IGNORECASE)


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


def parse_box(value: object, where: str) -> Box:
    """Checks that a value is a box: four finite numbers x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1.

    Args:
        value: what the file holds.
        where: place in the file, for errors.

    Raises:
        FormatError: it is not.
    """
    numbers = isinstance(value, list | tuple) and len(value) == 4
    if not numbers or not all(type(x) in (int, float) and math.isfinite(x) for x in value):
        raise FormatError(where, repr(value), "four numbers x1, y1, x2, y2", "mend the row")
    x1, y1, x2, y2 = (float(x) for x in value)
    if x2 < x1 or y2 < y1:
        raise FormatError(
            where,
            f"box {value}",
            "x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1",
            "mend the row; if all rows are so, the boxes are in another order (x, y, width, height?)",
        )
    return x1, y1, x2, y2


def parse_image_id(name: str) -> str:
    """Returns the image id of a file name or path: the extension goes first, then the `-k` of `<image_id>-<k>.jpg`."""
    stem = name.rpartition("/")[2]
    for extension in IMAGE_EXTENSIONS:
        if stem.lower().endswith(extension):
            stem = stem[: -len(extension)]
    indexed = _UUID_AND_INDEX.fullmatch(stem)  # an id's own last group may be digits too: count the groups
    return indexed[1] if indexed else stem


def live_id_of(clip_id: str) -> str:
    """Returns the livestream of a clip: `live_id-START-END` without its last two parts."""
    return clip_id.rsplit("-", 2)[0]

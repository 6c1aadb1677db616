"""Reads LPR4M's training rows: one clip per line, tab-separated, in one of three layouts."""

import array
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..box_units import Box, parse_box
from ..errors import FormatError, RepeatedId, fail
from ..pictures import IMAGE_EXTENSIONS
from ..text import decode_line, parse_list, without_mark
from .ids import CLIP_ID, CLIP_ID_FORMAT, RENAME_CLIP, parse_image_id

COLUMNS = {
    11: "clip_id frames boxes image_id title category_id category asr scale duration number",
    12: "clip_id frames boxes image_id title category_id category product_id asr scale duration number",
    13: "clip_id frames boxes image_id image_path title category_id category product_id asr scale duration number",
}


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """One clip and its product; texts without a column in the layout are ''.

    Attributes:
        where: `file:line`.
        frames: frame ids (11 and 12 columns) or paths relative to the raw directory (13 columns).
        boxes: x1, y1, x2, y2 of the intended product, one per frame, in the file's own unit; all zeros = no box.

    Source: data/lpr4m/README.md, "Raw files".
    """

    where: str
    clip_id: str
    frames: tuple[str, ...]
    boxes: tuple[Box, ...]
    image_id: str
    title: str
    category_id: str
    category: str
    asr: str
    scale: str
    duration: str
    number: str
    image_path: str = ""
    product_id: str = ""


@dataclasses.dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of one part, which can be read without the rows before them."""

    path: Path
    offset: int  # position of the first row, in bytes
    first_line: int  # counted from 1
    num_rows: int
    num_columns: int
    checksum: int  # of the block's bytes, so that blocks differ when the file changes


def read_rows(block: RowBlock, on_error: Callable[[FormatError], None] = fail) -> Iterator[TrainingRow]:
    """Yields the rows of a block, one at a time.

    Args:
        block: from `index_rows`.
        on_error: called with the error of a row that violates its layout; the row is left out if it returns.

    Raises:
        FormatError: `on_error` raised it.
    """
    with block.path.open("rb") as file:
        file.seek(block.offset)
        for line in range(block.first_line, block.first_line + block.num_rows):
            try:
                row = parse_row(file.readline(), f"{block.path}:{line}", block.num_columns)
            except FormatError as error:
                on_error(error)
            else:
                yield row


def index_rows(
    parts: Sequence[Path], rows_per_block: int, on_error: Callable[[FormatError], None] = fail
) -> list[RowBlock]:
    """Divides the parts into blocks of rows, in order, and checks that clip ids are unique.

    Reads each part once and keeps only 8 bytes per row in memory.

    Args:
        parts: the files of training rows.
        rows_per_block: the rows in a block; the last block of a part may be shorter.
        on_error: called with an error if a part is empty, its first row has no known layout, or a clip id is repeated.
            If it returns, the part is left out, and a repeated clip is kept twice.

    Returns:
        Blocks that hold every row once.

    Raises:
        FormatError: `on_error` raised it.
    """
    blocks = []
    clip_hashes = array.array("q")
    for path in parts:
        block_offsets, checksums, offset, num_rows = [], [], 0, 0
        try:
            num_columns = _layout(path)
        except FormatError as error:
            on_error(error)
            continue
        with path.open("rb") as file:
            for line in file:
                if num_rows % rows_per_block == 0:
                    block_offsets.append(offset)
                    checksums.append(0)
                checksums[-1] = zlib.crc32(line, checksums[-1])
                clip_hashes.append(hash(_clip_id(line)))
                offset += len(line)
                num_rows += 1
        for first_row, start, checksum in zip(
            range(0, num_rows, rows_per_block), block_offsets, checksums, strict=True
        ):
            size = min(rows_per_block, num_rows - first_row)
            blocks.append(RowBlock(path, start, first_row + 1, size, num_columns, checksum))
    _check_clips_differ(parts, np.frombuffer(clip_hashes, np.int64), on_error)
    return blocks


def parse_row(line: bytes, where: str, num_columns: int) -> TrainingRow:
    """Parses one row and checks that its columns match the layout.

    Args:
        line: the row as it is in the file, with or without "\\n".
        where: `file:line`, for errors.
        num_columns: the layout of the row's part: 11, 12 or 13 columns.

    Raises:
        FormatError: the row violates the layout.
    """
    columns = decode_line(line, where).split("\t")
    if len(columns) != num_columns:
        raise FormatError(
            where,
            f"{len(columns)} columns",
            f"{num_columns} as in the first row of the file",
            "look for an extra or missing tab, or a row that is cut in two, and fix the row",
        )
    text = dict(zip(COLUMNS[num_columns].split(), columns, strict=True))
    _check_layout(columns, where)
    if not CLIP_ID.fullmatch(text["clip_id"]):
        raise FormatError(f"{where} column 0", repr(text["clip_id"]), CLIP_ID_FORMAT, RENAME_CLIP)
    frames = parse_list(text.pop("frames"), f"{where} column 1 (frames)")
    boxes = parse_list(text.pop("boxes"), f"{where} column 2 (boxes)")
    if not all(isinstance(frame, str) and frame for frame in frames):
        raise FormatError(f"{where} column 1 (frames)", frames, "a list of strings", "fix the row")
    if len(frames) != len(boxes):
        raise FormatError(
            f"{where} column 2 (boxes)", f"{len(boxes)} boxes for {len(frames)} frames", "one per frame", "fix the row"
        )
    text["image_id"] = parse_image_id(text["image_id"])
    text["asr"] = "" if text["asr"] == "null" else text["asr"]
    parsed = tuple(parse_box(box, f"{where} column 2 (boxes)") for box in boxes)
    return TrainingRow(where=where, frames=tuple(frames), boxes=parsed, **text)


def _layout(path: Path) -> int:
    """Returns the number of columns of a part's first row."""
    with path.open("rb") as file:
        line = file.readline()
    if not line:
        raise FormatError(str(path), "an empty file", "training rows", "download the file again or remove it")
    num_columns = line.count(b"\t") + 1
    if num_columns not in COLUMNS:
        raise FormatError(
            f"{path}:1",
            f"{num_columns} tab-separated columns",
            f"{', '.join(map(str, COLUMNS))}",
            "check that this file holds LPR4M training rows and that its tabs were not converted to spaces",
        )
    return num_columns


def _check_layout(columns: list[str], where: str) -> None:
    """Checks the layout that the number of columns implies against the content of two columns."""
    has_image_path = columns[4].lower().endswith(IMAGE_EXTENSIONS)
    if has_image_path != (len(columns) == 13):
        raise FormatError(
            f"{where} column 4",
            repr(columns[4]),
            "an image path in rows of 13 columns, a title in the others",
            "look for an extra or missing tab and fix the row",
        )
    if len(columns) == 12 and not columns[7].isdecimal():
        raise FormatError(
            f"{where} column 7",
            repr(columns[7]),
            "a numeric product id in rows of 12 columns",
            "look for an extra tab, which makes 12 columns of 11, and fix the row",
        )


def _clip_id(line: bytes) -> bytes:
    return without_mark(line).partition(b"\t")[0]


def _check_clips_differ(
    parts: Sequence[Path], clip_hashes: np.ndarray, on_error: Callable[[FormatError], None]
) -> None:
    ordered = np.sort(clip_hashes)
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return
    first_seen: dict[bytes, str] = {}
    for path in parts:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                clip_id = _clip_id(line)
                if hash(clip_id) not in repeated:
                    continue
                if clip_id in first_seen:
                    found = f"clip {clip_id.decode(errors='replace')} again, first at {first_seen[clip_id]}"
                    on_error(RepeatedId(f"{path}:{number}", found, "unique clip ids", "remove one of the rows"))
                first_seen.setdefault(clip_id, f"{path}:{number}")

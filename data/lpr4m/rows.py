"""Training rows of LPR4M: one clip a line, tab separated, in one of three layouts."""

import array
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.boxes import Box, parse_box
from data.errors import FormatError, RepeatedId, fail
from data.lpr4m.ids import CLIP_ID, parse_image_id
from data.pictures import IMAGE_EXTENSIONS
from data.text import decode_line, parse_list

COLUMNS = {
    11: "clip_id frames boxes image_id title category_id category asr scale duration number",
    12: "clip_id frames boxes image_id title category_id category product_id asr scale duration number",
    13: "clip_id frames boxes image_id image_path title category_id category product_id asr scale duration number",
}


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """One clip and its product; a text is '' where the layout has no such column.

    `frames` are frame ids (11 and 12 columns) or paths relative to the raw directory (13); `boxes` are x1, y1, x2, y2
    of the intended product, one per frame, all zeros = none, in the file's own unit; `where` is `file:line`.
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
    """Consecutive rows of one part, which can be read without reading the rows before them."""

    path: Path
    offset: int  # of the first row, in bytes
    first_line: int  # counted from 1
    num_rows: int
    num_columns: int
    checksum: int  # of its bytes: a block of a file that changed is another block


def read_rows(block: RowBlock, on_error: Callable[[FormatError], None] = fail) -> Iterator[TrainingRow]:
    """Yields the rows of a block, one at a time.

    Args:
        block: from `index_rows`.
        on_error: is told of a row that is not what its layout says, and raises it; if it does not, the row is left out.
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
    """Cuts the parts into blocks of rows, in order, and makes sure that no clip comes twice.

    Reads each part once and keeps 8 bytes a row, so that the check costs no memory worth naming.

    Args:
        parts: files of training rows.
        rows_per_block: rows of a block; the last block of a part may be shorter.
        on_error: is told that a part is empty, that its first row is in no known layout, or that a clip id stands in
            two rows, and raises it; if it does not, the part is left out, or the clip kept twice.

    Returns:
        Blocks that hold every row once.
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
    """Parses one row and checks that its columns hold what the layout says.

    Args:
        line: the row as it stands in the file, with or without "\\n".
        where: `file:line`, for errors.
        num_columns: 11, 12 or 13: the layout of the row's part.

    Raises:
        FormatError: the row is not in that layout.
    """
    columns = decode_line(line, where).split("\t")
    if len(columns) != num_columns:
        raise FormatError(
            where,
            f"{len(columns)} columns",
            f"{num_columns} as in the first row of the file",
            "look for a tab too many or too few, or a row cut in two, and mend the row",
        )
    text = dict(zip(COLUMNS[num_columns].split(), columns, strict=True))
    _check_layout(columns, where)
    if not CLIP_ID.fullmatch(text["clip_id"]):
        raise FormatError(f"{where} column 0", repr(text["clip_id"]), "live_id-START-END", "mend the row")
    frames = parse_list(text.pop("frames"), f"{where} column 1 (frames)")
    boxes = parse_list(text.pop("boxes"), f"{where} column 2 (boxes)")
    if not all(isinstance(frame, str) and frame for frame in frames):
        raise FormatError(f"{where} column 1 (frames)", frames, "a list of strings", "mend the row")
    if len(frames) != len(boxes):
        raise FormatError(
            f"{where} column 2 (boxes)", f"{len(boxes)} boxes for {len(frames)} frames", "one per frame", "mend the row"
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
        raise FormatError(str(path), "an empty file", "training rows", "download the file again or take it away")
    num_columns = line.count(b"\t") + 1
    if num_columns not in COLUMNS:
        raise FormatError(
            f"{path}:1",
            f"{num_columns} tab separated columns",
            f"{', '.join(map(str, COLUMNS))}",
            "check that this is a file of LPR4M training rows and that nothing turned its tabs into blanks",
        )
    return num_columns


def _check_layout(columns: list[str], where: str) -> None:
    """The number of columns tells the layout, two columns' content confirms it."""
    has_image_path = columns[4].lower().endswith(IMAGE_EXTENSIONS)
    if has_image_path != (len(columns) == 13):
        raise FormatError(
            f"{where} column 4",
            repr(columns[4]),
            "an image path in rows of 13 columns, a title in the others",
            "look for a tab too many or too few and mend the row",
        )
    if len(columns) == 12 and not columns[7].isdecimal():
        raise FormatError(
            f"{where} column 7",
            repr(columns[7]),
            "a numeric product id in rows of 12 columns",
            "look for a tab too many (an 11-column row with one has 12) and mend the row",
        )


def _clip_id(line: bytes) -> bytes:
    return line.partition(b"\t")[0]


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
                    on_error(RepeatedId(f"{path}:{number}", found, "each clip id once", "take one of the rows away"))
                first_seen.setdefault(clip_id, f"{path}:{number}")

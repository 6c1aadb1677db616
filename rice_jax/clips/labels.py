"""Labels of a shop's own clips: a CSV that says which product a file, or a part of a film, shows."""

import difflib
import logging
import math
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from rice_jax.index.spreadsheet import read_lines
from rice_jax.types import NUM_LISTED, DataError, listed, normal_form

REQUIRED, OPTIONAL = ("clip", "product"), ("start", "end", "film")
COLUMNS = f"{' and '.join(REQUIRED)}, and optionally {', '.join(OPTIONAL)}"

logger = logging.getLogger(__name__)


class Clip(NamedTuple):
    """A labeled clip: a video, or a part of one."""

    path: Path  # of the video, the directory of frames, or their list; one and the same for all clips of a file
    product: str  # its id; "" = the clip shows none of the shop's products
    start: float  # seconds
    end: float | None  # None = the video's end
    film: str  # the recording that it is from; clips of one film resemble each other
    place: str  # for messages: the line of the CSV

    def holds(self, time: float) -> bool:
        """Whether a frame of the video belongs to the clip."""
        return self.start <= time and (self.end is None or time < self.end)


def read_clips(
    path: str | os.PathLike, products: Collection[str] | None = None, index: object = "the index"
) -> list[Clip]:
    """Reads the labels of clips. Parts of a video that overlap with different products are counted in the log.

    Args:
        path: a CSV (`index.spreadsheet`) with the columns `clip` (a path, relative to the CSV), `product` (an id, empty
            if the clip shows none of the shop's products) and, optionally, `start` and `end` (seconds, m:ss, or
            h:mm:ss; empty: of the video) and `film` (what the clip was cut from; empty: its file). Other columns are
            left alone.
        products: ids that the clips may show; None = any.
        index: that has the products, for messages.

    Returns:
        The clips in the order of the lines, at least one.

    Raises:
        DataError: naming all lines that are wrong, those with other products, and those that find no product where
            another line finds one; or there is no clip.
        FileNotFoundError: the file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is no file, expected a CSV with the columns {COLUMNS}")
    clips: list[Clip] = []
    wrong: list[str] = []
    shown: list[tuple[str, str]] = []  # place and product, also of lines that are wrong in another way
    files: dict[str, str] = {}  # {the file itself: its path as it is first written}
    places: dict[Clip, str] = {}  # {what is labeled: where}
    lines = read_lines(path)
    columns = _columns(path, *next(lines))
    for line, values in lines:
        place = f"{path}:{line}"
        try:
            row = _row(columns, values)
            shown.append((place, normal_form(row["product"])))
            clip = _clip(path, place, row, files)
            other = places.setdefault(clip._replace(film="", place=""), place)
            if other != place:
                raise ValueError(f"found the same part of {row['clip']!r} with {_shown(clip)} in {other}, expected one")
            clips.append(clip)
        except ValueError as error:
            wrong.append(f"{place}: {error}")
    wrong += [
        f"{own.second.place}: found {_shown(own.second)} where {own.first.place} has {_shown(own.first)} ({own}); "
        "expected parts that do not overlap"
        for own in _overlaps(clips, lambda clip: bool(clip.product))
    ]
    are, them = ("line is", "it") if len(wrong) == 1 else ("lines are", "them")
    title = f"{path}: {len(wrong)} {are} wrong; correct {them} and run the same command again:"
    found = listed(title, wrong) if wrong else ""
    unknown = "" if products is None else _unknown(shown, products, index)
    if found or unknown:
        raise DataError("\n".join(filter(None, (found, unknown))))
    if not clips:
        raise DataError(f"{path}: found no clip, expected a line for each")
    if overlaps := _overlaps([clip for clip in clips if clip.product], lambda clip: clip.product):
        some = overlaps[0]
        logger.warning(
            "%s: %s, such as %s of %s and %s of %s (%s); correct the times unless both are shown at once",
            path,
            "a part overlaps one with another product"
            if len(overlaps) == 1
            else f"{len(overlaps)} parts overlap one with another product",
            *(repr(some.first.product), some.first.place, repr(some.second.product), some.second.place, some),
        )
    return clips


def require_products(clips: Sequence[Clip], products: Collection[str], index: object) -> None:
    """Checks that the products of all clips are in an index.

    Raises:
        DataError: naming all lines whose product is not.
    """
    if found := _unknown([(clip.place, clip.product) for clip in clips], products, index):
        raise DataError(found)


def refuse(wrong: Sequence[str], title: str) -> None:
    """Raises an error that lists what is wrong, if anything is.

    Raises:
        DataError: there is something in the list.
    """
    if wrong:
        raise DataError(listed(title, wrong))


def _unknown(shown: Iterable[tuple[str, str]], products: Collection[str], index: object) -> str:
    """The places whose products an index does not have; "" = it has all."""
    wrong: list[str] = []
    for place, product in shown:
        if product and product not in products:
            # Only for those that are listed, since the search takes long in a large index.
            similar = difflib.get_close_matches(product, products, n=1) if len(wrong) < NUM_LISTED else []
            wrong.append(
                f"{place}: found the product {product!r}, expected the id of one in {index}"
                + (f", such as {similar[0]!r}" if similar else "")
            )
    show = "1 clip shows a product" if len(wrong) == 1 else f"{len(wrong)} clips show products"
    title = (
        f"{show} that the index does not have; correct the ids, index the products, or leave the column empty if the "
        "clip shows none of the shop's:"
    )
    return listed(title, wrong) if wrong else ""


class _Overlap(NamedTuple):
    """Two parts of a video that overlap and differ in what they show, in the order of the lines."""

    first: Clip
    second: Clip

    def __str__(self) -> str:
        ends = [clip.end for clip in self if clip.end is not None]
        start, end = max(clip.start for clip in self), f"{min(ends):g}" if ends else "the end"
        return f"{self.first.path.name} from second {start:g} to {end}"


def _overlaps(clips: Sequence[Clip], shows: Callable[[Clip], Hashable]) -> list[_Overlap]:
    """For each part that overlaps an earlier one which shows something else, itself and one of these."""
    found = []
    latest: list[tuple[int, Clip]] = []  # the part that ends last so far, and that of those that show something else
    for number, clip in sorted(enumerate(clips), key=lambda pair: (str(pair[1].path), pair[1].start)):
        latest = [own for own in latest if own[1].path == clip.path]
        other = next((own for own in latest if shows(own[1]) != shows(clip) and _end(own[1]) > clip.start), None)
        if other:
            (_, first), (_, second) = sorted((other, (number, clip)), key=lambda own: own[0])
            found.append(_Overlap(first, second))
        last, *rest = sorted([*latest, (number, clip)], key=lambda own: -_end(own[1]))
        latest = [last, *[own for own in rest if shows(own[1]) != shows(last[1])][:1]]
    return found


def _end(clip: Clip) -> float:
    return math.inf if clip.end is None else clip.end


def _shown(clip: Clip) -> str:
    return f"the product {clip.product!r}" if clip.product else "no product"


def seconds(text: str) -> float:
    """A time in seconds, of "75", "75.5", "1:15", or "1:02:03.5".

    Raises:
        ValueError: it is none of them.
    """
    parts = text.strip().replace(",", ".").split(":")
    try:
        if text.strip().startswith("-") or "_" in text:  # Python would read "-0:01" as 1 and "1_0" as 10
            raise ValueError
        whole, last = [int(part) for part in parts[:-1]], float(parts[-1])
        if len(parts) > 3 or not all(0 <= part < 60 for part in [*whole[1:], *([last] if whole else [])]):
            raise ValueError
        if not 0 <= last < float("inf") or (whole and whole[0] < 0):
            raise ValueError
        rest = sum(part * 60**power for power, part in enumerate(reversed(whole), start=1))
        total = float(rest + Fraction(parts[-1]))  # rounded once, so that 1:01.029 is the same time as 61.029
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r}, expected seconds, m:ss, or h:mm:ss, 0 or more") from None
    return total


def _clip(path: Path, place: str, row: dict[str, str], files: dict[str, str]) -> Clip:
    if not row["clip"]:
        raise ValueError("found no clip, expected the path of a video")
    if "\0" in row["clip"]:
        raise ValueError(f"found the clip {row['clip']!r}, expected a path without a null character")
    times = {}
    for name in ("start", "end"):
        if text := row.get(name, ""):
            try:
                times[name] = seconds(text)
            except ValueError as error:
                raise ValueError(f"{name}: found {error}") from None
    start, end = times.get("start", 0.0), times.get("end")
    if end is not None and end <= start:
        raise ValueError(f"found the end {row['end']!r}, expected one after the start {row.get('start') or '0'!r}")
    written = files.setdefault(os.path.realpath(path.parent / row["clip"]), row["clip"])
    # As it is written, so that the division of films is the same wherever the labels lie.
    return Clip(path.parent / written, normal_form(row["product"]), start, end, row.get("film") or written, place)


def _columns(path: Path, line: int, names: Sequence[str]) -> list[str]:
    """The names of the columns, in lower case."""
    columns = [name.lower() for name in names]
    if any(columns.count(name) != 1 for name in REQUIRED) or any(columns.count(name) > 1 for name in OPTIONAL):
        raise DataError(
            f"{path}:{line}: found the columns {', '.join(map(repr, names)) or 'of an empty file'}, expected "
            f"{COLUMNS}, each once"
        )
    return columns


def _row(columns: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    """The values of a line by their column."""
    if any(values[len(columns) :]):  # spreadsheets add empty ones
        raise ValueError(f"found {len(values)} values, expected {len(columns)}")
    return dict.fromkeys(columns, "") | dict(zip(columns, values, strict=False))

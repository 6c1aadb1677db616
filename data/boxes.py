"""Boxes: four numbers in a file's own unit, made relative to their frame."""

import math
from collections.abc import Iterable

import tensorflow_datasets as tfds

from data.errors import FormatError, Unusable

Box = tuple[float, float, float, float]  # x1, y1, x2, y2, in the file's own unit

PIXELS, NORMALISED = "pixels", "normalised"
LARGEST_NORMALISED = 1.5  # no box of a real product ends within two pixels of the frame's corner
OUTSIDE_TOLERANCE = 0.05  # of the frame's side: rounding and loose boxes are cut, more is a flaw of the data


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


def detect_units(boxes: Iterable[Box]) -> str:
    """Tells whether boxes are in pixels or normalised to 0..1, by their largest coordinate."""
    largest = max((max(box) for box in boxes), default=0.0)
    return NORMALISED if largest <= LARGEST_NORMALISED else PIXELS


def relative_box(box: Box, units: str, size: tuple[int, int], where: str) -> tfds.features.BBox:
    """Returns a box relative to its frame.

    Args:
        box: x1, y1, x2, y2; all zeros = none.
        units: PIXELS of the original frame, or NORMALISED.
        size: width and height of the original frame in pixels.
        where: place in the raw file, for errors.

    Returns:
        ymin, xmin, ymax, xmax in 0..1; all zeros = none.

    Raises:
        FormatError: the box is in the other unit.
        Unusable: the box leaves the frame by more than OUTSIDE_TOLERANCE of its side, or has no area.
    """
    if any(box) and detect_units([box]) != units:
        raise FormatError(
            where,
            f"box {list(box)}",
            f"a box in the unit of the file, {units}",
            "mend the row, or tell the unit with --option box_units=pixels|normalised if the whole file was misjudged",
        )
    width, height = size if units == PIXELS else (1, 1)
    x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    if min(x1, y1) < -OUTSIDE_TOLERANCE or max(x2, y2) > 1 + OUTSIDE_TOLERANCE:
        raise Unusable("outside the frame")
    x1, y1, x2, y2 = (min(max(x, 0.0), 1.0) for x in (x1, y1, x2, y2))
    if any(box) and (x1 == x2 or y1 == y2):
        raise Unusable("no area")
    return tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2)

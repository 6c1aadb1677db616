"""Boxes in a file's own unit, pixels or 0..1, and their conversion to shares of the frame."""

import math
from collections.abc import Iterable

import tensorflow_datasets as tfds

from .errors import FormatError, Unusable

Box = tuple[float, float, float, float]  # x1, y1, x2, y2, in the file's own unit

PIXELS, NORMALIZED = "pixels", "normalized"
LARGEST_NORMALIZED = 1.5  # a box in pixels with no larger coordinate would be too small for a product
OUTSIDE_TOLERANCE = 0.05  # share of the frame's side by which a box may exceed the frame and be clipped


def parse_box(value: object, where: str) -> Box:
    """Checks that a value is a box and returns it: four finite numbers x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1.

    Args:
        value: what the file holds.
        where: place in the file, for errors.

    Raises:
        FormatError: the value is not a box.
    """
    numbers = value if isinstance(value, list | tuple) and len(value) == 4 else ()
    if not numbers or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise FormatError(where, repr(value), "four numbers x1, y1, x2, y2", "fix the row")
    x1, y1, x2, y2 = (float(x) for x in numbers)
    if x2 < x1 or y2 < y1:
        raise FormatError(
            where,
            f"box {value}",
            "x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1",
            "fix the row; if all rows are like this, the boxes may be x, y, width, height",
        )
    return x1, y1, x2, y2


def detect_units(boxes: Iterable[Box]) -> str:
    """Returns PIXELS or NORMALIZED, depending on the largest coordinate of the boxes.

    Source: data/lpr4m/README.md, "Boxes".
    """
    largest = max((max(box) for box in boxes), default=0.0)
    return NORMALIZED if largest <= LARGEST_NORMALIZED else PIXELS


def relative_box(box: Box, units: str, size: tuple[int, int], where: str) -> tfds.features.BBox:
    """Converts a box to shares of its frame.

    Args:
        box: x1, y1, x2, y2; all zeros = no box.
        units: PIXELS of the original frame, or NORMALIZED.
        size: width and height of the original frame in pixels.
        where: place in the raw file, for errors.

    Returns:
        ymin, xmin, ymax, xmax in 0..1; all zeros = no box.

    Raises:
        FormatError: the box is in the other unit.
        Unusable: the box exceeds the frame by more than OUTSIDE_TOLERANCE of its side, or has no area.
    """
    if any(box) and detect_units([box]) != units:
        raise FormatError(
            where,
            f"box {list(box)}",
            f"a box in the unit of the file, {units}",
            "fix the row, or set the unit of the whole file with --option box_units=pixels or box_units=normalized",
        )
    width, height = size if units == PIXELS else (1, 1)
    x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    if min(x1, y1) < -OUTSIDE_TOLERANCE or max(x2, y2) > 1 + OUTSIDE_TOLERANCE:
        raise Unusable("outside the frame")
    x1, y1, x2, y2 = (min(max(x, 0.0), 1.0) for x in (x1, y1, x2, y2))
    if any(box) and (x1 == x2 or y1 == y2):
        raise Unusable("no area")
    return tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2)


def box_as_shown(box: tfds.features.BBox, orientation: int) -> tfds.features.BBox:
    """Turns a box of the stored pixels with its picture.

    Args:
        box: in shares of the stored picture; all zeros = no box.
        orientation: EXIF's number for how a viewer turns the stored pixels, 1..8.

    Returns:
        The box in shares of the picture as a viewer shows it; all zeros = no box.
    """
    (left, right), (top, bottom) = (box.xmin, box.xmax), (box.ymin, box.ymax)
    if not any(box):
        return box
    if orientation in (2, 3, 7, 8):
        left, right = 1 - right, 1 - left
    if orientation in (3, 4, 6, 7):
        top, bottom = 1 - bottom, 1 - top
    if orientation in (5, 6, 7, 8):
        (left, right), (top, bottom) = (top, bottom), (left, right)
    return tfds.features.BBox(ymin=top, xmin=left, ymax=bottom, xmax=right)

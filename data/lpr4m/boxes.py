"""Boxes: which unit a file is in, relative coordinates, and the three types of a query that follow from them."""

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow_datasets as tfds

from data.errors import FormatError, Unusable
from data.lpr4m.values import Box

PIXELS, NORMALISED = "pixels", "normalised"
LARGEST_NORMALISED = 1.5  # no box of a real product ends within two pixels of the frame's corner
OUTSIDE_TOLERANCE = 0.05  # of the frame's side: rounding and loose boxes are cut, more is a flaw of the data


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
        Unusable: the box leaves the frame by more than OUTSIDE_TOLERANCE of its side.
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
    return tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2)


def clip_types(frames: Sequence[Sequence[tfds.features.BBox]]) -> dict[str, str]:
    """Returns a clip's scale, duration and number type.

    Args:
        frames: boxes of each annotated frame, the intended product's first; none when it is out of view.

    Returns:
        `scale` by the mean area share of the intended product's box, `duration` by the share of frames with a box,
        `number` by the mean number of boxes in such frames; '' where there is nothing to measure.

    Source: RICE.md section 8.
    """
    visible = [boxes for boxes in frames if boxes]
    types = {"scale": "", "duration": "", "number": ""}
    if frames:
        types["duration"] = _level(len(visible) / len(frames), 0.4, 0.7, ("short", "medium", "long"))
    if visible:
        areas = [(boxes[0].ymax - boxes[0].ymin) * (boxes[0].xmax - boxes[0].xmin) for boxes in visible]
        types["scale"] = _level(np.mean(areas), 0.2, 0.4, ("small", "medium", "large"))
        types["number"] = _level(np.mean([len(boxes) for boxes in visible]), 3, 7, ("few", "medium", "abundant"))
    return types


def _level(value: float, low: float, high: float, names: tuple[str, str, str]) -> str:
    return names[0] if value <= low else names[1] if value <= high else names[2]

"""Derives the scale, duration and number type of a test clip from its boxes."""

from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds


def clip_types(frames: Sequence[Sequence[tfds.features.BBox]]) -> dict[str, str]:
    """Returns a clip's scale, duration and number type.

    Args:
        frames: the boxes of each annotated frame, the intended product's first; empty if it is out of view.

    Returns:
        `scale` follows from the mean area of the intended product's box as a share of the frame, `duration` from the
        share of frames with a box, `number` from the mean number of boxes in such frames. A type is '' if there is
        nothing to measure.

    Source: docs/reference.md, section 8.
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


def _level(value: float | np.floating, low: float, high: float, names: tuple[str, str, str]) -> str:
    return names[0] if value <= low else names[1] if value <= high else names[2]

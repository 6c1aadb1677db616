"""The intended product's box in a frame: the data set's own box, or the best box in a file of detections."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, UInt64

from rice_jax.config import InputConfig
from rice_jax.input.transforms import Box
from rice_jax.types import DataError


def stored_boxes(row: dict) -> list[Box | None]:
    """The intended product's box in each frame of a row, or None; `frame_boxes` describes the row."""
    return [boxes[0] if boxes else None for boxes in frame_boxes(row)]


def frame_boxes(row: dict) -> list[list[Box]]:
    """All stored boxes of each frame of a row, the intended product's first.

    Args:
        row: row of a data set with `frames` and, if there are any boxes, `boxes` [n, 4]: top, left, bottom, right (the
            order of TFDS) in shares of the frame as a viewer shows it. Training rows have one box per frame. Queries
            have any number of boxes, and `box_frame` [n] holds the frame of each. Boxes without area, such as zeros,
            are left out.
    """
    found: list[list[Box]] = [[] for _ in row["frames"]]
    boxes = row.get("boxes", ())
    frames = row.get("box_frame", range(len(boxes)))
    for frame, (top, left, bottom, right) in zip(frames, map(np.ndarray.tolist, boxes), strict=True):
        if left < right and top < bottom:
            found[frame].append(Box(left, top, right, bottom))
    return found


class ProductBoxes:
    """The intended product's boxes in the frames of a row, from the source that `config.model.ipd` names.

    Attributes:
        features: columns of the data set that the lookup reads.
    """

    def __init__(self, config: InputConfig, path: str, own: tuple[str, ...]):
        """Reads the file, if there is one.

        Args:
            config: `ipd` and `box_min_score` are read.
            path: file that `rice detect` wrote (`read_box_file`); "" = the data set's own boxes.
            own: columns that hold the data set's own boxes.

        Raises:
            DataError: a line of the file is wrong; the message names it.
            FileNotFoundError: the file is missing.
        """
        self._ipd, self._path = config.ipd, path
        self.features: tuple[str, ...] = ()
        if config.ipd != "off":
            self.features = ("frame_ids",) if path else own
            if path:
                self._keys, self._boxes = read_box_file(path, config.box_min_score)

    def of(self, row: dict, frames: Int[np.ndarray, " K"]) -> list[Box | None]:
        """The box of each chosen frame of a row, or None.

        Raises:
            DataError: the detector's file lacks a frame.
        """
        if self._ipd == "off" or not len(frames):  # padding has no row
            return [None] * len(frames)
        if self._path:
            return [self._find(row["frame_ids"][frame]) for frame in frames]
        boxes = stored_boxes(row)
        return [boxes[frame] for frame in frames]

    def _find(self, frame_id: bytes) -> Box | None:
        key = _key(frame_id)
        place = np.searchsorted(self._keys, key)
        if place < len(self._keys) and self._keys[place] == key:
            box = self._boxes[place].tolist()
            return Box(*box) if any(box) else None
        if self._ipd == "detector":  # a detector processes every frame; boxes from other sources may cover only some
            raise DataError(
                f"{self._path}: found no line for frame {frame_id.decode()}, expected a line for every frame of the "
                "data set; run rice detect on that data set until it completes"
            )
        return None


def read_box_file(path: str, min_score: float) -> tuple[UInt64[np.ndarray, " F"], Float32[np.ndarray, "F 4"]]:
    """Reads the box with the highest score of each frame: one product is intended.

    Args:
        path: file of JSON lines `{"frame_id": str, "boxes": [[left, top, right, bottom], …], "scores": [0..1, …]}`,
            with edges in shares of the frame, and no boxes if the detector found none. Boxes without `scores` have 1.
        min_score: boxes with a lower score are ignored.

    Returns:
        Ascending 8-byte keys of the frame ids, uint64 [F], and boxes float32 [F, 4], all zeros = none. They take 24
        bytes per frame, in each Grain worker.

    Raises:
        DataError: a line is wrong, or a frame has several; the message names the line and what was expected.
        FileNotFoundError: the file is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: found no file of boxes; rice detect writes one")
    frame_keys, best_boxes = [], []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                frame_id, best = _parse(line, min_score)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(
                    f"{path}:{number}: {error!r} in {line[:200]!r}; expected "
                    '{"frame_id": "…", "boxes": [[left, top, right, bottom], …], "scores": [0..1, …]} with edges in '
                    "shares of the frame, 0 to 1, left < right and top < bottom; run rice detect again"
                ) from error
            frame_keys.append(_key(frame_id))
            best_boxes.append(best)
    boxes = np.array(best_boxes, np.float32).reshape(-1, 4)
    keys, first = np.unique(np.array(frame_keys, np.uint64), return_index=True)
    if len(keys) < len(boxes):
        raise DataError(
            f"{path}: found {len(boxes)} lines for {len(keys)} frames, expected one line per frame; delete repeats"
        )
    return keys, boxes[first]


def _parse(line: bytes, min_score: float) -> tuple[bytes, tuple[float, ...]]:
    found = json.loads(line)
    boxes, frame_id = found["boxes"], found["frame_id"].encode()
    scores = found.get("scores", [1.0] * len(boxes))
    best, best_score = (0.0, 0.0, 0.0, 0.0), -math.inf
    for box, score in zip(boxes, scores, strict=True):
        left, top, right, bottom = map(float, box)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # also false for NaN
            raise ValueError(f"box {box}")
        if not 0 <= score <= 1:
            raise ValueError(f"score {score}")
        if score >= min_score and score > best_score:
            best, best_score = (left, top, right, bottom), score
    return frame_id, best


def _key(frame_id: bytes) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(frame_id, digest_size=8).digest(), "<u8")[0]

"""Where the intended product is in a frame: the data set's own box, or the best one of a file of detections."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
from jaxtyping import Int

from rice_jax.config import InputConfig
from rice_jax.input.transforms import Box
from rice_jax.types import DataError


def stored_boxes(row: dict) -> list[Box | None]:
    """The intended product's box in each of a row's frames, or None; `row` as of `frame_boxes`."""
    return [boxes[0] if boxes else None for boxes in frame_boxes(row)]


def frame_boxes(row: dict) -> list[list[Box]]:
    """All boxes that a data set holds of each of a row's frames, the intended product's first.

    Args:
        row: of a data set with `boxes` [n, 4] (top, left, bottom, right, as TFDS stores them), in shares of the frame.
            Training rows have one per frame, all zeros = none. Queries have any number, `box_frame` [n] tells the frame
            of each. Without `boxes` no frame has one. A box without area is none.
    """
    found: list[list[Box]] = [[] for _ in row["frames"]]
    boxes = row.get("boxes", ())
    frames = row.get("box_frame", range(len(boxes)))
    for frame, (top, left, bottom, right) in zip(frames, map(np.ndarray.tolist, boxes), strict=True):
        if left < right and top < bottom:
            found[frame].append(Box(left, top, right, bottom))
    return found


class ProductBoxes:
    """Looks up the boxes of a row's frames where `config.model.ipd` says that they come from; "off" = nowhere."""

    def __init__(self, config: InputConfig, path: str, own: tuple[str, ...]):
        """Reads the file, if there is one.

        Args:
            config: `ipd`, and the lowest score that counts.
            path: what `--mode=detect` wrote (`read_box_file`); "" = the data set's own boxes.
            own: features of the data set, beyond those read anyway, that hold its own boxes.

        Raises:
            DataError: naming the line, for one that cannot be used.
            FileNotFoundError: there is no such file.
        """
        self._ipd, self._path = config.ipd, path
        self.features: tuple[str, ...] = ()  # to be read of every row
        if config.ipd != "off":
            self.features = ("frame_ids",) if path else own
            self._keys, self._boxes = read_box_file(path, config.box_min_score) if path else (None, None)

    def of(self, row: dict, frames: Int[np.ndarray, " K"]) -> list[Box | None]:
        """One box, or None, of each of the chosen frames of a row.

        Raises:
            DataError: the detector has not seen a frame.
        """
        if self._ipd == "off" or not len(frames):  # what fills up a batch is no row and has none
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
        if self._ipd == "detector":  # it sees every frame; boxes from elsewhere may be of some frames only
            raise DataError(
                f"{self._path}: found nothing about frame {frame_id.decode()}, expected a line for every frame of the "
                "data set; run --mode=detect over that data set, to its end"
            )
        return None


def read_box_file(path: str, min_score: float) -> tuple[np.ndarray, np.ndarray]:
    """Reads boxes by frame, of which the one with the highest score is kept: one product is intended.

    Args:
        path: JSON lines `{"frame_id": str, "boxes": [[left, top, right, bottom], …], "scores": [0..1, …]}`, edges in
            shares of the frame, no boxes where nothing was found. Without `scores` all have 1.
        min_score: boxes with less do not count.

    Returns:
        Ascending 8-byte keys of the frame ids, uint64 [F], and boxes float32 [F, 4], all zeros = none: 24 bytes a
        frame, shared by nobody: each Grain worker has its own.

    Raises:
        DataError: naming the line and what was expected.
        FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: found no file of boxes; --mode=detect writes one")
    keys, boxes = [], []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                frame_id, best = _parse(line, min_score)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(
                    f"{path}:{number}: {error!r} in {line[:200]!r}; expected "
                    '{"frame_id": "…", "boxes": [[left, top, right, bottom], …], "scores": [0..1, …]} with edges in '
                    "shares of the frame, 0 to 1, left < right and top < bottom; run --mode=detect again"
                ) from error
            keys.append(_key(frame_id))
            boxes.append(best)
    keys, boxes = np.array(keys, np.uint64), np.array(boxes, np.float32).reshape(-1, 4)
    keys, first = np.unique(keys, return_index=True)
    if len(keys) < len(boxes):
        raise DataError(
            f"{path}: found {len(boxes)} lines of {len(keys)} frames, expected one a frame; remove the repeated ones"
        )
    return keys, boxes[first]


def _parse(line: str, min_score: float) -> tuple[bytes, tuple[float, ...]]:
    found = json.loads(line)
    boxes, frame_id = found["boxes"], found["frame_id"].encode()
    scores = found.get("scores", [1.0] * len(boxes))
    best, best_score = (0.0, 0.0, 0.0, 0.0), -math.inf
    for box, score in zip(boxes, scores, strict=True):
        left, top, right, bottom = map(float, box)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # False for NaN, too
            raise ValueError(f"box {box}")
        if not 0 <= score <= 1:
            raise ValueError(f"score {score}")
        if score >= min_score and score > best_score:
            best, best_score = (left, top, right, bottom), score
    return frame_id, best


def _key(frame_id: bytes) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(frame_id, digest_size=8).digest(), "<u8")[0]

"""COCO's average precision and recall of boxes of one class, and the share of pictures whose best box is correct.

Source: pycocotools' `COCOeval` (evaluateImg, accumulate, summarize); the numbers are equal (tests/eval/test_coco.py).
Differs: all pictures at once; one class, no crowds; sizes are shares of the picture, like boxes; None instead of -1 for
a metric without a true box.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

Size = tuple[float, float]  # smallest and largest area, as shares of the picture

METRICS = ("AP", "AP50", "AP75", "AP-small", "AP-medium", "AP-large", "AR", "top-1")  # of `evaluate`, by default
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU
RECALL_POINTS = np.linspace(0, 1, 101)
ANY_SIZE: Size = (0.0, np.inf)
# The product scales of docs/reference.md, section 8. COCO's own sizes, 32² and 96² pixels, are for other pictures.
SIZES: dict[str, Size] = {"small": (0.0, 0.2), "medium": (0.2, 0.4), "large": (0.4, np.inf)}


def evaluate(
    boxes: Float[np.ndarray, "F Q 4"],
    scores: Float[np.ndarray, "F Q"],
    truths: Float[np.ndarray, "F M 4"],
    truth_mask: Bool[np.ndarray, "F M"],
    sizes: Mapping[str, Size] = SIZES,
) -> dict[str, float | None]:
    """Compares the boxes found in F pictures with the true boxes.

    Args:
        boxes: found boxes as left, top, right, bottom; Q per picture.
        scores: of the found boxes, in any order; -inf = no box.
        truths: true boxes; M per picture.
        truth_mask: True = a box, False = padding.
        sizes: {name: areas of the true boxes of that size}.

    Returns:
        `AP`, mean of the average precisions at the IoU thresholds 0.5, 0.55, … 0.95; `AP50` and `AP75`, at one of them;
        `AP-NAME`, AP of each size; `AR`, mean recall over the thresholds; `top-1`, share of the pictures with a true
        box in which the box with the highest score has an IoU of at least 0.5 with one. All are 0 to 1, or None if
        there is no true box.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    scores = np.take_along_axis(scores, order, axis=1)
    boxes = np.take_along_axis(boxes, order[..., None], axis=1).astype(np.float64)
    truths = truths.astype(np.float64)
    overlaps = np.where(truth_mask[:, None], pairwise_iou(boxes, truths), -1)
    found = boxes, scores, overlaps
    precision, recall = _precision_recall(*found, truth_mask, truth_mask, ANY_SIZE)
    result = {"AP": _mean(precision), "AP50": _mean(precision[:1]), "AP75": _mean(precision[5:6])}
    for name, size in sizes.items():
        asked = truth_mask & _has_size(truths, size)
        result[f"AP-{name}"] = _mean(_precision_recall(*found, truth_mask, asked, size)[0])
    hit = (overlaps[:, 0] >= THRESHOLDS[0]).any(axis=1) & (scores[:, 0] > -np.inf)
    return result | {"AR": _mean(recall), "top-1": _mean(hit[truth_mask.any(axis=1)])}


def pairwise_iou(a: Float[np.ndarray, "F Q 4"], b: Float[np.ndarray, "F M 4"]) -> Float[np.ndarray, "F Q M"]:
    """IoU of each pair of boxes in a picture; 0 if neither has an area."""
    low = np.maximum(a[:, :, None, :2], b[:, None, :, :2])
    high = np.minimum(a[:, :, None, 2:], b[:, None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    union = _area(a)[:, :, None] + _area(b)[:, None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _precision_recall(
    boxes: Float[np.ndarray, "F Q 4"],
    scores: Float[np.ndarray, "F Q"],
    overlaps: Float[np.ndarray, "F Q M"],
    truth_mask: Bool[np.ndarray, "F M"],
    asked: Bool[np.ndarray, "F M"],
    size: Size,
) -> tuple[Float[np.ndarray, "K 101"], Float[np.ndarray, " K"]]:
    """Precision at each point of recall, and the largest recall, for the K thresholds; both empty if `asked` is.

    Only the true boxes in `asked` can be missed. A found box does not count if it matches another true box, or if it
    matches none and does not have the size.
    """
    if not asked.any():
        return np.empty((0, len(RECALL_POINTS))), np.empty(0)
    matched, ignored = _match(overlaps, scores, truth_mask, asked)
    ignored |= ~matched & ~_has_size(boxes, size)[:, :, None]
    order = np.argsort(-scores, axis=None, kind="stable")
    order = order[scores.ravel()[order] > -np.inf]
    precisions, recalls = [], []
    for threshold in range(len(THRESHOLDS)):
        hit, counts = matched[..., threshold].ravel()[order], ~ignored[..., threshold].ravel()[order]
        hits, misses = np.cumsum(hit & counts), np.cumsum(~hit & counts)
        recall = hits / asked.sum()
        precision = np.maximum.accumulate((hits / (hits + misses + np.spacing(1)))[::-1])[::-1]
        places = np.searchsorted(recall, RECALL_POINTS, side="left")
        precisions.append(np.append(precision, 0.0)[places])  # precision is 0 at a recall that is not reached
        recalls.append(recall[-1] if len(recall) else 0.0)
    return np.array(precisions), np.array(recalls)


def _match(
    overlaps: Float[np.ndarray, "F Q M"],
    scores: Float[np.ndarray, "F Q"],
    truth_mask: Bool[np.ndarray, "F M"],
    asked: Bool[np.ndarray, "F M"],
) -> tuple[Bool[np.ndarray, "F Q K"], Bool[np.ndarray, "F Q K"]]:
    """Found boxes that match a true box at each threshold, and those of them whose match is not in `asked`.

    In the order of their scores, found boxes take the free true box with the largest overlap, those in `asked` before
    any others; of equal overlaps, the last one.
    """
    pictures, queries, num_truths = overlaps.shape
    matched, ignored = np.zeros((2, pictures, queries, len(THRESHOLDS)), bool)
    left = np.repeat(truth_mask[:, None], len(THRESHOLDS), axis=1)  # [F, K, M]
    enough = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    for query in range(queries):
        overlap = overlaps[:, None, query]
        candidates = left & (overlap >= enough) & (scores[:, query] > -np.inf)[:, None, None]
        first = candidates & asked[:, None]
        candidates = np.where(first.any(axis=2, keepdims=True), first, candidates)
        chosen = num_truths - 1 - np.argmax(np.where(candidates, overlap, -1)[..., ::-1], axis=2)
        matched[:, query] = candidates.any(axis=2)
        ignored[:, query] = matched[:, query] & ~np.take_along_axis(asked, chosen, axis=1)
        left &= ~(matched[:, query][..., None] & (np.arange(num_truths) == chosen[..., None]))
    return matched, ignored


def _has_size(boxes: Float[np.ndarray, "*B 4"], size: Size) -> Bool[np.ndarray, "*B"]:
    return (_area(boxes) >= size[0]) & (_area(boxes) <= size[1])


def _area(boxes: Float[np.ndarray, "*B 4"]) -> Float[np.ndarray, "*B"]:
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None

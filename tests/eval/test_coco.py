import contextlib
import io

import numpy as np
import pytest

from rice_jax.eval.coco import evaluate, pairwise_iou

SIZES = {"small": (0.0, 0.05), "medium": (0.05, 0.2), "large": (0.2, 1e5)}
# What pycocotools 2.0.11 said of `scene(seed)`, for machines without it.
RECORDED = {
    0: [0.047079672, 0.129705653, 0.017053274, 0.019773772, 0.066879158, 0.017930543, 0.196590909],
    1: [0.067316888, 0.155926028, 0.050791872, 0.016571126, 0.092481683, 0.175857663, 0.247560976],
    2: [0.050487059, 0.107778548, 0.050348131, 0.020246593, 0.068753047, 0.252222869, 0.215189873],
}


def scene(seed):
    """Random pictures: true boxes, boxes near them and anywhere, equal scores, pictures without either."""
    rng = np.random.default_rng(seed)
    pictures, queries, truths = 40, 8, 4

    def some(*shape):
        low = rng.uniform(0, 0.7, (*shape, 2))
        return np.concatenate([low, low + rng.uniform(0.05, 0.6, (*shape, 2))], axis=-1).clip(0, 1)

    true = some(pictures, truths)
    true_mask = np.arange(truths) < rng.integers(0, truths + 1, (pictures, 1))
    near = true[np.arange(pictures)[:, None], rng.integers(0, truths, (pictures, queries))]
    near = near + rng.normal(0, 0.03, near.shape)
    boxes = np.where(rng.random((pictures, queries, 1)) < 0.6, near, some(pictures, queries))
    boxes = np.concatenate([boxes[..., :2], np.maximum(boxes[..., 2:], boxes[..., :2] + 0.01)], axis=-1)
    scores = np.round(rng.random((pictures, queries)), 2)
    scores[np.arange(queries) >= rng.integers(0, queries + 1, (pictures, 1))] = -np.inf
    return boxes, scores, true, true_mask


def pycocotools(boxes, scores, truths, truth_mask):
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")

    def wide(box):
        x1, y1, x2, y2 = map(float, box)
        return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "category_id": 1}

    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = coco.COCO(), coco.COCO()
        images = [{"id": picture} for picture in range(len(boxes))]
        for api, values, mask in ((truth, truths, truth_mask), (found, boxes, scores > -np.inf)):
            lines = [(picture, place) for picture, place in zip(*np.nonzero(mask), strict=True)]
            api.dataset = {
                "images": images,
                "categories": [{"id": 1}],
                "annotations": [
                    wide(values[line]) | {"id": number, "image_id": int(line[0]), "iscrowd": 0}
                    | ({"score": float(scores[line])} if api is found else {})
                    for number, line in enumerate(lines, start=1)
                ],
            }  # fmt: skip
            api.createIndex()
        judge = cocoeval.COCOeval(truth, found, "bbox")
        judge.params.areaRng = [[0, 1e5], *map(list, SIZES.values())]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    names = {"AP": 0, "AP50": 1, "AP75": 2, "AP-small": 3, "AP-medium": 4, "AP-large": 5, "AR": 8}
    return {name: float(judge.stats[place]) for name, place in names.items()}


@pytest.mark.parametrize("seed", range(6))
def test_numbers_are_those_of_pycocotools(seed):
    found = evaluate(*scene(seed), sizes=SIZES)
    for name, value in pycocotools(*scene(seed)).items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("seed", RECORDED)
def test_numbers_are_those_that_pycocotools_said(seed):
    found = evaluate(*scene(seed), sizes=SIZES)
    assert [found[name] for name in ("AP", "AP50", "AP75", "AP-small", "AP-medium", "AP-large", "AR")] == (
        pytest.approx(RECORDED[seed], abs=1e-6)
    )


def one(boxes, scores, truths):
    """Pictures with a box and a true box each."""
    arrays = np.array(boxes, float), np.array(scores, float), np.array(truths, float)
    return evaluate(arrays[0][:, None], arrays[1][:, None], arrays[2][:, None], np.ones((len(boxes), 1), bool))


def test_by_hand():
    whole, left = [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.6, 1.0]
    result = one([whole, left], [0.9, 0.8], [whole, whole])
    # IoU 1 and 0.6: both found at 0.5, 0.55 and 0.6, only the first at the seven others: 51 of 101 points of recall.
    assert result["AP50"] == pytest.approx(1) and result["AP75"] == pytest.approx(51 / 101)
    assert result["AP"] == pytest.approx((3 + 7 * 51 / 101) / 10)
    assert result["AR"] == pytest.approx((3 + 7 / 2) / 10) and result["top-1"] == 1
    assert result["AP-large"] == result["AP"] and result["AP-small"] is None and result["AP-medium"] is None

    # The wrong one first: precision 0, then 1/2.
    result = one([whole, [0.0, 0.0, 0.4, 1.0]], [0.5, 0.6], [whole, whole])
    assert result["AP50"] == pytest.approx(0.5 * 51 / 101) and result["top-1"] == 0.5


def test_a_second_box_on_the_same_truth_is_wrong():
    box = np.array([[[0.1, 0.1, 0.5, 0.5]] * 2])
    result = evaluate(box, np.array([[0.3, 0.9]]), box[:, :1], np.ones((1, 1), bool))
    assert result["AP"] == pytest.approx(1) and result["AR"] == 1, "the better one is found first"
    result = evaluate(box[:, [0, 0, 0]], np.array([[0.9, 0.8, 0.7]]), box, np.ones((1, 2), bool))
    assert result["AP"] == pytest.approx(1)


def test_top_1_is_of_the_highest_score_and_of_pictures_with_a_product():
    boxes = np.tile(np.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]), (3, 1, 1))
    truths, mask = boxes[:, 1:], np.array([[True], [True], [False]])
    result = evaluate(boxes, np.array([[0.1, 0.2], [0.2, 0.1], [0.9, 0.1]]), truths, mask)
    assert result["top-1"] == 0.5
    no_box = evaluate(boxes, np.full((3, 2), -np.inf), truths, mask)
    assert no_box["top-1"] == 0 and no_box["AP"] == 0 and no_box["AR"] == 0


def test_nothing_to_find_has_no_score():
    boxes = np.zeros((2, 1, 4))
    result = evaluate(boxes, np.ones((2, 1)), boxes, np.zeros((2, 1), bool))
    assert set(result.values()) == {None}


def test_padding_changes_nothing():
    boxes, scores, truths, mask = scene(3)
    before = evaluate(boxes, scores, truths, mask)
    more = np.tile([0.0, 0.0, 1.0, 1.0], (len(boxes), 2, 1))
    none = np.full((len(boxes), 2), -np.inf)
    after = evaluate(
        np.concatenate([more, boxes], axis=1),
        np.concatenate([none, scores], axis=1),
        np.concatenate([truths, more], axis=1),
        np.concatenate([mask, none > 0], axis=1),
    )
    assert after == before


def test_iou_of_boxes_without_area_is_0():
    point = np.full((1, 1, 4), 0.5)
    assert pairwise_iou(point, point).tolist() == [[[0.0]]]

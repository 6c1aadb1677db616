import dataclasses
import json

import numpy as np
import pytest

from rice_jax.input.product_boxes import ProductBoxes, frame_boxes, stored_boxes
from rice_jax.input.transforms import Box
from rice_jax.types import DataError


def settings(config, ipd, min_score=0.5):
    return dataclasses.replace(config, ipd=ipd, box_min_score=min_score)


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def test_the_data_sets_own_boxes():
    train = {"frames": "abc", "boxes": np.float32([[0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0], [0, 0, 1, 1]])}
    assert stored_boxes(train) == [pytest.approx((0.2, 0.1, 0.4, 0.3)), None, Box(0, 0, 1, 1)]
    boxes = np.float32([[0.5, 0.5, 1, 1], [0, 0, 1, 1], [0, 0, 0.5, 0.5]])
    query = {"frames": "abc", "boxes": boxes, "box_frame": np.array([2, 2, 0])}
    assert stored_boxes(query) == [Box(0, 0, 0.5, 0.5), None, Box(0.5, 0.5, 1, 1)], "the first of each frame"
    assert stored_boxes({"frames": "ab", "boxes": np.zeros((0, 4)), "box_frame": np.zeros(0, int)}) == [None, None]


def test_all_boxes_of_a_frame():
    frames = [b""] * 3
    box, point = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.5, 0.5, 0.5])
    assert frame_boxes({"frames": frames}) == [[], [], []]
    parallel = frame_boxes({"frames": frames, "boxes": np.stack([box, np.zeros(4), point])})
    assert parallel == [[(0.2, 0.1, 0.4, 0.3)], [], []]
    listed = frame_boxes({"frames": frames, "boxes": np.stack([box, point, box]), "box_frame": [2, 2, 2]})
    assert listed == [[], [], [(0.2, 0.1, 0.4, 0.3)] * 2]


def test_the_best_box_of_a_file(tmp_path, config):
    boxes = [[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1], [0, 0, 1, 1]]
    path = write(
        tmp_path / "boxes.jsonl",
        {"frame_id": "a", "boxes": boxes, "scores": [0.6, 0.9, 0.1]},
        {"frame_id": "b", "boxes": boxes[:1], "scores": [0.4]},
        {"frame_id": "c", "boxes": [], "scores": []},
        {"frame_id": "d", "boxes": boxes[:1]},
    )
    row = {"frame_ids": [b"d", b"c", b"b", b"a"], "frames": "dcba"}
    found = ProductBoxes(settings(config, "detector"), path, ())
    assert found.features == ("frame_ids",)
    assert found.of(row, np.arange(4)) == [Box(0, 0, 0.5, 0.5), None, None, Box(0.25, 0.25, 1, 1)]
    assert found.of(row, np.array([3])) == [Box(0.25, 0.25, 1, 1)]
    assert ProductBoxes(settings(config, "detector", 0.95), path, ()).of(row, np.array([0, 3])) == [
        Box(0, 0, 0.5, 0.5),
        None,
    ]
    assert ProductBoxes(settings(config, "off"), path, ()).of(row, np.array([0, 3])) == [None, None]
    row["frame_ids"][0] = b"e"
    with pytest.raises(DataError, match=r"boxes.jsonl: found no line for frame e, expected a line for every frame"):
        found.of(row, np.arange(4))
    assert ProductBoxes(settings(config, "boxes"), path, ()).of(row, np.array([0])) == [None], (
        "given boxes may be of some frames"
    )


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        {"frame_id": "b"},
        {"boxes": []},
        {"frame_id": 3, "boxes": []},
        {"frame_id": "b", "boxes": [[0, 0, 1]]},
        {"frame_id": "b", "boxes": [[0.5, 0, 0.5, 1]]},
        {"frame_id": "b", "boxes": [[0.6, 0, 0.5, 1]]},
        {"frame_id": "b", "boxes": [[12, 30, 200, 310]]},
        {"frame_id": "b", "boxes": [[-0.1, 0, 0.5, 1]]},
        {"frame_id": "b", "boxes": [[float("nan"), 0, 0.5, 1]]},
        {"frame_id": "b", "boxes": [[0, 0, 1, 1]], "scores": []},
        {"frame_id": "b", "boxes": [[0, 0, 1, 1]], "scores": [float("nan")]},
        {"frame_id": "b", "boxes": [[0, 0, 1, 1]], "scores": ["high"]},
    ],
)
def test_a_bad_line_is_named(tmp_path, config, line):
    path = write(tmp_path / "boxes.jsonl", {"frame_id": "a", "boxes": []}, line)
    with pytest.raises(DataError, match=r"boxes.jsonl:2: .*expected \{\"frame_id\""):
        ProductBoxes(settings(config, "boxes"), path, ())


def test_a_byte_that_is_not_utf_8_is_named(tmp_path, config):
    path = tmp_path / "boxes.jsonl"
    path.write_bytes(b'{"frame_id": "a", "boxes": []}\n{"frame_id": "\xff", "boxes": []}\n')
    with pytest.raises(DataError, match=r"boxes.jsonl:2: .*expected \{\"frame_id\""):
        ProductBoxes(settings(config, "boxes"), str(path), ())


def test_a_frame_twice_and_no_file(tmp_path, config):
    path = write(tmp_path / "boxes.jsonl", *[{"frame_id": "a", "boxes": []}] * 2)
    with pytest.raises(DataError, match="found 2 lines for 1 frames, expected one line per frame"):
        ProductBoxes(settings(config, "boxes"), path, ())
    with pytest.raises(FileNotFoundError, match="nothing.jsonl: found no file of boxes; rice detect writes one"):
        ProductBoxes(settings(config, "boxes"), str(tmp_path / "nothing.jsonl"), ())

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from data.build import main as build
from rice_jax.eval.coco import METRICS
from rice_jax.eval.results import MEAN_BOX, Row, read_results
from rice_jax.input.product_boxes import read_box_file
from rice_jax.input.source import Source
from rice_jax.models.create import abstract_params, create_model, create_params
from rice_jax.pages import draw
from rice_jax.tasks import TASKS, detections
from rice_jax.tasks.detection_evaluation import DetectionEvaluator, mean_box
from rice_jax.tasks.task import Run
from rice_jax.types import DataError
from tests.data.raw_lpr4m import jpeg, write_raw
from tests.settings import small_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A detector and a tiny LPR4M, built from raw files: 8 test clips of 1 to 5 annotated frames."""
    root = tmp_path_factory.mktemp("shop")
    write_raw(root / "raw", num_train=6, queries_per_live=4)
    configs = "detection_train,detection_test,query,train"
    build(["lpr4m", "--raw_dir", str(root / "raw"), "--data_dir", str(root / "built"), "--configs", configs])
    return small_config(
        task="detection",
        model__detector__kind="clip",
        data__data_dir=str(root / "built"),
        data__train="lpr4m/detection_train",
        data__query="lpr4m/detection_test",
        data__detect="lpr4m/query",
        eval__num_frames=2,
        eval__min_score=0.4,
    )


def fresh_params(run):
    return create_params(run.model, run.mesh, seed=0)


def run_of(config, devices, workdir):
    """A detector on some devices."""
    chosen = jax.devices()[:devices]
    mesh = jax.make_mesh((devices, 1), ("data", "fsdp"), devices=chosen, axis_types=(AxisType.Auto,) * 2)
    model = TASKS["detection"].model(config)
    return Run(config, workdir, mesh, model, create_model(model, mesh), abstract_params(model, mesh))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(config, devices, directory, source="a run"):
    run = run_of(config, devices, directory)
    return detections.write_detections(run, fresh_params(run), directory, source)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    return write(config, 1, tmp_path_factory.mktemp("whole"))


def test_every_frame_has_a_line_of_boxes_that_rice_can_read(config, whole):
    frames = [frame.decode() for row in Source(config.data.data_dir, "lpr4m/query") for frame in row["frame_ids"]]
    found = lines(whole)
    assert sorted(line["frame_id"] for line in found) == sorted(frames) and len(found) > 20
    assert sum(map(len, (line["boxes"] for line in found))) > len(found)
    for line in found:
        assert line["scores"] == sorted(line["scores"], reverse=True) and min(line["scores"], default=1) >= 0.4
        boxes = np.array(line["boxes"])
        assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, :2] < boxes[:, 2:]).all()
    keys, _ = read_box_file(str(whole), 0.5)
    assert len(keys) == len(frames)
    assert not whole.with_suffix(".jsonl.partial").exists()


def test_killed_and_resumed_is_never_killed(config, whole, tmp_path, monkeypatch):
    real = detections.window_batches

    def killed(*arguments):
        for number, batch in enumerate(real(*arguments)):
            if number == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(detections, "window_batches", killed)
    for text in ('{"frame_id": "half a li', ""):
        with pytest.raises(KeyboardInterrupt):
            write(config, 1, tmp_path)
        assert not (tmp_path / whole.name).exists()
        partial = tmp_path / f"{whole.name}.partial"
        partial.write_text(partial.read_text() + text)
    so_far = len(lines(partial))
    assert 0 < so_far < len(lines(whole))
    monkeypatch.setattr(detections, "window_batches", real)
    path = write(config, 1, tmp_path)
    assert path.read_bytes() == whole.read_bytes()
    before = path.stat().st_mtime_ns
    assert write(config, 1, tmp_path) == path and path.stat().st_mtime_ns == before, "nothing is left to do"


@pytest.mark.parametrize("place", [0, 1, 7, 100, -1])
def test_a_file_cut_anywhere_is_continued_at_a_whole_batch(config, whole, tmp_path, place):
    windows = detections.clip_windows(dataclasses.replace(config.input, num_frames=2), "lpr4m/query")
    partial = tmp_path / "x.partial"
    partial.write_bytes(whole.read_bytes()[:place])
    done = detections._continue(partial, windows, 8)
    assert done % 8 == 0 and done <= len(windows)
    kept = partial.read_bytes()
    assert whole.read_bytes().startswith(kept) and len(kept.splitlines()) == windows[:done, 3].sum()
    assert len(windows[done:]) > 0
    assert detections._continue(tmp_path / "none", windows, 8) == 0


def test_eight_devices_find_what_one_finds(config, whole, tmp_path):
    found = lines(write(config, 8, tmp_path))
    for line, expected in zip(found, lines(whole), strict=True):
        assert line["frame_id"] == expected["frame_id"] and len(line["boxes"]) == len(expected["boxes"])
        np.testing.assert_allclose(line["boxes"], expected["boxes"], atol=2e-5)
        np.testing.assert_allclose(line["scores"], expected["scores"], atol=2e-4)


def test_lines_are_written_window_by_window_however_devices_are_arranged():
    names = [np.frombuffer(name.ljust(128, b"\0"), np.uint8) for name in (b"c", b"a", b"b")]
    found = {
        "boxes": np.tile(np.float32([0, 0, 1, 1]), (3, 1, 1, 1)),
        "scores": np.full((3, 1, 1), 0.5, np.float32),
        "index": np.int32([2, 0, 1]),
        "frame_mask": np.ones((3, 1), bool),
        "frame_ids": np.stack(names)[:, None],
    }
    assert [json.loads(line)["frame_id"] for line in detections._lines(found, 0.4)] == ["a", "b", "c"]


def test_another_detectors_file_is_not_continued(config, whole):
    with pytest.raises(DataError, match="is of other detections .source: found 'a run', now 'another'.; delete it"):
        write(config, 1, whole.parent, "another")


def test_results_have_the_baseline_and_a_row_a_step(config, tmp_path):
    run = run_of(config, 1, tmp_path)
    evaluate = DetectionEvaluator(run).evaluate
    params = fresh_params(run)
    scores = evaluate(0, params)
    assert evaluate(5, params) == scores and set(scores) == set(METRICS)
    table = TASKS["detection"].summary(run, 5)
    # Of frames 0 3 6 9 12 … the even ones have two boxes, of which the first is the intended product's.
    assert "22 frames of 8 clips, 15 boxes" in table
    for row in ("mean training box", "before training", "after 5 steps"):
        assert row in table
    # All training boxes are 3, 6, 24, 36 pixels of 27 × 48, all true ones 0.1, 0.2, 0.6, 0.8.
    np.testing.assert_allclose(mean_box(config.input), [3 / 27, 6 / 48, 24 / 27, 36 / 48], rtol=1e-6)
    results = read_results(tmp_path / "results.json", dict)
    assert list(results) == [MEAN_BOX, Row(0, "detector"), Row(5, "detector")]
    baseline = results[MEAN_BOX]
    shared, union = (0.6 - 3 / 27) * (0.75 - 0.2), 0.5 * 0.6 + 21 / 27 * 30 / 48
    assert shared / (union - shared) > 0.5 and baseline["top-1"] == 1

    eight = run_of(config, 8, tmp_path / "eight")
    assert DetectionEvaluator(eight).evaluate(5, fresh_params(eight)) == pytest.approx(scores, abs=1e-6)


def test_a_mean_of_no_boxes(config):
    with pytest.raises(FileNotFoundError):
        mean_box(dataclasses.replace(config.input, train="lpr4m/gallery"))


def test_sheets_are_drawn(config, whole):
    draw.draw_clips(config.input, whole, 2, 1)
    sheets = list(whole.parent.glob("*-sheets/*.png"))
    assert len(sheets) == 2
    draw.draw_clips(config.input, whole, 0, 1)


def test_true_and_found_boxes_are_where_they_should_be():
    found = {"boxes": [[0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.1, 0.1]], "scores": [0.9, 0.1]}
    pixels = np.asarray(draw.draw_frame(jpeg(1, (160, 320)), found, [[0.25, 0.1, 0.75, 0.4]]))
    assert pixels.shape == (320, 160, 3)
    assert tuple(pixels[32, 80]) == draw.TRUE and tuple(pixels[64, 40]) == draw.TRUE
    assert tuple(pixels[240, 80]) == draw.BEST
    assert not (pixels == draw.OTHER).all(axis=-1).any(), "too little a score to be drawn"

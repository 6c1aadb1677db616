"""The detector as a user trains and runs it, from the command line, on data built from raw files."""

import json
import signal
import socket
import time

import pytest

from data.build import main as build
from rice_jax import main
from rice_jax.config import ConfigError
from rice_jax.eval.results import MEAN_BOX, Row, read_results
from rice_jax.models.create import create_params
from rice_jax.models.weights import CheckpointError, save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks import TASKS
from tests.data.raw_lpr4m import write_raw
from tests.fixtures import command, losses, run, start
from tests.settings import small_config

SMALL = {
    "model__detector__width": 32,
    "model__detector__heads": 2,
    "model__detector__layers": 1,
    "eval__num_frames": 2,
    "train__checkpoint_interval_steps": 1,
    "train__total_steps": 4,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Data directory of a tiny LPR4M with what a detector needs."""
    root = tmp_path_factory.mktemp("clips")
    write_raw(root / "raw", num_train=24, queries_per_live=8, gallery_size=8)
    configs = "train,query,gallery,detection_train,detection_test"
    build(["lpr4m", "--raw_dir", str(root / "raw"), "--data_dir", str(root / "built"), "--configs", configs])
    return root / "built"


def detector(clips, workdir, *flags, **overrides):
    return command(clips, workdir, *flags, config="configs/sample_detector.py:clip", **SMALL | overrides)


@pytest.fixture(scope="module")
def trained(clips, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    result = run(detector(clips, workdir))
    assert result.returncode == 0, result.stderr
    return workdir, result


@pytest.fixture(scope="module")
def detected(trained, clips):
    """The file of boxes that one process finds, and what it prints."""
    workdir, _ = trained
    result = run(detector(clips, workdir, "--mode=detect", eval__draw_clips=2))
    assert result.returncode == 0, result.stderr
    return workdir / "detections-4" / "lpr4m-query.jsonl", result


def test_trains_evaluates_and_reports(trained):
    workdir, result = trained
    assert sorted(losses(workdir)) == [1, 2, 3, 4]
    rows = read_results(workdir / "results.json", dict)
    assert list(rows) == [MEAN_BOX, Row(0, "detector"), Row(4, "detector")]
    rows = ["mean training box", "before training", "after 4 steps"]
    assert all(row in result.stdout for row in rows) and "AP50" in result.stdout


def test_two_processes_train_and_find_what_one_does(trained, detected, clips, tmp_path):
    workdir, _ = trained
    for mode in ("train", "detect"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            together = ["--distributed", f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--num_processes=2"]
        arguments = detector(clips, tmp_path, *together, f"--mode={mode}")
        processes = [start([*arguments, f"--process_id={process}"], devices=2) for process in range(2)]
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
    assert losses(tmp_path) == pytest.approx(losses(workdir), rel=2e-5)
    found, expected = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "detections-4" / "lpr4m-query.jsonl", detected[0])
    )
    assert [line["frame_id"] for line in found] == [line["frame_id"] for line in expected]
    for line, other in zip(found, expected, strict=True):
        assert line["scores"] == pytest.approx(other["scores"], abs=2e-3)


def test_detection_continues_after_sigkill(trained, detected, clips, tmp_path):
    workdir, _ = trained
    path, whole = detected
    assert str(path) in whole.stdout
    assert len(list(path.parent.glob("lpr4m-query-sheets/*.png"))) == 2

    overrides = {"model__init_from": workdir, "eval__batch_size": 2}
    arguments = detector(clips, tmp_path, "--mode=detect", **overrides)
    other = tmp_path / "detections-0" / "lpr4m-query.jsonl"
    partial = other.with_suffix(".jsonl.partial")
    process = start(arguments)
    wait_for(process, lambda: partial.exists() and partial.stat().st_size)
    kill(process)
    result = run(arguments)
    assert result.returncode == 0, result.stderr
    frames, expected = ([json.loads(line) for line in file.read_text().splitlines()] for file in (other, path))
    for frame, line in zip(frames, expected, strict=True):
        assert frame["frame_id"] == line["frame_id"] and frame["scores"] == pytest.approx(line["scores"], abs=2e-4)


def small_detector(clips, **overrides):
    return small_config(task="detection", data__data_dir=str(clips), **overrides)


def save_fresh(directory, config):
    """A checkpoint with fresh parameters of a run's model."""
    params = create_params(TASKS[config.task].model(config), create_mesh(config.mesh), seed=0)
    save_weights(directory, params, config.to_dict())
    return str(directory)


def test_what_cannot_be_detected_is_said(clips, tmp_path):
    with pytest.raises(ConfigError, match="detect: found config.task='retrieval', expected 'detection'"):
        main.run(small_config(), tmp_path, "detect")
    weights = save_fresh(tmp_path / "weights", small_detector(clips))
    with pytest.raises(ConfigError, match="config.data.detect: found '', expected the data set to search"):
        main.run(small_detector(clips, model__init_from=weights), tmp_path, "detect")
    with pytest.raises(CheckpointError, match="found no checkpoint to evaluate"):
        main.run(small_detector(clips, data__detect="lpr4m/query"), tmp_path, "detect")


def test_only_a_trained_detector_is_asked(clips, tmp_path):
    settings = {"data__query": "lpr4m/detection_test", "data__detect": "lpr4m/query"}
    config = small_detector(clips, model__init_from=save_fresh(tmp_path / "rice", small_config()), **settings)
    for mode in ("eval", "detect"):
        with pytest.raises(CheckpointError, match=r"has no trained detector of this kind .detector/anchors is missing"):
            main.run(config, tmp_path / mode, mode)


def wait_for(process, condition) -> None:
    deadline = time.monotonic() + 250
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill(process) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL

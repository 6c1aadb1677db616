import ast
import importlib.util
import inspect
import json
import re

import jax
import pytest

from rice_jax.config import ConfigError
from rice_jax.train import trackers
from rice_jax.train.log import RunLog
from tests.settings import small_config
from tests.train.test_log import metrics

SETTINGS = {"train": {"total_steps": 4}, "task": "retrieval"}


class Recorder:
    def __init__(self):
        self.found, self.closed = [], []

    def log(self, step, values):
        self.found.append((step, dict(values)))

    def close(self, failed):
        self.closed.append(failed)


def train(workdir, names, steps, last=True):
    """What the loop does with the log of a run from one checkpoint to the next."""
    opened = trackers.open_trackers(names, workdir, steps[0] - 1, SETTINGS)
    with RunLog(workdir, steps[0] - 1, 4, 8, 2, opened) as log:
        if steps[0] == 1 or last:
            log.add_evaluation(steps[0] - 1, "retrieval", {"rank-1": 0.1 * steps[0]})
        for step in steps:
            log.add(step, metrics(10.0 - step))


def test_means_of_intervals_and_evaluations_are_tracked(tmp_path):
    recorder = Recorder()
    with RunLog(tmp_path, 0, 4, 8, 2, [recorder]) as log:
        log.add_evaluation(0, "retrieval", {"rank-1": 0.1})
        for step in (1, 2, 3):
            log.add(step, metrics(10.0 - step))
    assert recorder.found[0] == (0, {"retrieval/rank-1": 0.1})
    (_, first), (step, second) = recorder.found[1:]
    assert first.keys() == {"train/loss", "train/accuracy", "train/examples_per_second"}
    assert first["train/loss"] == 8.5 and (step, second["train/loss"]) == (3, 7)
    assert recorder.closed == [False]


def test_a_tracker_is_told_of_a_failure(tmp_path):
    recorder = Recorder()
    with pytest.raises(FloatingPointError), RunLog(tmp_path, 0, 4, 8, 2, [recorder]) as log:
        log.add(1, metrics(float("nan")))  # noticed only at the end
    assert recorder.closed == [True]


@pytest.mark.parametrize("names", ["tensorbord", "wandb,", "wandb, wandb"])
def test_unknown_names(names):
    with pytest.raises(ConfigError, match=f"config.train.trackers: found '{names}', expected some of tensorboard, wan"):
        small_config(train__trackers=names)


def test_names():
    assert small_config().train.tracker_names == ("tensorboard",)
    assert small_config(train__trackers="").train.tracker_names == ()
    assert small_config(train__trackers="mlflow, wandb").train.tracker_names == ("mlflow", "wandb")


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    trackers.require_installed(["tensorboard"])
    with pytest.raises(ConfigError, match=r"found 'mlflow', which is not installed; pip install 'rice-jax\[mlflow\]'"):
        trackers.require_installed(["tensorboard", "mlflow"])


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert trackers.open_trackers(["tensorboard", "wandb", "mlflow"], tmp_path / "run", 0, SETTINGS) == []
    train(tmp_path / "run", ["tensorboard", "wandb", "mlflow"], (1, 2))
    assert not (tmp_path / "run").exists()


def test_nothing_is_imported_before_it_is_named():
    at_start = [node for node in ast.parse(inspect.getsource(trackers)).body if isinstance(node, ast.Import)]
    assert {"wandb", "mlflow"}.isdisjoint(name.name for node in at_start for name in node.names)


@pytest.fixture
def mlflow(request, tmp_path, monkeypatch):
    package = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    package.set_tracking_uri(getattr(request, "param", "file://{}/mlruns").format(tmp_path))
    yield package
    package.end_run()


@pytest.mark.parametrize("mlflow", ["sqlite:///{}/mlflow.db", "file://{}/mlruns"], indirect=True)
def test_mlflow_continues_its_run(mlflow, tmp_path):
    workdir = tmp_path / "first-run"
    train(workdir, ["mlflow"], (1, 2))
    train(workdir, ["mlflow"], (3, 4))
    [run] = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert json.loads((workdir / "trackers.json").read_text()) == {"mlflow": run.info.run_id}
    assert run.info.run_name == "first-run" and run.info.status == "FINISHED"
    assert run.data.params == {"train.total_steps": "4", "task": "retrieval"}
    client = mlflow.MlflowClient()

    def history(name):
        return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]

    assert history("train/loss") == [(2, 8.5), (4, 6.5)]
    assert history("retrieval/rank-1") == [(0, 0.1), (2, pytest.approx(0.3))]


def test_a_run_that_mlflow_does_not_have(mlflow, tmp_path):
    (tmp_path / "trackers.json").write_text('{"mlflow": "0123456789abcdef0123456789abcdef"}')
    with pytest.raises(ConfigError, match="config.train.trackers: mlflow cannot record this run .*0123.*; look at MLF"):
        train(tmp_path, ["mlflow"], (1, 2))


def test_a_server_that_is_away_does_not_end_a_training(mlflow, tmp_path, monkeypatch, caplog):
    def log_metrics(*_, **__):
        raise mlflow.MlflowException("no answer")

    monkeypatch.setattr(mlflow, "log_metrics", log_metrics)
    train(tmp_path, ["mlflow"], (1, 2))
    assert "mlflow lacks the metrics of step 2, which metrics.jsonl has: no answer" in caplog.text


def test_a_failed_run_is_marked(mlflow, tmp_path):
    opened = trackers.open_trackers(["mlflow"], tmp_path, 0, SETTINGS)
    with pytest.raises(KeyError), RunLog(tmp_path, 0, 4, 8, 2, opened):
        raise KeyError
    [run] = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert run.info.status == "FAILED"


@pytest.fixture
def wandb(monkeypatch):
    package = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return package


def test_wandb_continues_its_run_offline(wandb, tmp_path):
    workdir = tmp_path / "first-run"
    train(workdir, ["wandb"], (1, 2))
    train(workdir, ["wandb"], (3, 4))
    run_id = json.loads((workdir / "trackers.json").read_text())["wandb"]
    parts = sorted((workdir / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in parts] == [f"run-{run_id}.wandb"] * 2
    wandb.teardown()  # writes what it holds
    first, second = (path.read_bytes() for path in parts)
    assert b"first-run" in first and b"total_steps" in first
    # Records of names and values in JSON.
    assert re.search(rb"train/loss.{0,9}8\.5", first) and re.search(rb"train/loss.{0,9}6\.5", second)
    assert re.search(rb"step.{0,9}0.*retrieval/rank-1.{0,9}0\.1", first, re.S)
    assert re.search(rb"step.{0,9}2.*retrieval/rank-1.{0,9}0\.3", second, re.S)


def test_wandb_says_that_it_needs_a_login(wandb, tmp_path, monkeypatch):
    def init(**_):
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(ConfigError, match="wandb cannot record this run .api_key not.*; log in, or set WANDB_MODE=off"):
        train(tmp_path, ["wandb"], (1, 2))

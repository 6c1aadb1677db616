import itertools
import json
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from rice_jax.train import log as log_module
from rice_jax.train.log import RunLog


def metrics(loss: float) -> dict:
    return {"loss": jnp.float32(loss), "accuracy": jnp.float32(0.5)}


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_written_once_and_what_a_killed_run_did_beyond_its_checkpoint_is_dropped(tmp_path):
    with RunLog(tmp_path, 0, 4, batch_size=8, interval_steps=2) as log:
        log.add_evaluation(0, "retrieval", {"rank-1": 0.1})
        for step in (1, 2, 3):
            log.add(step, metrics(10.0 - step))
        log.add_evaluation(2, "retrieval", {"rank-1": 0.2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the process died while writing
    with RunLog(tmp_path, 2, 4, batch_size=8, interval_steps=2, evaluates_first=True) as log:
        log.add(3, metrics(1.0))
        log.add(4, metrics(2.0))
    found = lines(tmp_path)
    assert [(line["step"], line.get("loss")) for line in found] == [(0, None), (1, 9.0), (2, 8.0), (3, 1.0), (4, 2.0)]
    assert found[0] == {"step": 0, "retrieval/rank-1": 0.1}


def test_a_longer_run_keeps_the_evaluation_that_ended_the_shorter_one(tmp_path):
    with RunLog(tmp_path, 0, 1, batch_size=8, interval_steps=2) as log:
        log.add(1, metrics(3.0))
        log.add_evaluation(1, "retrieval", {"rank-1": 0.2})
    before = lines(tmp_path)
    with RunLog(tmp_path, 1, 2, batch_size=8, interval_steps=2) as log:
        log.add(2, metrics(1.0))
    assert lines(tmp_path)[:-1] == before


def test_damaged_lines_are_left_out_and_told(tmp_path, caplog):
    path, whole = tmp_path / "metrics.jsonl", [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    damaged = "\n".join([whole[0], whole[1][:9], "[]", whole[2], '{"step": 4']).encode() + b"\xff"
    path.write_bytes(damaged)
    with RunLog(tmp_path, 3, 4, batch_size=8, interval_steps=2):
        pass
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]
    assert f"{path}: 2 of 4 lines are damaged, the first is line 2; they are left out" in caplog.text
    assert (tmp_path / "damaged-metrics.jsonl").read_bytes() == damaged


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    with (
        pytest.raises(FloatingPointError, match="step 2: the loss is nan; lower the learning rate"),
        RunLog(tmp_path, 0, 4, batch_size=8, interval_steps=2) as log,
    ):
        log.add(1, metrics(1.0))
        log.add(2, metrics(float("nan")))
    assert [line["step"] for line in lines(tmp_path)] == [1], "the steps before it are kept"


def test_a_gradient_that_is_no_number_ends_the_run_before_its_parameters_are_saved(tmp_path):
    with (
        pytest.raises(FloatingPointError, match="step 1: the gradient norm is inf; lower the learning rate"),
        RunLog(tmp_path, 0, 4, batch_size=8, interval_steps=1) as log,
    ):
        log.add(1, metrics(1.0) | {"gradient_norm": jnp.float32("inf")})
    assert lines(tmp_path) == []


def test_a_tracker_that_cannot_be_closed_leaves_no_other_open(tmp_path):
    closed = []

    class Tracker:
        run_id = None

        def __init__(self, breaks: bool):
            self.breaks = breaks

        def log(self, step, values):
            pass

        def close(self, failed):
            closed.append(failed)
            if self.breaks:
                raise RuntimeError("the service is away")

    log = RunLog(tmp_path, 0, 4, 8, 2, [Tracker(False), Tracker(True)])
    with pytest.raises(RuntimeError, match="the service is away"), log:
        log.add(1, metrics(1.0))
    assert len(closed) == 2 and log._file.closed
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_log_lines_tell_speed_and_time_left(tmp_path, caplog):
    with caplog.at_level("INFO", logger="rice_jax"), RunLog(tmp_path, 0, 4, batch_size=8, interval_steps=2) as log:
        for step in (1, 2):
            log.add(step, metrics(3.0))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("step 2/4  loss 3.0000  accuracy 50.0%  ")
    assert "examples/s" in message and message.endswith("left")


@pytest.mark.parametrize(("seconds", "text"), [(0.1, "160"), (1, "16"), (4.9, "3.3"), (40, "0.4"), (3600, "0.0044")])
def test_slow_runs_tell_their_speed_too(tmp_path, caplog, monkeypatch, seconds, text):
    clock = itertools.chain([0.0], itertools.repeat(seconds))
    monkeypatch.setattr(log_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with caplog.at_level("INFO", logger="rice_jax"), RunLog(tmp_path, 0, 4, batch_size=8, interval_steps=2) as log:
        for step in (1, 2):
            log.add(step, metrics(3.0))
    assert f"  {text} examples/s  " in caplog.text

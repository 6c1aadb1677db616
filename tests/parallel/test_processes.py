"""Several processes on one machine, as a user starts them: together, stopped, killed, and continued by others."""

import json
import os
import shutil
import signal
import socket
import time

import jax
import pytest

from rice_jax.eval.results import read_results
from rice_jax.main import STOPPED
from rice_jax.models.weights import CheckpointError, load_weights, newest_step
from rice_jax.parallel import processes
from rice_jax.train import checkpoint
from tests.fixtures import LIGHT, command, losses, run, start, wait_for_checkpoint
from tests.programs import wait_for

RECORDED = "tests.recorded_main"


def start_two(arguments: list[str], devices: int, *different: list[str]):
    """Starts two processes of one program by flags; `different` are the further arguments of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        together = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--num_processes=2", "--timeout_seconds=60"]
    different = different or ([], [])
    return [
        start([*arguments, *together, f"--process_id={process}", *different[process]], devices) for process in range(2)
    ]


def finish(running) -> list[tuple[str, str]]:
    return [process.communicate(timeout=300) for process in running]


def require_silence(output: tuple[str, str]) -> None:
    """Only the first process prints, apart from the messages of libraries."""
    for word in ("rank-1", "results.json", "loss", "resuming", "devices"):
        assert word not in output[0] and word not in output[1]


def taken_examples(workdir) -> list[list[int]]:
    """The example ids of every step that the last run did, in the order of the global batch."""
    paths = sorted(workdir.glob("examples-*.jsonl"))
    shares = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    return [sum(step, []) for step in zip(*shares, strict=True)]


def forget_examples(workdir) -> None:
    for path in workdir.glob("examples-*.jsonl"):
        path.unlink()


@pytest.fixture(scope="module")
def expected(reference):
    """Metrics by step and example ids of the undisturbed run."""
    found = metrics(reference[0])
    assert found[1].keys() >= {"loss", "icl", "pmd", "pfr"}
    return found, taken_examples(reference[0])


@pytest.fixture(scope="module")
def light(light_reference):
    """The same of the run that trains the first loss alone."""
    return metrics(light_reference[0]), taken_examples(light_reference[0])


def metrics(workdir) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert sorted(losses(workdir)) == [1, 2, 3, 4, 5, 6]
    return {line["step"]: line for line in lines if "loss" in line}


def require_same(workdir, examples: list[list[int]], expected) -> None:
    numbers, ids = expected
    assert examples == ids
    for step, line in metrics(workdir).items():
        for name in numbers[step].keys() & {"loss", "icl", "pmd", "pfr"}:
            assert line[name] == pytest.approx(numbers[step][name], rel=2e-5), (step, name)


def test_sigterm_to_one_of_two_processes_saves_and_one_process_continues(light, shop, tmp_path):
    settings = dict(module=RECORDED, tiny=LIGHT, train__checkpoint_interval_steps=1000)
    running = start_two(command(shop, tmp_path, **settings, mesh__fsdp=2), 4)
    wait_for(running[0], "step 2/6")
    os.kill(running[1].pid, signal.SIGTERM)
    outputs = finish(running)
    assert [process.returncode for process in running] == [STOPPED, STOPPED], outputs
    assert "SIGTERM: saved step" in outputs[0][1]
    require_silence(outputs[1])
    examples = taken_examples(tmp_path)
    forget_examples(tmp_path)
    assert 2 <= len(examples) < 6
    result = run(command(shop, tmp_path, **settings, mesh__data=2, mesh__fsdp=-1), devices=8)
    assert result.returncode == 0, result.stderr
    assert "8 cpu devices as {'data': 2, 'fsdp': 4}" in result.stderr
    assert f"from step {len(examples)}" in result.stderr
    require_same(tmp_path, examples + taken_examples(tmp_path), light)


def test_sigterm_to_one_process_saves_and_two_continue(reference, expected, shop, tmp_path):
    settings = dict(module=RECORDED, train__checkpoint_interval_steps=1000)
    process = start(command(shop, tmp_path, **settings, mesh__fsdp=4), 8)
    wait_for(process, "step 2/6")
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == STOPPED, errors
    assert "SIGTERM: saved step" in errors
    examples = taken_examples(tmp_path)
    forget_examples(tmp_path)
    running = start_two(command(shop, tmp_path, **settings, mesh__fsdp=2), 4)
    outputs = finish(running)
    assert [process.returncode for process in running] == [0, 0], outputs
    assert "rank-1" in outputs[0][0]
    require_silence(outputs[1])
    require_same(tmp_path, examples + taken_examples(tmp_path), expected)
    one, two = (read_results(path / "results.json") for path in (reference[0], tmp_path))
    assert two == one
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "4 of them also show where in the frames the decoder looks" in report, "both computed it, one wrote"


def test_a_killed_process_ends_all_of_a_slurm_job(light, shop, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {
            "JAX_COORDINATOR_PORT": str(free.getsockname()[1]),
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS": "2",
        }
    arguments = command(shop, tmp_path, "--timeout_seconds=30", tiny=LIGHT, train__checkpoint_interval_steps=1)
    running = [
        start(arguments, 1, **environment, SLURM_PROCID=str(process), SLURM_LOCALID=str(process))
        for process in range(2)
    ]
    wait_for_checkpoint(running[0], tmp_path)
    running[1].kill()
    killed = time.monotonic()
    outputs = finish(running)
    assert time.monotonic() - killed < 90
    assert running[0].returncode not in (0, None), outputs
    result = run(arguments)
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stderr
    assert losses(tmp_path) == pytest.approx({step: line["loss"] for step, line in light[0].items()}, rel=2e-5)


def test_an_error_of_one_process_ends_all(shop, tmp_path):
    arguments = command(shop, tmp_path)
    running = start_two(arguments, 1, [], ["--config.data.data_dir=/nowhere"])
    outputs = finish(running)
    assert [process.returncode == 0 for process in running] == [False, False], outputs
    assert "process 1: FileNotFoundError: /nowhere" in outputs[1][1] and "Traceback" not in outputs[1][1]


def test_processes_with_different_settings_do_not_start(shop, tmp_path):
    arguments = command(shop, tmp_path / "run")
    different = ["--config.seed=7", "--config.train.checkpoint_interval_steps=3", "--config.data.num_threads=2"]
    running = start_two(arguments, 1, [], different)
    outputs = finish(running)
    assert [process.returncode for process in running] == [1, 1], outputs
    for _, errors in outputs:
        assert (
            "ProcessError: the processes differ: config.seed is 7 in process 1 and 0 in process 0; "
            "config.train.checkpoint_interval_steps is 3 in process 1 and 2 in process 0. Start all with the same"
        ) in errors
        assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_the_end_of_another_process_is_one_line(monkeypatch):
    try:
        try:
            raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer\nmore")
        except jax.errors.JaxRuntimeError as error:
            raise CheckpointError("cannot save a checkpoint") from error
    except CheckpointError as error:
        assert processes.lost_process(error) == "", "of one process"
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        line = processes.lost_process(error)
    assert line.startswith("ProcessError: another process of this program has ended") and "\n" not in line
    assert "Connection reset by peer" in line
    assert processes.lost_process(ValueError("Gloo")) == ""
    assert processes.lost_process(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")) == ""


def test_processes_must_share_their_workdir(shop, tmp_path):
    arguments = command(shop, tmp_path)
    running = start_two(arguments, 1, [], [f"--workdir={tmp_path / 'other'}"])
    outputs = finish(running)
    assert [process.returncode for process in running] == [1, 1], outputs
    for _, errors in outputs:
        assert "only 1 of 2 processes see what the first one writes there" in errors
    assert not list(tmp_path.iterdir())


def test_processes_that_do_not_come_together(shop, tmp_path):
    absent = ["--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1", "--timeout_seconds=3"]
    result = run(command(shop, tmp_path, *absent))
    assert result.returncode == 1
    assert "the processes have not come together within 3 seconds (--timeout_seconds)" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_no_process_to_join(monkeypatch):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    def end(message):
        raise SystemExit(message)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(processes, "_end", end)
    with pytest.raises(SystemExit, match="should be defined.\nExpected .* or --coordinator=host:port"):
        processes.join(True)


def test_a_launcher_that_tells_of_others_is_believed(monkeypatch):
    assert not processes.told_of_others({"SLURM_NTASKS": "8", "TPU_WORKER_HOSTNAMES": "one"}), "not in a step of srun"
    for told in ({"SLURM_STEP_NUM_TASKS": "2"}, {"TPU_WORKER_HOSTNAMES": "one,two"}, {"JAX_NUM_PROCESSES": "4"}):
        assert processes.told_of_others(told)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(processes.ProcessError, match="this is one of 4 hosts: .*--distributed"):
        processes.join(False)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(processes.ProcessError, match="file/run: .*choose another --workdir"):
        processes.share_directory(tmp_path / "file" / "run")


def test_a_full_disk_costs_no_earlier_checkpoint(light_reference, shop, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(light_reference[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    arguments = command(shop, workdir, tiny=LIGHT)
    # No file may grow beyond 64 KiB: a checkpoint's do, metrics do not.
    full = start(["bash", "-c", 'ulimit -f 64; exec "$@"', "-", *arguments])
    _, errors = full.communicate(timeout=300)
    assert full.returncode == 1, errors
    assert "CheckpointError" in errors and "cannot save a checkpoint (the newest complete one is of step 4)" in errors
    assert "File too large" in errors and "the same command continues from the newest" in errors
    assert "Task exception was never retrieved" not in errors
    assert any("tmp" in path.name for path in (workdir / "checkpoints").iterdir()), "half a checkpoint"
    load_weights(workdir)
    with checkpoint.open_checkpoints(workdir, keep=2) as checkpoints:
        assert checkpoints.latest_step() == newest_step(workdir) == 4

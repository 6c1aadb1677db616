"""A tiny shop on disk, built as a user builds one, and runs of the program on it."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.build import main as build
from tests.data.raw_lpr4m import write_raw
from tests.programs import ROOT, Program, run, start

__all__ = [
    "ROOT",
    "LIGHT",
    "SIZES",
    "TINY",
    "build_shop",
    "command",
    "losses",
    "make_once",
    "run",
    "start",
    "wait_for_checkpoint",
]
# Overrides of sizes and lengths that make a run of seconds.
SIZES = {
    "data.batch_size": 8,
    "data.num_frames": 3,
    "data.resize": 20,
    "data.num_threads": 1,
    "model.image_size": 16,
    "model.frozen_stages": 0,
    "model.patch_size": 8,
    "model.width": 32,
    "model.layers": 2,
    "model.heads": 2,
    "model.embed_dim": 16,
    "model.pmd.num_heads": 2,
    "optimizer.warmup_steps": 2,
    "train.total_steps": 6,
    "train.log_interval_steps": 2,
    "train.checkpoint_interval_steps": 2,
    "eval.batch_size": 8,
}
# With these `configs/sample_icl.py` trains all losses, from random weights, and they change.
TINY = SIZES | {
    "loss.pmd_weight": 1.0,
    "model.init_from": "",
    "optimizer.encoder_learning_rate": 1e-3,
}
# Trains the first loss alone, which takes half the time: for tests of what does not depend on the losses.
LIGHT = TINY | {"loss.pmd_weight": 0.0, "eval.pixels": False}


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A directory that the first of pytest's workers to need it makes; tests only read it.

    Args:
        factory: pytest's.
        name: of the directory.
        make: makes it, given its path.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    directory, done = root / name, root / f"{name}.done"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            directory.mkdir()
            make(directory)
            done.touch()
    return directory


def build_shop(directory: Path, num_columns: int = 11) -> Path:
    """Writes raw LPR4M files and builds their data sets; returns the directory that holds them.

    Args:
        directory: for the raw files and the data sets.
        num_columns: of the training rows; 13 = the subset's layout.
    """
    write_raw(directory / "raw", num_columns=num_columns, num_train=24)
    build(["lpr4m", "--raw_dir", str(directory / "raw"), "--data_dir", str(directory / "built")])
    return directory / "built"


def command(
    data_dir: Path,
    workdir: Path,
    *flags: str,
    config: str = "configs/sample_icl.py",
    tiny: dict = TINY,
    module: str = "rice_jax.main",
    **overrides,
) -> list[str]:
    """The command line of `rice_jax.main` on a tiny shop; `data__batch_size=4` overrides one setting."""
    settings = tiny | {"data.data_dir": data_dir} | {key.replace("__", "."): value for key, value in overrides.items()}
    values = [f"--config.{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", module, f"--config={config}", f"--workdir={workdir}", *values, *flags]


def wait_for_checkpoint(process: Program, workdir: Path) -> None:
    """Returns as soon as a run has saved its first checkpoint."""
    checkpoints, deadline = workdir / "checkpoints", time.monotonic() + 300
    while not any(path.name.isdigit() for path in (checkpoints.iterdir() if checkpoints.exists() else [])):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def losses(workdir: Path) -> dict[int, float]:
    """{step: loss} of a run's metrics."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert len(steps) == len(set(steps)), "a step was logged twice"
    return {line["step"]: line["loss"] for line in lines if "loss" in line}

"""The log of a run: a progress bar or log lines, JSON lines of every step, trackers."""

import contextlib
import functools
import itertools
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from tqdm import tqdm

from rice_jax.files import replacing
from rice_jax.train.trackers import Tracker

logger = logging.getLogger(__name__)


class RunLog:
    """Records the metrics of a run; only process 0 writes."""

    def __init__(
        self,
        workdir: Path,
        first_step: int,
        total_steps: int,
        batch_size: int,
        interval_steps: int,
        trackers: Sequence[Tracker] = (),
        evaluates_first: bool = False,
    ):
        """Continues a run's files after `first_step` steps; what a killed run wrote beyond that is dropped.

        Args:
            workdir: directory for `metrics.jsonl`.
            first_step: steps done before.
            total_steps: length of the run.
            batch_size: examples per step.
            interval_steps: steps between lines on the terminal and points in trackers.
            trackers: of the run (`open_trackers`); closed with the log.
            evaluates_first: whether `first_step` is evaluated again; its evaluation so far is dropped, too.
        """
        self._writes = jax.process_index() == 0
        self._batch_size, self._interval, self._total = batch_size, interval_steps, total_steps
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._time, self._last = time.perf_counter(), first_step
        self._trackers = trackers
        if self._writes:
            workdir.mkdir(parents=True, exist_ok=True)
            path = workdir / "metrics.jsonl"
            kept = _lines_until(path, first_step, not evaluates_first) if path.exists() else []
            with replacing(path) as partial:
                partial.write_text("".join(kept))
            self._file = path.open("a")
            self._bar = tqdm(total=total_steps, initial=first_step, unit="step", disable=not sys.stderr.isatty())

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, error: type | None, *_) -> None:
        with contextlib.ExitStack() as closing:  # all of them, whichever fails
            if self._writes:
                closing.callback(self._bar.close)
                closing.callback(self._file.close)
            for tracker in self._trackers:
                closing.push(functools.partial(_close, tracker, error is not None))
            self.flush()

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Records a step's metrics; waits for the device only at the end of an interval.

        Raises:
            FloatingPointError: the loss or the gradient is not finite.
        """
        self._pending.append((step, metrics))
        if step % self._interval == 0 or step == self._total:
            self.flush()

    def add_evaluation(self, step: int, name: str, scores: Mapping[str, float]) -> None:
        """Records an evaluation's scores."""
        self.flush()
        self._time = time.perf_counter()  # evaluations do not count in the training speed
        self._write(step, {f"{name}/{key}": value for key, value in scores.items()})
        self._say(step, f"{name}: " + ", ".join(f"{key} {value:.1%}" for key, value in scores.items()))

    def flush(self) -> None:
        """Waits for the pending steps and writes their metrics to disk."""
        if not self._pending:
            return
        pending, self._pending = jax.device_get(self._pending), []  # all at once
        steps = [(step, {key: float(value) for key, value in metrics.items()}) for step, metrics in pending]
        finite = list(itertools.takewhile(lambda entry: _not_finite(entry[1]) is None, steps))
        if finite:
            self._report(finite)
        if len(finite) < len(steps):
            step, metrics = steps[len(finite)]
            name = _not_finite(metrics)
            assert name
            raise FloatingPointError(
                f"step {step}: the {name.replace('_', ' ')} is {metrics[name]}; lower the learning rate or set "
                "optimizer.clip_norm"
            )

    def _report(self, steps: list[tuple[int, dict[str, float]]]) -> None:
        now, last = time.perf_counter(), steps[-1][0]
        speed = (last - self._last) / (now - self._time)
        self._time, self._last = now, last
        if not self._writes:
            return
        for step, metrics in steps:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        means = {key: sum(metrics[key] for _, metrics in steps) / len(steps) for key in steps[0][1]}
        means["examples_per_second"] = speed * self._batch_size
        for tracker in self._trackers:
            tracker.log(last, {f"train/{key}": value for key, value in means.items()})
        self._bar.set_postfix(loss=f"{means['loss']:.3f}", examples_s=_rate(means), refresh=False)
        self._bar.update(last - self._bar.n)
        if self._bar.disable:
            left = (self._total - last) / speed
            self._say(
                last,
                f"loss {means['loss']:.4f}  accuracy {means['accuracy']:.1%}  "
                f"{_rate(means)} examples/s  {tqdm.format_interval(left)} left",
            )

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self._writes:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for tracker in self._trackers:
                tracker.log(step, values)

    def _say(self, step: int, text: str) -> None:
        if not self._writes:
            return
        line = f"step {step}/{self._total}  {text}"
        if self._bar.disable:
            logger.info("%s", line)
        else:
            self._bar.write(line)


def _close(tracker: Tracker, failed: bool, error: type | None, *_) -> None:
    tracker.close(failed or error is not None)


def _not_finite(metrics: Mapping[str, float]) -> str | None:
    """What is not finite: the loss, or the gradient, after which the parameters are not."""
    return next((name for name in ("loss", "gradient_norm") if not math.isfinite(metrics.get(name, 0.0))), None)


def _rate(means: Mapping[str, float]) -> str:
    """Examples per second, with two digits at least."""
    rate = means["examples_per_second"]
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def _lines_until(path: Path, step: int, with_evaluation: bool) -> list[str]:
    """The whole lines up to `step`, with its evaluation or without; the last line may be cut.

    Damaged lines before it are left out, and the file that held them is kept.
    """
    lines, damaged = [], []
    *whole, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(whole, start=1):
        try:
            values = json.loads(line)
            is_before = values["step"] < step or (values["step"] == step and ("loss" in values or with_evaluation))
        except (ValueError, KeyError, TypeError):
            damaged.append(number)
            continue
        if is_before:
            lines.append(line.decode() + "\n")
    if damaged:
        copy = path.with_name(f"damaged-{path.name}")
        shutil.copyfile(path, copy)
        logger.warning(
            "%s: %d of %d lines are damaged, the first is line %d; they are left out, and %s keeps the whole file",
            *(path, len(damaged), len(whole), damaged[0], copy),
        )
    return lines

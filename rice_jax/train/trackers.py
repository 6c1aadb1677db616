"""Trackers of experiments: TensorBoard, Weights & Biases, and MLflow, each imported only if a run names it."""

import importlib.util
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from flax.traverse_util import flatten_dict
from tensorboardX import SummaryWriter

from rice_jax.config import ConfigError
from rice_jax.files import write_lines

FILE = "trackers.json"  # {name of a tracker: id of the run there}

logger = logging.getLogger(__name__)


@runtime_checkable
class Tracker(Protocol):
    """A place where the metrics of a run are shown."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records values after a step."""

    def close(self, failed: bool) -> None:
        """Ends the record; `failed` if by an error."""


class TensorBoard:
    """Event files in `tensorboard/`."""

    def __init__(self, workdir: Path, first_step: int):
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, which finds its project and mode in the variables `WANDB_*`."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any], run_id: str | None):
        import wandb

        try:
            self._run = wandb.init(
                id=run_id,
                resume="allow",
                name=os.environ.get("WANDB_NAME", workdir.name),
                dir=str(workdir),
                config=dict(settings),
                allow_val_change=True,
            )
        except wandb.Error as error:
            raise _cannot_start("wandb", error, "log in, or set WANDB_MODE=offline") from error
        self.run_id = self._run.id
        # W&B takes no step twice, but the evaluation of a step may follow its metrics in another process.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Mlflow:
    """A run of MLflow, which finds its store and experiment in the variables `MLFLOW_*`."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any], run_id: str | None):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        self._mlflow = mlflow
        try:
            run = mlflow.start_run(run_id=run_id, run_name=None if run_id else workdir.name)
            if not run_id:  # a parameter cannot be changed
                mlflow.log_params(flatten_dict(dict(settings), sep="."))
        except mlflow.MlflowException as error:
            raise _cannot_start("mlflow", error, "look at MLFLOW_TRACKING_URI") from error
        self.run_id = run.info.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        try:
            self._mlflow.log_metrics(dict(values), step=step)
        except self._mlflow.MlflowException as error:  # a server that is away must not end a training
            logger.warning("mlflow lacks the metrics of step %d, which metrics.jsonl has: %s", step, _first_line(error))

    def close(self, failed: bool) -> None:
        try:
            self._mlflow.end_run("FAILED" if failed else "FINISHED")
        except self._mlflow.MlflowException as error:
            logger.warning("mlflow does not know that the run has ended: %s", _first_line(error))


_SERVICES: dict[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}


def require_installed(names: Sequence[str]) -> None:
    """Refuses trackers whose package is not installed.

    Raises:
        ConfigError: naming what to install.
    """
    for name in names:
        if name in _SERVICES and not importlib.util.find_spec(name):
            raise ConfigError(
                f"config.train.trackers: found {name!r}, which is not installed; pip install 'rice-jax[{name}]'"
            )


def open_trackers(names: Sequence[str], workdir: Path, first_step: int, settings: Mapping[str, Any]) -> list[Tracker]:
    """Opens the trackers of a run in process 0; the others have none.

    A run that continues in its workdir continues the runs of its trackers, whose ids `trackers.json` holds.

    Args:
        names: `TrainConfig.tracker_names`.
        workdir: of the run.
        first_step: steps done before.
        settings: of the run, as nested dicts.

    Raises:
        ConfigError: a tracker cannot start or continue.
    """
    if jax.process_index():
        return []
    path, found = workdir / FILE, list[Tracker]()
    ids = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        if name == "tensorboard":
            found.append(TensorBoard(workdir, first_step))
        else:
            service = _SERVICES[name](workdir, settings, ids.get(name))
            found.append(service)
            ids[name] = service.run_id
            write_lines(path, [json.dumps(ids)])
    return found


def _cannot_start(name: str, error: Exception, advice: str) -> ConfigError:
    return ConfigError(f"config.train.trackers: {name} cannot record this run ({_first_line(error)}); {advice}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

"""The protocol of a task: what a run trains and measures."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import grain
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from rice_jax.config import Config, ConfigError
from rice_jax.eval.place import Place, find_place
from rice_jax.models.create import AnyModelConfig
from rice_jax.train.loop import Evaluator
from rice_jax.train.steps import Loss


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on its devices.

    Attributes:
        config: settings of the run.
        workdir: directory of the run.
        mesh: all devices.
        model: settings of the model's parts.
        graphdef: structure of the model.
        params: shapes of the model's parameters, and their place on the mesh.
        source: the checkpoint to evaluate; None = the run trains.
    """

    config: Config
    workdir: Path
    mesh: Mesh
    model: AnyModelConfig
    graphdef: nnx.GraphDef
    params: PyTree
    source: Path | None = None

    @functools.cached_property
    def place(self) -> Place:
        """Where the run's evaluations write."""
        return find_place(self.config, self.workdir, self.source)


@runtime_checkable
class Task(Protocol):
    """A kind of run, chosen by `config.task`: its model, batches, loss and evaluators."""

    def check(self, config: Config) -> None:
        """Checks the settings that only matter to this task.

        Raises:
            ConfigError: settings exclude each other.
        """

    def prepare(self, config: Config, workdir: Path) -> Config:
        """Completes the settings of a training by what only its data tell; most tasks return them as they are.

        All processes call it together.

        Raises:
            ConfigError: a data set that the training needs is not set.
            FileNotFoundError: a data set is missing.
            DataError: a data set or a file in the workdir is damaged.
        """

    def model(self, config: Config) -> AnyModelConfig:
        """Settings of the model, without parts whose loss is off."""

    def batches(self, config: Config, start: int, process_index: int, process_count: int) -> grain.DatasetIterator:
        """This process's share of endless training batches, after `start` examples."""

    def loss(self, config: Config, mesh: Mesh) -> Loss:
        """The loss over a global batch; its metrics must contain `loss` and `accuracy`.

        Raises:
            ConfigError: the batch does not fit the mesh.
        """

    def evaluators(self, run: Run) -> Mapping[str, Evaluator]:
        """{name: evaluator} for the run's parameters.

        Raises:
            ConfigError: a data set that the evaluation needs is not set.
            CheckpointError: the checkpoint to evaluate lacks a part that the evaluation needs.
        """

    def summary(self, run: Run, step: int) -> str:
        """Tables of the evaluation after `step` steps as plain text; "" if there is none."""


def require_data_sets(config: Config, *names: str) -> None:
    """Refuses a run whose data sets are not set; an index, for example, needs none.

    Args:
        config: settings of the run.
        names: of settings in `config.data`.

    Raises:
        ConfigError: one is empty.
    """
    for name in names:
        if not getattr(config.data, name):
            raise ConfigError(f"config.data.{name}: found '', expected a data set such as lpr4m/{name}")

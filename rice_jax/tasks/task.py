"""The protocol of a task: what a run trains and measures."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import grain
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from rice_jax.config import Config
from rice_jax.models.create import ModelConfig
from rice_jax.train.steps import Loss

# Of (steps done, parameters) to scores by name; writes what else there is to say into the workdir.
Evaluator = Callable[[int, PyTree], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on its devices.

    Attributes:
        config: its settings.
        workdir: its directory.
        mesh: all devices.
        model: settings of the model's parts.
        graphdef: structure of the model.
        params: parameters, or fresh ones of the same shapes.
        source: the checkpoint to evaluate; None = the run trains.
    """

    config: Config
    workdir: Path
    mesh: Mesh
    model: ModelConfig
    graphdef: nnx.GraphDef
    params: PyTree
    source: Path | None = None


@runtime_checkable
class Task(Protocol):
    """What `config.task` chooses."""

    def check(self, config: Config) -> None:
        """Checks the settings that matter to this task alone.

        Raises:
            ConfigError: they exclude each other.
        """

    def model(self, config: Config) -> ModelConfig:
        """The settings of the model's parts; a part whose loss is off is left out."""

    def batches(self, config: Config, start: int, process_index: int, process_count: int) -> grain.DatasetIterator:
        """This process's share of endless training batches, after `start` examples."""

    def loss(self, config: Config, mesh: Mesh) -> Loss:
        """The loss over a global batch; its metrics must hold `loss` and `accuracy`.

        Raises:
            ConfigError: the batch does not fit the mesh.
        """

    def evaluators(self, run: Run) -> Mapping[str, Evaluator]:
        """{name: evaluator} of the run's parameters.

        Raises:
            CheckpointError: the checkpoint to evaluate lacks a trained part that the evaluation needs.
        """

    def summary(self, config: Config, workdir: Path, step: int) -> str:
        """The tables of the newest evaluation, in plain text; "" if there is none."""

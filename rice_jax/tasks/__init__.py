"""Tasks: what a run trains and measures, `TASKS[config.task]`."""

from collections.abc import Mapping
from typing import Any

from rice_jax.config import Config, ConfigError
from rice_jax.config import resolve as resolve_settings
from rice_jax.tasks.detection import Detection
from rice_jax.tasks.domains import Domains
from rice_jax.tasks.retrieval import Retrieval
from rice_jax.tasks.task import Task

TASKS: dict[str, Task] = {"retrieval": Retrieval(), "domains": Domains(), "detection": Detection()}


def resolve(values: Mapping[str, Any]) -> Config:
    """Checks settings with `rice_jax.config.resolve` and the checks of their task, and freezes them.

    Raises:
        ConfigError: unknown names, wrong types or values, or settings that exclude each other.
    """
    config = resolve_settings(values)
    if config.task not in TASKS:
        raise ConfigError(f"config.task: found {config.task!r}, expected one of {', '.join(map(repr, TASKS))}")
    TASKS[config.task].check(config)
    return config

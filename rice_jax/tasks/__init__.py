"""Tasks: what a run trains and measures, `TASKS[config.task]`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rice_jax.config import Config, ConfigError
from rice_jax.config import resolve as resolve_settings
from rice_jax.models.encoders import ENCODERS, VIDEO_ENCODERS
from rice_jax.models.start import with_saved_encoder
from rice_jax.models.text_weights import with_saved_tower
from rice_jax.tasks.cope import CopeTask
from rice_jax.tasks.detection import Detection
from rice_jax.tasks.domains import Domains
from rice_jax.tasks.retrieval import Retrieval
from rice_jax.tasks.task import Task

TASKS: dict[str, Task] = {
    "retrieval": Retrieval(),
    "domains": Domains(),
    "detection": Detection(),
    "cope": CopeTask(),
}


def resolve(values: Mapping[str, Any], workdir: Path | None = None) -> Config:
    """Checks settings with `rice_jax.config.resolve` and the checks of their task, and freezes them.

    Args:
        values: see `rice_jax.config.resolve`; the encoder's settings are completed from the weights that the run starts
            from (`models.start.with_saved_encoder`).
        workdir: of the run; None = there is none.

    Raises:
        ConfigError: unknown names, wrong types or values, or settings that exclude each other.
    """

    def complete(config: Config) -> Config:
        return dataclasses.replace(config, model=with_saved_tower(with_saved_encoder(config.model, workdir)))

    config = resolve_settings(values, complete)
    if config.task not in TASKS:
        raise ConfigError(f"config.task: found {config.task!r}, expected one of {', '.join(map(repr, TASKS))}")
    if (found := config.model.architecture) not in (names := [*ENCODERS, *VIDEO_ENCODERS]):
        raise ConfigError(f"config.model.architecture: found {found!r}, expected one of {', '.join(map(repr, names))}")
    TASKS[config.task].check(config)
    return config

"""Checkpoints of a run: weights, optimizer state, data position and settings, saved together by Orbax.

`rice_jax.models.weights` describes them on disk and reads the weights alone.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from rice_jax.config import Config
from rice_jax.config.fields import list_settings
from rice_jax.config.upgrade import upgrade
from rice_jax.models.weights import CHECKPOINTS, CheckpointError, newest_step, read_config


def open_checkpoints(workdir: str | os.PathLike, keep: int) -> ocp.CheckpointManager:
    """Opens the checkpoints of a run and keeps the newest `keep`; saving does not wait for the disk."""
    # A checkpoint that a killed run left unfinished has a temporary name and is removed.
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(Path(workdir).absolute() / CHECKPOINTS, options=options)


def save(
    checkpoints: ocp.CheckpointManager, step: int, params: PyTree, optimizer: PyTree, position: int, config: dict
) -> None:
    """Saves a run after `step` updates.

    Args:
        checkpoints: of the run.
        step: updates done.
        params, optimizer: trees of arrays.
        position: training examples consumed.
        config: settings of the run (`Config.to_dict`).

    Raises:
        CheckpointError: this checkpoint, or the previous one, cannot be written.
    """
    items = ocp.args.Composite(
        weights=ocp.args.StandardSave(params),
        optimizer=ocp.args.StandardSave(optimizer),
        position=ocp.args.JsonSave({"examples": position}),
        config=ocp.args.JsonSave(config),
    )
    with _explain_failure(checkpoints):
        checkpoints.save(step, args=items)


def finish(checkpoints: ocp.CheckpointManager) -> None:
    """Waits until all checkpoints are on disk.

    Raises:
        CheckpointError: one cannot be written.
    """
    with _explain_failure(checkpoints):
        checkpoints.wait_until_finished()


def restore(
    checkpoints: ocp.CheckpointManager, step: int, params: PyTree, optimizer: PyTree, config: dict
) -> tuple[PyTree, PyTree, int]:
    """Restores a checkpoint.

    Args:
        checkpoints: of the run.
        step: one of `checkpoints.all_steps()`.
        params, optimizer: abstract trees with shardings, on any mesh.
        config: settings of the run that continues.

    Returns:
        Parameters, optimizer state, and the number of examples consumed.

    Raises:
        CheckpointError: the run was started with another configuration.
    """
    directory = Path(checkpoints.directory) / str(step)
    _require_same_config(read_config(directory), config, directory)
    items = ocp.args.Composite(
        weights=ocp.args.StandardRestore(params),
        optimizer=ocp.args.StandardRestore(optimizer),
        position=ocp.args.JsonRestore(),
    )
    restored = checkpoints.restore(step, args=items)
    return restored.weights, restored.optimizer, restored.position["examples"]


@contextlib.contextmanager
def _explain_failure(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # on a full disk TensorStore raises a ValueError
        newest = newest_step(Path(checkpoints.directory).parent)
        there = "none was saved before" if newest is None else f"the newest complete one is of step {newest}"
        raise CheckpointError(
            f"{checkpoints.directory}: cannot save a checkpoint ({there}): {error}\n"
            "Check the free space and the permissions there; the same command continues from the newest checkpoint."
        ) from error


def _require_same_config(saved: dict, current: dict, directory: Path) -> None:
    saved = upgrade(saved)
    found, expected = (flatten_dict({"config": values}, sep=".") for values in (saved, current))
    known = {key.rpartition(".")[0] for key in found}  # groups
    different = []
    for key, field in list_settings(Config, with_free=False).items():
        if key.rpartition(".")[0] not in known:
            continue
        value = found.get(key, field.default)  # a setting that did not exist then
        if value != expected[key]:
            different.append(f"  {key}: checkpoint has {value!r}, this run has {expected[key]!r}")
    if different:
        raise CheckpointError(
            "\n".join([f"{directory}: was written by another configuration:", *different])
            + "\nUse the settings of that run, or another --workdir."
        )

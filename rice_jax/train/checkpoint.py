"""Checkpoints on disk: weights, optimiser state, data position and configuration, saved together by Orbax.

A checkpoint is a directory with the items `weights`, `optimizer`, `position` and `config`; a converted encoder has only
`weights` and `config`. Orbax writes to a temporary name and renames, so a killed run leaves no half checkpoint.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from rice_jax.config import Config
from rice_jax.config.fields import fixed_settings
from rice_jax.config.upgrade import upgrade
from rice_jax.models.weights import CHECKPOINTS, CheckpointError, newest_step, read_config


def open_checkpoints(workdir: str | os.PathLike, keep: int) -> ocp.CheckpointManager:
    """The checkpoints of a run, of which the newest `keep` are kept; saving does not wait for the disk."""
    # What a killed run left half-written has another name, and goes.
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(Path(workdir).absolute() / CHECKPOINTS, options=options)


def save(
    checkpoints: ocp.CheckpointManager, step: int, params: PyTree, optimizer: PyTree, position: int, config: dict
) -> None:
    """Saves a run after `step` updates; `position` is the number of training examples consumed.

    Raises:
        CheckpointError: this checkpoint, or the one before, cannot be written.
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
    """Waits until what was saved is on disk.

    Raises:
        CheckpointError: it cannot be written.
    """
    with _explain_failure(checkpoints):
        checkpoints.wait_until_finished()


def restore(
    checkpoints: ocp.CheckpointManager, step: int, params: PyTree, optimizer: PyTree, config: dict
) -> tuple[PyTree, PyTree, int]:
    """Restores what `save` wrote.

    Args:
        checkpoints: of the run.
        step: one of `checkpoints.all_steps()`.
        params, optimizer: abstract trees with shardings, on any mesh.
        config: of the run that continues.

    Returns:
        params, optimizer state, number of examples consumed.

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
    except (OSError, ValueError, RuntimeError) as error:  # TensorStore says of a full disk that a value is out of range
        newest = newest_step(Path(checkpoints.directory).parent)
        there = "none was saved before" if newest is None else f"that of step {newest} is whole, and the newest"
        raise CheckpointError(
            f"{checkpoints.directory}: cannot save a checkpoint ({there}): {error}\n"
            "Look at the disk's free space and the permissions there; the same command continues from the newest."
        ) from error


def _require_same_config(saved: dict, current: dict, directory: Path) -> None:
    saved = upgrade(saved)
    found, expected = (flatten_dict({"config": values}, sep=".") for values in (saved, current))
    known = {key.rpartition(".")[0] for key in found}  # groups
    different = []
    for key, field in fixed_settings(Config).items():
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

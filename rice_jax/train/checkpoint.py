"""Checkpoints of a run: weights, optimizer state, data position and settings, saved together by Orbax.

`rice_jax.models.weights` describes them on disk and reads the weights alone.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from rice_jax.config import Config
from rice_jax.config.fields import list_settings
from rice_jax.config.upgrade import upgrade
from rice_jax.files import find_damage, write_manifest
from rice_jax.models.weights import (
    CHECKPOINTS,
    UNLISTED,
    CheckpointError,
    explain_damage,
    list_steps,
    missing_files,
    newest_step,
    read_config,
)
from rice_jax.parallel.processes import agree

ITEMS = "config", "optimizer", "weights"
# Devices that hold the same array share the work of writing it only if each has this much to write, in bytes. To cut
# smaller arrays takes longer, since a program is compiled for each shape and slice.
MIN_SLICE_BYTES = 2**20
TEMPORARY = "*.orbax-checkpoint-tmp*"

logger = logging.getLogger(__name__)


def open_checkpoints(workdir: str | os.PathLike, keep: int) -> ocp.CheckpointManager:
    """Opens the checkpoints of a run and keeps the newest `keep`; saving does not wait for the disk.

    Newest checkpoints that are damaged are moved to `damaged-checkpoint-STEP` in the workdir. All processes call this
    together.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    directory = Path(workdir).absolute() / CHECKPOINTS
    problem = ""
    if jax.process_index() == 0:
        try:
            problem = _set_aside_damaged(directory)
        except OSError as error:  # the others wait for an answer
            problem = f"{directory}: {error}"
    if not agree(not problem):
        raise CheckpointError(problem or f"{directory}: cannot be used, see the output of the first process")

    def finish_files() -> None:
        # Orbax has written all files, in all processes, and calls this in the first one before it renames them.
        for temporary in directory.glob(TEMPORARY):
            write_manifest(temporary, UNLISTED)

    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=True,
        # A checkpoint that a killed run left unfinished has a temporary name and is removed.
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=finish_files),
    )
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_SLICE_BYTES)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    handlers = {
        "weights": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "optimizer": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "config": ocp.JsonCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    params: PyTree,
    optimizer: PyTree,
    config: dict,
    data: Mapping[str, str],
) -> None:
    """Saves a run after `step` updates.

    Args:
        checkpoints: of the run.
        step: updates done, each with a batch of training examples.
        params, optimizer: trees of arrays.
        config: settings of the run (`Config.to_dict`).
        data: {name: digest} of the training data.

    Raises:
        CheckpointError: this checkpoint, or the previous one, cannot be written.
    """
    items = ocp.args.Composite(
        weights=ocp.args.PyTreeSave(params),
        optimizer=ocp.args.PyTreeSave(optimizer),
        config=ocp.args.JsonSave(config),
        data=ocp.args.JsonSave(dict(data)),
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
    checkpoints: ocp.CheckpointManager,
    step: int,
    params: PyTree,
    optimizer: PyTree,
    config: dict,
    data: Mapping[str, str],
) -> tuple[PyTree, PyTree]:
    """Restores a checkpoint.

    Args:
        checkpoints: of the run.
        step: one of `checkpoints.all_steps()`.
        params, optimizer: abstract trees with shardings, on any mesh.
        config: settings of the run that continues.
        data: {name: digest} of its training data.

    Returns:
        Parameters and optimizer state.

    Raises:
        CheckpointError: the run was started with another configuration or on other data, or the checkpoint cannot be
            read.
    """
    directory = Path(checkpoints.directory) / str(step)
    _require_same_config(read_config(directory), config, directory)
    items = {"weights": _restore_args(params), "optimizer": _restore_args(optimizer)}
    if (directory / "data").is_dir():  # version 0.2 did not save it
        items["data"] = ocp.args.JsonRestore()
    with explain_damage(directory):
        restored = checkpoints.restore(step, args=ocp.args.Composite(**items))
    _require_same_data(restored.get("data") or {}, data, directory)
    return restored.weights, restored.optimizer


def _set_aside_damaged(directory: Path) -> str:
    """Renames the newest checkpoints that are damaged, up to the first whole one; says so if there is none."""
    damaged: dict[int, str] = {}
    for step in list_steps(directory.parent):
        path = directory / str(step)
        if not (damage := missing_files(path, ITEMS) or find_damage(path)):
            break
        damaged[step] = damage
    else:
        if damaged:
            named = "; ".join(f"{step}: {damage}" for step, damage in damaged.items())
            return (
                f"{directory}: found no whole checkpoint ({named}); copy them again, or delete {directory} to start "
                "from the beginning"
            )
    for lost, damage in damaged.items():
        place = directory.parent / f"damaged-checkpoint-{lost}"
        while place.exists():
            place = place.with_name(place.name + "-")
        (directory / str(lost)).rename(place)
        logger.warning(
            "%s: is damaged (%s) and now called %s; the run goes on from step %d, so %d steps are lost and done again",
            directory / str(lost),
            damage,
            place,
            step,
            lost - step,
        )
    return ""


def _restore_args(tree: PyTree) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))


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
    # Version 0.1 saved None in the place of a group whose settings it did not know.
    unknown = tuple(f"{name}." for name, value in flatten_dict({"config": saved}, sep=".").items() if value is None)
    found, expected = (flatten_dict({"config": values}, sep=".") for values in (upgrade(saved), current))
    different = []
    for key, field in list_settings(Config, with_free=False).items():
        value = found.get(key, field.default)  # a setting that did not exist then
        if key.startswith(unknown) or value == expected[key]:
            continue
        if key == "config.train.total_steps" and value < expected[key]:
            logger.warning(
                "%s: the run was planned for %d steps and now has %d (%s). Learning rates depend on it: from here on "
                "they follow the cosine over %d steps, which is higher than the one before, so the result differs from "
                "that of a run planned for %d from its start",
                *(directory, value, expected[key], key, expected[key], expected[key]),
            )
            continue
        different.append(f"  {key}: checkpoint has {value!r}, this run has {expected[key]!r}")
    if different:
        raise CheckpointError(
            "\n".join([f"{directory}: was written by another configuration:", *different])
            + "\nUse the settings of that run, or another --workdir."
        )


def _require_same_data(saved: Mapping[str, str], current: Mapping[str, str], directory: Path) -> None:
    changed = sorted(name for name in saved.keys() & current.keys() if saved[name] != current[name])
    if changed:
        raise CheckpointError(
            f"{directory}: the training data {' and '.join(changed)} has changed since this checkpoint (its digest was "
            f"{saved[changed[0]][:12]}, now it is {current[changed[0]][:12]}), so the run would go on with other "
            "examples. Use the data of that run, or another --workdir."
        )

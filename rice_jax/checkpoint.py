"""Checkpoints on disk: weights, optimiser state, data position and configuration, saved together by Orbax.

A checkpoint is a directory with the items `weights`, `optimizer`, `position` and `config`; a converted encoder has only
`weights` and `config`. Orbax writes to a temporary name and renames, so a killed run leaves no half checkpoint.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from rice_jax.config import ModelConfig

CHECKPOINTS = "checkpoints"
# Settings that may differ between the run that wrote a checkpoint and the one that continues it: they change where and
# how fast it runs and what it reports, not what it computes (but for rounding).
FREE = ("eval", "index", "mesh", "train.log_interval_steps", "train.checkpoint_interval_steps",
        "train.eval_interval_steps", "train.keep_checkpoints", "train.grad_cache_chunks", "data.data_dir", "data.query",
        "data.gallery", "data.detect", "data.query_boxes", "data.num_workers", "data.num_threads",
        "data.device_resize_height", "data.device_resize_width", "model.remat", "model.unroll",
        "model.init_from")  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message says what was found, what was expected and what to do."""


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
    _require_same_config(_read_config(directory), config, directory)
    items = ocp.args.Composite(
        weights=ocp.args.StandardRestore(params),
        optimizer=ocp.args.StandardRestore(optimizer),
        position=ocp.args.JsonRestore(),
    )
    restored = checkpoints.restore(step, args=items)
    return restored.weights, restored.optimizer, restored.position["examples"]


def save_weights(directory: str | os.PathLike, params: PyTree, config: dict) -> None:
    """Saves parameters (e.g. only `{"encoder": …}`) with `{"model": …}` sizes, to start runs from.

    Raises:
        CheckpointError: the directory exists and is not empty.
    """
    directory = Path(directory).absolute()
    if directory.exists() and any(directory.iterdir()):
        raise CheckpointError(f"{directory}: exists and is not empty; choose another directory or delete it")
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = ocp.args.Composite(weights=ocp.args.StandardSave(params), config=ocp.args.JsonSave(config))
        checkpointer.save(directory, args=items, force=True)


def load_weights(directory: str | os.PathLike) -> tuple[PyTree, dict]:
    """Reads the parameters of a converted encoder or of a run's newest checkpoint.

    Args:
        directory: what `save_weights` wrote, or a run's workdir.

    Returns:
        Nested dict of numpy arrays, and the configuration saved with it.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    directory = _find_weights(Path(directory).absolute())
    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(directory / "weights").tree
    # On the host, whatever devices wrote them.
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    params = handler.restore(directory / "weights", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return params, _read_config(directory)


def parameter_names(directory: str | os.PathLike) -> set[str]:
    """The names of what `load_weights` would read, e.g. "pmd/pool/kernel", without reading it; same arguments."""
    saved = ocp.PyTreeCheckpointHandler().metadata(_find_weights(Path(directory).absolute()) / "weights").tree
    return set(flatten_dict(saved, sep="/"))


def fingerprint(params: PyTree, model: ModelConfig, resize: int) -> str:
    """Tells encoders apart: only vectors of one fingerprint can be compared.

    Args:
        params: as `train.state.start_from` placed them; those of the encoder count. All processes call this together.
        model: its sizes; what it computes in plays no part.
        resize: side to which a picture is squashed before the crop, pixels.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    sizes = {"heads": model.heads, "image_size": model.image_size, "patch_size": model.patch_size, "resize": resize}
    digest = hashlib.sha256(json.dumps(sizes).encode())
    for name, value in sorted(flatten_dict(params["encoder"], sep="/").items()):
        whole = np.ascontiguousarray(multihost_utils.process_allgather(value, tiled=True), "<f4")
        digest.update(f"{name} {whole.shape}".encode())
        digest.update(whole)
    return digest.hexdigest()


def newest_step(workdir: str | os.PathLike) -> int | None:
    """The step of a run's newest checkpoint; None if it has none."""
    directory = Path(workdir) / CHECKPOINTS
    steps = [int(path.name) for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []
    return max(steps, default=None)


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


def _find_weights(directory: Path) -> Path:
    if (directory / "weights").is_dir():
        return directory
    if (step := newest_step(directory)) is None:
        raise CheckpointError(
            f"{directory}: found no checkpoint, expected a run's workdir or the output of "
            "`python -m rice_jax.convert.clip SOURCE OUT`"
        )
    return directory / CHECKPOINTS / str(step)


def _read_config(directory: Path) -> dict:
    try:
        return ocp.JsonCheckpointHandler().restore(directory / "config", args=ocp.args.JsonRestore())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: cannot read the checkpoint's configuration: {error}") from error


def _require_same_config(saved: dict, current: dict, directory: Path) -> None:
    different = [
        f"  config.{key}: checkpoint has {_flat(saved).get(key)!r}, this run has {_flat(current).get(key)!r}"
        for key in sorted(_flat(saved).keys() | _flat(current).keys())
        if _flat(saved).get(key) != _flat(current).get(key) and not _is_free(key)
    ]
    if different:
        raise CheckpointError(
            "\n".join([f"{directory}: was written by another configuration:", *different])
            + "\nUse the settings of that run, or another --workdir."
        )


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE)


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat

"""Weights on disk: a converted model, or the newest checkpoint of a run, and what identifies them.

A checkpoint is a directory with the items `weights`, `optimizer`, `config` and `data`; a converted model has only
`weights` and `config`. Orbax writes to a temporary name and renames, so a killed run leaves no partial checkpoint. A
manifest with the files' checksums shows damage that comes later; checkpoints of version 0.2 and before have none.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from rice_jax.files import find_damage, write_manifest
from rice_jax.models.cope import DOMAINS, PAGE, CopeConfig
from rice_jax.models.create import AnyModelConfig, model_class
from rice_jax.models.rice import RiceConfig

CHECKPOINTS = "checkpoints"
UNLISTED = "_CHECKPOINT_METADATA", "commit_success.txt"  # Orbax writes them after the manifest; nothing reads them

PROJECTION = "encoder/projection/kernel"  # the only parameter of a Swin transformer that its weights may lack

_ADVICE = "copy it again, or use an older checkpoint of its run (RUN/checkpoints/STEP)"

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message says what was found, what was expected, and what to do."""


def save_weights(directory: str | os.PathLike, params: PyTree, config: dict) -> None:
    """Saves parameters with their settings, for runs to start from.

    Args:
        directory: a new or empty directory.
        params: nested dict, e.g. only {"encoder": …}.
        config: nested dict of settings, e.g. only {"model": …}.

    Raises:
        CheckpointError: the directory exists and is not empty.
    """
    directory = Path(directory).absolute()
    if directory.exists() and any(directory.iterdir()):
        raise CheckpointError(f"{directory}: exists and is not empty; choose another directory or delete it")
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = ocp.args.Composite(weights=ocp.args.StandardSave(params), config=ocp.args.JsonSave(config))
        checkpointer.save(directory, args=items, force=True)
    write_manifest(directory, UNLISTED)


def load_weights(directory: str | os.PathLike) -> tuple[PyTree, dict]:
    """Reads the parameters of a converted encoder or of a run's newest checkpoint.

    Args:
        directory: output of `save_weights`, or a run's workdir.

    Returns:
        Nested dict of numpy arrays, and the configuration saved with it.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    directory = find_weights(Path(directory).absolute())
    if damage := find_damage(directory, ("weights", "config")):
        raise CheckpointError(f"{directory}: is damaged: {damage}; {_ADVICE}")
    handler = ocp.PyTreeCheckpointHandler()
    with explain_damage(directory):
        # On the host, since the devices that wrote them may not exist here.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _stored_tree(directory))
        params = handler.restore(directory / "weights", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return params, read_config(directory)


def parameter_names(directory: str | os.PathLike) -> set[str]:
    """The names of the parameters in a checkpoint, e.g. "pmd/pool/kernel".

    Args:
        directory: see `load_weights`.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    found = find_weights(Path(directory).absolute())
    with explain_damage(found):
        return set(flatten_dict(_stored_tree(found), sep="/"))


def _stored_tree(checkpoint: Path) -> dict:
    """Describes each stored parameter, as a nested dict; Orbax takes about as long for it as for the values."""
    weights = checkpoint / "weights"
    return _read_tree(weights, (weights / "_METADATA").stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)  # a command asks several times
def _read_tree(weights: Path, changed: int) -> dict:
    return ocp.PyTreeCheckpointHandler().metadata(weights).tree


def newest_weights(workdir: Path, init_from: str) -> tuple[Path, int]:
    """The checkpoint to use and its step: the run's newest checkpoint, otherwise the weights that the run starts from.

    Raises:
        CheckpointError: there is neither.
    """
    if step := newest_step(workdir):
        return workdir, step
    if init_from:
        return Path(init_from), 0
    raise CheckpointError(f"{workdir}: found no checkpoint to evaluate; train first, or set config.model.init_from")


def require_trained(source: Path, params: PyTree, module: str, name: str, advice: str) -> None:
    """Refuses a checkpoint without a trained part, whose answers would be random.

    Raises:
        CheckpointError: a parameter of the part is missing.
    """
    if untrained := missing(source, params, module):
        raise CheckpointError(f"{source}: has no trained {name} ({untrained[0]} is missing); {advice}")


def missing(source: Path, params: PyTree, module: str) -> list[str]:
    """The parameters of a module that a checkpoint does not have."""
    expected = {f"{module}/{parameter}" for parameter in flatten_dict(params[module], sep="/")}
    return sorted(expected - parameter_names(source))


def require_trained_embedding(source: Path, params: PyTree) -> None:
    """Refuses a checkpoint without trained weights of the model's projection or aggregation, if it has any.

    Raises:
        CheckpointError: a parameter is missing.
    """
    if "projection" in params["encoder"] and PROJECTION not in parameter_names(source):
        raise CheckpointError(
            f"{source}: has no trained projection to config.model.embed_dim ({PROJECTION} is missing); use the "
            "settings of a run that trained one, or leave embed_dim at its default"
        )
    for part in [*DOMAINS, "text"] if PAGE in params else ():
        if part in params:
            require_trained(source, params, part, f"{part!r} of COPE", "use a run of task 'cope' with these settings")
    if "aggregation" in params:
        advice = "use the settings of a run that trained one, or config.model.aggregation.kind='features'"
        require_trained(source, params, "aggregation", "aggregation of this kind", advice)


def embedding_fingerprint(params: PyTree, config: AnyModelConfig, resize: int) -> str:
    """Identifies what embeds: only vectors of one fingerprint can be compared.

    Every parameter counts, except those that the model lists as `TRAINING_ONLY` or `MATCH_ONLY`. All processes call
    this together.

    Args:
        params: as `start.start_from` placed them.
        config: of the model; the compute type does not count.
        resize: side to which a picture is squashed before the crop, pixels.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    encoder = config.encoder
    # Switches of OpenAI's CLIP are left out, and so its indexes of earlier versions, which knew no other, stay valid.
    sizes = {
        "heads": encoder.heads,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "resize": resize,
    } | encoder.switches
    if isinstance(config, RiceConfig) and config.aggregation.kind != "features":  # version 0.2 knew no other
        sizes["aggregation"] = config.aggregation.kind
        if config.aggregation.kind == "transformer":
            sizes["aggregation_heads"] = config.aggregation.transformer.heads
        if config.aggregation.kind == "attention" and config.aggregation.attention.pooling == "direction":
            sizes["aggregation_pooling"] = "direction"  # the others differ in their parameters
    if isinstance(config, CopeConfig):
        sizes |= {"text_domains": list(config.text_domains), "text": config.text.own if config.text else None}
    model = model_class(config)
    rest = {part: params[part] for part in params if part not in ("encoder", *model.TRAINING_ONLY, *model.MATCH_ONLY)}
    # The encoder's parameters go without their part's name, as in the indexes of version 0.1.
    return digest_params(json.dumps(sizes).encode(), params["encoder"], rest)


def match_fingerprint(params: PyTree, config: AnyModelConfig) -> str | None:
    """Identifies what matches embedded images: an index can be re-ranked only by the model that made it.

    The parameters that the model lists as `MATCH_ONLY` count. All processes call this together.

    Args:
        params: as `start.start_from` placed them.
        config: of the model.

    Returns:
        SHA-256 as hexadecimal digits; None for a model that has none of these parts.
    """
    parts = {part: params[part] for part in model_class(config).MATCH_ONLY if part in params}
    return digest_params(b"", parts) if parts else None


def digest_params(prefix: bytes, *trees: PyTree) -> str:
    """SHA-256, as hexadecimal digits, of some bytes and of parameters; all processes call it together."""
    digest = hashlib.sha256(prefix)
    for tree in trees:
        for name, value in sorted(flatten_dict(tree, sep="/").items()):
            whole = np.ascontiguousarray(multihost_utils.process_allgather(value, tiled=True), "<f4")
            digest.update(f"{name} {whole.shape}".encode())
            digest.update(whole.data)
    return digest.hexdigest()


def newest_step(workdir: str | os.PathLike) -> int | None:
    """The step of a run's newest checkpoint with all its weights; None if it has none. Newer ones are named."""
    for step in list_steps(workdir):
        directory = Path(workdir) / CHECKPOINTS / str(step)
        if not (damage := missing_files(directory, ("config", "weights"))):
            return step
        _warn(f"{directory}: is not used, since it is not complete: {damage}")
    return None


def list_steps(workdir: str | os.PathLike) -> list[int]:
    """The steps of a run's checkpoints, the newest first, complete or not."""
    directory = Path(workdir) / CHECKPOINTS
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def missing_files(directory: Path, items: Sequence[str]) -> str:
    """What some items of a checkpoint lack, by the names and sizes of their files; "" if nothing."""
    for item in items:
        if not (directory / item).is_dir() or not any((directory / item).iterdir()):
            return f"{item} is missing"
    return find_damage(directory, items, contents=False)


@contextlib.contextmanager
def explain_damage(directory: Path) -> Iterator[None]:
    """Turns the errors of Orbax on a damaged checkpoint into one line that names it."""
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:  # TensorStore and Orbax raise many kinds
        first = next(iter(str(error).splitlines()), "")
        raise CheckpointError(
            f"{directory}: cannot be read ({type(error).__name__}: {first[:200]}); {_ADVICE}"
        ) from error


def find_weights(directory: Path) -> Path:
    """The directory of a converted model, of a checkpoint, or of a run's newest checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    if (directory / "weights").is_dir():
        return directory
    if (step := newest_step(directory)) is None:
        raise CheckpointError(
            f"{directory}: found no checkpoint, expected a run's workdir or the output of "
            "`rice convert clip SOURCE OUT`"
        )
    return directory / CHECKPOINTS / str(step)


def read_config(directory: Path) -> dict:
    """The settings that a checkpoint was saved with.

    Raises:
        CheckpointError: they cannot be read.
    """
    try:
        return ocp.JsonCheckpointHandler().restore(directory / "config", args=ocp.args.JsonRestore())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: cannot read the checkpoint's configuration: {error}") from error


def read_data(directory: Path) -> dict[str, str]:
    """{name: digest} of the data that a checkpoint was trained on; {} if it does not say."""
    path = directory / "data"
    return (ocp.JsonCheckpointHandler().restore(path, args=ocp.args.JsonRestore()) or {}) if path.is_dir() else {}


@functools.cache  # once each, though a program looks for the newest checkpoint several times
def _warn(message: str) -> None:
    logger.warning("%s", message)

"""Weights on disk: a converted model, or the newest checkpoint of a run, and a model that starts from them.

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
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from rice_jax.config import ModelConfig as ModelSettings
from rice_jax.config import SwinConfig, VitConfig
from rice_jax.files import find_damage, write_manifest
from rice_jax.models.cope import CLASSES, DOMAINS, PAGE, CopeConfig
from rice_jax.models.create import ModelConfig, model_class, start_decoder
from rice_jax.models.detr import DetrConfig
from rice_jax.models.encoders import between_frames, encoder_class
from rice_jax.models.rice import RiceConfig
from rice_jax.models.saved_encoder import differences, take_settings

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
        saved = handler.metadata(directory / "weights").tree
        # On the host, since the devices that wrote them may not exist here.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        params = handler.restore(directory / "weights", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return params, read_config(directory)


def with_saved_encoder(model: ModelSettings, workdir: Path | None) -> ModelSettings:
    """Settings of the model, those of its encoder as in the weights that the run starts from.

    A setting at its default takes the weights' value; the picture's size and how to compute stay the run's own. A run
    that goes on without these weights takes what its checkpoint says of them. Where there are no weights to read,
    nothing changes.

    Args:
        model: as the user set it.
        workdir: of the run.

    Raises:
        ConfigError: a setting is not at its default and contradicts the weights, in a way that no shape shows.
    """
    for source in _sources(model.init_from, workdir):
        try:
            saved = read_config(source).get("model", {})
        except CheckpointError:
            continue
        if not (model.init_from or saved.get("init_from")):
            return model
        return take_settings(model, saved, str(source))
    return model


def _sources(init_from: str, workdir: Path | None) -> Iterator[Path]:
    """The checkpoints that may describe a run's encoder: that from which it starts, then its own."""
    if init_from:
        with contextlib.suppress(CheckpointError):
            yield find_weights(Path(init_from).absolute())
    if workdir:
        yield from (workdir.absolute() / CHECKPOINTS / str(step) for step in list_steps(workdir))


def parameter_names(directory: str | os.PathLike) -> set[str]:
    """The names of the parameters in a checkpoint, e.g. "pmd/pool/kernel".

    Args:
        directory: see `load_weights`.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    found = find_weights(Path(directory).absolute())
    with explain_damage(found):
        saved = ocp.PyTreeCheckpointHandler().metadata(found / "weights").tree
    return set(flatten_dict(saved, sep="/"))


def start_from(directory: str | os.PathLike, params: PyTree, config: ModelConfig) -> PyTree:
    """Replaces fresh parameters by those of a converted model or of another run.

    Parts of the checkpoint that the model does not have are left out, and so are centers of products, whose rows only
    its run's list can tell apart. Parameters that the checkpoint does not have stay
    fresh, in an encoder only its layers between frames, except that a decoder starts from the last blocks of the
    checkpoint's encoder. So a detector of clips may start from one of frames.

    Args:
        directory: output of `rice_jax.convert`, or a workdir.
        params: fresh parameters, or their shapes and places (`create.abstract_params`) if the checkpoint has them all.
        config: of the model; positions are interpolated to its image size.

    Raises:
        CheckpointError: there is no checkpoint, or its parameters have other names or shapes.
    """
    saved, saved_config = load_weights(directory)
    saved.pop(CLASSES, None)
    for part in sorted(saved.keys() - params.keys()):
        logger.info("%s: has a part %s, which this model does not have; it is not loaded", directory, part)
        del saved[part]
    _require_same_parts(saved_config["model"], saved, config, directory)
    if "pmd" in params and "pmd" not in saved:
        saved = start_decoder(saved | {"pmd": params["pmd"]})
    saved["encoder"] = encoder_class(config.encoder).fit(saved["encoder"], config.encoder)

    fresh = flatten_dict(params, sep="/")
    found = flatten_dict(saved, sep="/")
    lacking = [name for name in sorted(fresh.keys() - found.keys()) if name.startswith("encoder/")]
    may_be = tuple(_may_be_fresh(saved_config["model"], config))
    if new := [path for path in may_be if any(name.startswith(path) for name in lacking)]:
        logger.info("%s: has no %s; they start from fresh weights", directory, " and no ".join(new))
    wrong = [f"  {name}: unknown" for name in sorted(found.keys() - fresh.keys())]
    wrong += [f"  {name}: missing" for name in lacking if not name.startswith(may_be)]
    wrong += [
        f"  {name}: found {found[name].shape}, expected {fresh[name].shape}"
        for name in sorted(found.keys() & fresh.keys())
        if found[name].shape != fresh[name].shape
    ]
    if wrong:
        raise CheckpointError(
            "\n".join([f"{directory}: does not fit config.model:", *wrong]) + "\nUse the sizes that it was made with."
        )
    placed = {name: jax.device_put(value, fresh[name].sharding) for name, value in found.items()}
    return unflatten_dict(fresh | placed, sep="/")


def _may_be_fresh(saved: dict, config: ModelConfig) -> Iterator[str]:
    """The beginnings of the paths of an encoder's parameters that its weights may lack."""
    if isinstance(config.encoder, SwinConfig):
        yield PROJECTION
    elif saved.get("architecture", "vit") == "vit":
        yield from (f"encoder/{path}" for path in between_frames(config.encoder))


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


def embedding_fingerprint(params: PyTree, config: ModelConfig, resize: int) -> str:
    """Identifies what embeds: only vectors of one fingerprint can be compared.

    Every parameter counts, except those that the model lists as `TRAINING_ONLY` or `MATCH_ONLY`. All processes call
    this together.

    Args:
        params: as `start_from` placed them.
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
    if isinstance(config, CopeConfig):
        sizes |= {"text_domains": list(config.text_domains), "text": config.text.own if config.text else None}
    model = model_class(config)
    rest = {part: params[part] for part in params if part not in ("encoder", *model.TRAINING_ONLY, *model.MATCH_ONLY)}
    # The encoder's parameters go without their part's name, as in the indexes of version 0.1.
    return digest_of(json.dumps(sizes).encode(), params["encoder"], rest)


def match_fingerprint(params: PyTree, config: ModelConfig) -> str | None:
    """Identifies what matches embedded images: an index can be re-ranked only by the model that made it.

    The parameters that the model lists as `MATCH_ONLY` count. All processes call this together.

    Args:
        params: as `start_from` placed them.
        config: of the model.

    Returns:
        SHA-256 as hexadecimal digits; None for a model that has none of these parts.
    """
    parts = {part: params[part] for part in model_class(config).MATCH_ONLY if part in params}
    return digest_of(b"", parts) if parts else None


def digest_of(prefix: bytes, *trees: PyTree) -> str:
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


def _require_same_parts(saved: dict, parts: PyTree, config: ModelConfig, directory: str | os.PathLike) -> None:
    """Compares what no parameter's shape shows: the encoder's switches, and the numbers of heads."""
    if found := differences(saved, config.encoder):
        raise CheckpointError(f"{directory}: found an encoder with {found}")
    pairs: dict[str, tuple[int, int]] = {}
    if isinstance(config.encoder, VitConfig):
        pairs["heads"] = saved["heads"], config.encoder.heads
    if isinstance(config, RiceConfig) and config.pmd and "pmd" in parts:
        pairs["pmd.num_heads"] = (saved["pmd"]["num_heads"], config.pmd.num_heads)
    if isinstance(config, RiceConfig) and config.aggregation.kind == "transformer" and "aggregation" in parts:
        found = saved["aggregation"]["transformer"]["heads"]
        pairs["aggregation.transformer.heads"] = found, config.aggregation.transformer.heads
    if isinstance(config, DetrConfig) and "detector" in parts:
        pairs["detector.heads"] = (saved["detector"]["heads"], config.decoder.heads)
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise CheckpointError(f"{directory}: found {theirs} heads, expected {ours} (config.model.{name})")

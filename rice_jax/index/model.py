"""A trained model, loaded from its checkpoint alone: neither training code nor a config file is needed."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import PyTree

from rice_jax.config import Config, ConfigError, MeshConfig
from rice_jax.config.fields import build
from rice_jax.config.upgrade import upgrade
from rice_jax.eval.calibration import read_calibration
from rice_jax.files import absolute
from rice_jax.index.store import About
from rice_jax.models.contract import SupportsStreaming
from rice_jax.models.cope import PAGE, CopeConfig
from rice_jax.models.create import AnyModelConfig, abstract_params, create_model, create_params
from rice_jax.models.detr import DetrConfig
from rice_jax.models.encoders import VIDEO_ENCODERS
from rice_jax.models.rice import RiceConfig
from rice_jax.models.start import start_from
from rice_jax.models.text_weights import tokenizer_folder
from rice_jax.models.weights import (
    CHECKPOINTS,
    CheckpointError,
    embedding_fingerprint,
    match_fingerprint,
    newest_step,
    parameter_names,
    read_config,
    require_trained_embedding,
)
from rice_jax.parallel.mesh import create_mesh


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """A model's parts, and how pictures are shown to it.

    Attributes:
        model: the parts.
        resize: side to which a picture is squashed before the crop, pixels.
        num_frames: largest number of frames in a clip; more are sampled evenly.
        ipd: `config.model.ipd` in training.
        tokenizer: folder of the tokenizer by which the model reads an image's title; "" = it reads none.
        text_context: tokens of the longest title.
    """

    model: RiceConfig | CopeConfig
    resize: int
    num_frames: int
    ipd: str = "off"
    tokenizer: str = ""
    text_context: int = 0

    @classmethod
    def of(cls, config: Config) -> "ModelSettings":
        """The settings of a run's model, without parts that only training needs."""
        model, resize, num_frames = config.model, config.data.resize, config.eval.num_frames
        if config.task != "cope":
            text, loss = model.texts, config.loss.kind
            parts = RiceConfig(model.encoder, model.logit_scale, model.pmd, None, model.aggregation, loss, text)
            return cls(parts, resize, num_frames, model.ipd)
        cope = CopeConfig.of(model)
        if PAGE not in cope.text_domains:
            return cls(cope, resize, num_frames)
        tokenizer = absolute(config.input.tokenizer)
        return cls(cope, resize, num_frames, tokenizer=tokenizer, text_context=config.input.text_context)

    @classmethod
    def of_run(cls, config: Config, parts: AnyModelConfig) -> "ModelSettings":
        """The settings of the model that a run's task trains.

        Args:
            config: settings of the run.
            parts: settings of the model's parts, as the task has them.

        Raises:
            ConfigError: the model finds boxes, and embeds nothing.
        """
        if isinstance(parts, DetrConfig):
            raise ConfigError(f"index: found config.task={config.task!r}, expected 'retrieval', 'domains', or 'cope'")
        settings = cls.of(config)
        return dataclasses.replace(settings, model=parts) if isinstance(parts, RiceConfig) else settings


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained model on its devices: `nnx.merge(graphdef, params)` embeds images and videos.

    Attributes:
        about: what an index stores about it; `about.model` has the compute type of training.
        config: the parts, with the compute type used here.
        graphdef: structure.
        params: trained parameters.
        mesh: the devices.
    """

    about: About
    config: RiceConfig | CopeConfig
    graphdef: nnx.GraphDef
    params: PyTree
    mesh: Mesh

    @functools.cached_property
    def is_streaming(self) -> bool:
        """Whether a clip is embedded from what is kept of its frames, and not from its pictures."""
        return SupportsStreaming in nnx.merge(self.graphdef, self.params).capabilities


def load_model(source: str | os.PathLike) -> Model:
    """Loads the model of a checkpoint on this process's first device; on a CPU it computes in float32.

    Args:
        source: a run's workdir, one of its checkpoints, or a converted model.

    Raises:
        CheckpointError: there is no checkpoint, it cannot be read, or it holds a detector.
    """
    source = Path(source)
    return place_model(source, read_settings(source), _first_device(), on_cpu="float32")


def load_index_model(about: About, source: str | os.PathLike | None = None) -> Model:
    """Loads the model that made an index on this process's first device; on a CPU it computes in float32.

    Args:
        about: what the index stores about its model.
        source: where the checkpoint is now; None = where it was when the index was made.

    Raises:
        CheckpointError: there is no checkpoint, or it is not the model that made the index.
    """
    source = Path(about.checkpoint if source is None else source)
    names = [field.name for field in dataclasses.fields(ModelSettings)]
    settings = ModelSettings(**{name: getattr(about, name) for name in names})
    model = place_model(source, settings, _first_device(), on_cpu="float32")
    found = model.about
    if not same_model(found, about):
        raise CheckpointError(
            f"{source}: is not the model that made the index (found {describe(found)}; expected {describe(about)}), "
            "and vectors of different models cannot be compared. Use the checkpoint that made the index, or make "
            "another index with this one"
        )
    return model


def place_model(
    source: Path,
    settings: ModelSettings,
    mesh: Mesh,
    *,
    workdir: Path | None = None,
    on_cpu: str | None = None,
) -> Model:
    """Loads the weights of a checkpoint into a model of given settings.

    The decoder is left out if the checkpoint has no trained one; the reconstruction head is left out always.

    Args:
        source: a run's workdir, one of its checkpoints, or a converted model.
        settings: the model's; positions are interpolated to its image size.
        mesh: the devices.
        workdir: where an evaluation of these weights has written its calibration; None = `source`.
        on_cpu: compute type on a CPU; None = that of `settings`.

    Raises:
        CheckpointError: there is no checkpoint, its parameters do not fit, or it has no trained aggregation.
    """
    parts, saved = settings.model, parameter_names(source)
    if isinstance(parts, RiceConfig):
        has_decoder = any(name.startswith("pmd/") for name in saved)
        parts = dataclasses.replace(parts, pmd=parts.pmd if has_decoder else None, pfr=None)
    config = parts
    if on_cpu and jax.default_backend() == "cpu":
        config = _computing_in(config, on_cpu)
    fresh = abstract_params(config, mesh)
    if flatten_dict(fresh, sep="/").keys() - saved:  # what the checkpoint lacks starts from fresh weights
        fresh = create_params(config, mesh, seed=0)
    params = start_from(source, fresh, config)
    require_trained_embedding(source, params)
    fingerprint = embedding_fingerprint(params, config, settings.resize)
    calibration = read_calibration(workdir or source)
    about = About(
        model=parts,
        resize=settings.resize,
        num_frames=settings.num_frames,
        fingerprint=fingerprint,
        checkpoint=absolute(source),
        calibration=calibration if calibration and calibration.fingerprint == fingerprint else None,
        ipd=settings.ipd,
        match_fingerprint=match_fingerprint(params, config),
        tokenizer=settings.tokenizer,
        text_context=settings.text_context,
    )
    return Model(about, config, create_model(config, mesh), params, mesh)


def read_settings(source: Path) -> ModelSettings:
    """The settings that were saved with a checkpoint.

    A converted model has only `model`: pictures are then squashed to 8/7 of the image size, as CLIP's 224 pixels are
    cut out of 256, a clip has no more frames than its encoder takes, and other settings have their defaults.

    Raises:
        CheckpointError: there is no checkpoint, it cannot be read, or it holds a detector.
    """
    names = parameter_names(source)
    saved = saved_settings(source)
    if any(name.startswith("detector/") for name in names):
        raise CheckpointError(f"{source}: holds a detector, expected a model of task 'retrieval', 'domains', or 'cope'")
    if "model" not in saved:
        raise CheckpointError(f"{source}: holds a text tower, expected a run or a converted encoder")
    try:
        config = build(Config, saved)
    except ConfigError as error:
        raise CheckpointError(f"{source}: was saved by another version of rice_jax: {error}") from error
    model, num_frames = config.model, config.eval.num_frames
    if "eval" not in saved and model.architecture in VIDEO_ENCODERS:
        num_frames = min(num_frames, model.num_frames)
    resize = config.data.resize if "data" in saved else round(model.image_size * 8 / 7)
    settings = dataclasses.replace(ModelSettings.of(config), resize=resize, num_frames=num_frames)
    if not settings.tokenizer:
        return settings
    return dataclasses.replace(settings, tokenizer=absolute(tokenizer_folder(source)))


def saved_settings(source: Path) -> dict[str, Any]:
    """The settings that were saved with a run's newest checkpoint, or with a converted model, which has only `model`.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
    """
    step = None if (source / "weights").is_dir() else newest_step(source)
    return upgrade(read_config(source if step is None else source / CHECKPOINTS / str(step)))


def same_model(found: About, expected: About) -> bool:
    """Whether vectors and matches of two models can be compared; an unknown decoder passes for the same."""
    decoders = found.match_fingerprint, expected.match_fingerprint
    of_embeddings = [(about.fingerprint, about.model.pmd, about.text_context) for about in (found, expected)]
    return of_embeddings[0] == of_embeddings[1] and (None in decoders or decoders[0] == decoders[1])


def describe(about: About) -> str:
    """A model in a few words, for error messages."""
    decoder = "no decoder"
    if about.model.pmd:
        decoder = f"decoder {(about.match_fingerprint or 'unknown')[:12]} {about.model.pmd}"
    return f"{about.fingerprint[:12]}, {decoder}, from {about.checkpoint}"


def _computing_in(config: RiceConfig | CopeConfig, dtype: str) -> RiceConfig | CopeConfig:
    """The same parts with another compute type."""
    if isinstance(config, CopeConfig):
        text = config.text and dataclasses.replace(config.text, dtype=dtype)
        return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, dtype=dtype), text=text)
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, dtype=dtype))


def _first_device() -> Mesh:
    return create_mesh(MeshConfig(data=1, fsdp=1), jax.local_devices()[:1])

"""A trained model as an index describes it, ready to encode."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from rice_jax.config import MeshConfig
from rice_jax.index.store import About
from rice_jax.models.create import create_model, create_params
from rice_jax.models.rice import RiceConfig
from rice_jax.models.weights import CheckpointError, embedding_fingerprint, match_fingerprint, start_from
from rice_jax.parallel.mesh import create_mesh


class Model(NamedTuple):
    """`nnx.merge(graphdef, params)` is a `Rice`, on one device."""

    config: RiceConfig
    resize: int  # side to which a picture is squashed before the crop, pixels
    num_frames: int  # of a clip
    graphdef: nnx.GraphDef
    params: PyTree
    mesh: Mesh  # of that device
    fingerprint: str
    checkpoint: Path


def load_model(source: str | os.PathLike | None, about: About) -> Model:
    """Loads the model that made an index, on this process's first device; on a CPU it computes in float32.

    Args:
        source: a run's workdir or a converted model; None = where the index says that it was.
        about: of the index.

    Raises:
        CheckpointError: there is no checkpoint, or its encoder or decoder is not the one that made the index.
    """
    source = Path(about.checkpoint if source is None else source)
    config = about.model
    if jax.default_backend() == "cpu":  # which only emulates others
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, dtype="float32"))
    mesh = create_mesh(MeshConfig(data=1, fsdp=1), jax.local_devices()[:1])
    params = start_from(source, create_params(config, mesh, seed=0), config)
    found = embedding_fingerprint(params, config, about.resize)
    if found != about.fingerprint:
        raise CheckpointError(
            f"{source}: its encoder ({found[:12]}) is not the one that made the index "
            f"({about.fingerprint[:12]}, from {about.checkpoint}): their vectors cannot be compared. Use that "
            "checkpoint, or index the shop again with this one (--mode=index, in another config.index.directory)"
        )
    decoder = match_fingerprint(params, config)
    if about.match_fingerprint not in (None, decoder):
        raise CheckpointError(
            f"{source}: its decoder ({(decoder or 'none')[:12]}) is not the one that made the index "
            f"({about.match_fingerprint[:12]}, from {about.checkpoint}): it cannot match the images. Use that "
            "checkpoint, or index the shop again with this one (--mode=index, in another config.index.directory)"
        )
    return Model(config, about.resize, about.num_frames, create_model(config, mesh), params, mesh, found, source)

"""What a training step changes: step, parameters, optimiser state; created in its place on the mesh."""

import logging
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Int32, PyTree

from rice_jax import checkpoint
from rice_jax.config import Config, ModelConfig
from rice_jax.mesh import constrain_batch, parameter_shardings, take_rows, visit_rows
from rice_jax.models.detr import Detector
from rice_jax.models.rice import Rice
from rice_jax.models.vit import resize_positions

logger = logging.getLogger(__name__)


class TrainState(NamedTuple):
    step: Int32[Array, ""]  # updates done
    params: PyTree  # nested dict of float32 arrays
    optimizer: PyTree


def create_model(config: ModelConfig, mesh: Mesh) -> nnx.GraphDef:
    """The model's structure without weights: `nnx.merge(graphdef, params)` is the model."""
    return nnx.split(nnx.eval_shape(lambda: _model(config, mesh, seed=0)))[0]


def create_params(config: ModelConfig, mesh: Mesh, seed: int) -> PyTree:
    """Fresh parameters, each created where it will live; a decoder starts from the encoder's last blocks."""
    create = lambda: _start_decoder(nnx.to_pure_dict(nnx.split(_model(config, mesh, seed))[1]))  # noqa: E731
    return jax.jit(create, out_shardings=parameter_shardings(mesh, jax.eval_shape(create)))()


def create_state(params: PyTree, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step."""
    init = lambda params: TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))  # noqa: E731
    return jax.jit(init, out_shardings=parameter_shardings(mesh, jax.eval_shape(init, params)))(params)


def resume(checkpoints: ocp.CheckpointManager, step: int, state: TrainState, config: Config) -> tuple[TrainState, int]:
    """Reads a run's state and data position after `step` updates.

    Args:
        checkpoints: of the run.
        step: one of its checkpoints.
        state: of the shapes and on the mesh that the result shall have.
        config: of the run that continues.

    Raises:
        CheckpointError: another configuration wrote it.
    """
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    params, optimizer, position = checkpoint.restore(
        checkpoints, step, abstract.params, abstract.optimizer, config.to_dict()
    )
    return TrainState(jax.device_put(jnp.int32(step), state.step.sharding), params, optimizer), position


def start_from(directory: str | os.PathLike, params: PyTree, config: ModelConfig) -> PyTree:
    """Puts the weights of a converted model or of another run in the place of fresh ones.

    Args:
        directory: what `rice_jax.convert` wrote, or a workdir.
        params: fresh parameters; those that the checkpoint does not have stay, but a decoder starts from the last
            blocks of the checkpoint's encoder.
        config: of the model; positions are interpolated to its image size. A decoder or head that it does not have is
            left out. A detector of clips may start from one of frames, whose weights it has all of.

    Raises:
        CheckpointError: there is no checkpoint, or its parameters have other names or shapes.
    """
    saved, saved_config = checkpoint.load_weights(directory)
    _require_same_heads(saved_config["model"], config, directory)
    for part in (saved.keys() & {"pmd", "pfr", "detector", "logit_scale"}) - params.keys():
        asker = "config.loss" if part in ("pmd", "pfr") and not config.detector else "config.model.detector.kind"
        logger.info("%s: its %s is left out, %s asks for none", directory, part, asker)
        del saved[part]
    if "pmd" in params and "pmd" not in saved:
        saved = _start_decoder(saved | {"pmd": params["pmd"]})
    positions = saved["encoder"]["position_embedding"]
    saved["encoder"]["position_embedding"] = np.asarray(resize_positions(jnp.asarray(positions), config.num_tokens))

    fresh = flatten_dict(params, sep="/")
    found = flatten_dict(saved, sep="/")
    wrong = [f"  {name}: unknown" for name in sorted(found.keys() - fresh.keys())]
    wrong += [f"  {name}: missing" for name in sorted(fresh.keys() - found.keys()) if name.startswith("encoder/")]
    wrong += [
        f"  {name}: found {found[name].shape}, expected {fresh[name].shape}"
        for name in sorted(found.keys() & fresh.keys())
        if found[name].shape != fresh[name].shape
    ]
    if wrong:
        raise checkpoint.CheckpointError(
            "\n".join([f"{directory}: does not fit config.model:", *wrong]) + "\nUse the sizes that it was made with."
        )
    placed = {name: jax.device_put(value, fresh[name].sharding) for name, value in found.items()}
    return unflatten_dict(fresh | placed, sep="/")


def _start_decoder(params: PyTree) -> PyTree:
    """Lets the decoder's pairs start from the encoder's last blocks, in order; without a decoder nothing changes.

    Source: RICE.md §3; `golden/init_map.json`.
    """
    if "pmd" not in params:
        return params
    num_pairs = params["pmd"]["self_blocks"]["qkv"]["kernel"].shape[0]
    last = jax.tree.map(lambda x: x[-2 * num_pairs :], params["encoder"]["blocks"])
    blocks = {
        "self_blocks": jax.tree.map(lambda x: x[0::2], last),
        "cross_blocks": jax.tree.map(lambda x: x[1::2], last),
    }
    return params | {"pmd": params["pmd"] | blocks}


def _require_same_heads(saved: dict, config: ModelConfig, directory: str | os.PathLike) -> None:
    """The number of heads shows in no shape, so it has to be compared by itself."""
    pairs = {"heads": (saved["heads"], config.heads)}
    if saved.get("pmd") and config.pmd:
        pairs["pmd.num_heads"] = (saved["pmd"]["num_heads"], config.pmd.num_heads)
    if saved.get("detector") and config.detector:
        pairs["detector.heads"] = (saved["detector"]["heads"], config.detector.heads)
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise checkpoint.CheckpointError(f"{directory}: has {found} heads, config.model.{name} is {expected}")


def _model(config: ModelConfig, mesh: Mesh, seed: int) -> Rice | Detector:
    constrain, rngs = constrain_batch(mesh), nnx.Rngs(seed)
    if config.detector:
        return Detector(config, constrain=constrain, rngs=rngs)
    return Rice(config, constrain=constrain, take=take_rows(mesh), visit=visit_rows(mesh), rngs=rngs)

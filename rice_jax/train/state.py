"""What a training step changes: step, parameters, optimiser state; created in its place on the mesh."""

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
from rice_jax.mesh import constrain_batch, parameter_shardings
from rice_jax.models.rice import Rice
from rice_jax.models.vit import resize_positions


class TrainState(NamedTuple):
    step: Int32[Array, ""]  # updates done
    params: PyTree  # nested dict of float32 arrays
    optimizer: PyTree


def create_model(config: ModelConfig, mesh: Mesh) -> nnx.GraphDef:
    """The model's structure without weights: `nnx.merge(graphdef, params)` is the model."""
    return nnx.split(nnx.eval_shape(lambda: _model(config, mesh, seed=0)))[0]


def create_params(config: ModelConfig, mesh: Mesh, seed: int) -> PyTree:
    """Fresh parameters, each created where it will live."""
    create = lambda: nnx.to_pure_dict(nnx.split(_model(config, mesh, seed))[1])  # noqa: E731
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
    """Puts the weights of a converted CLIP or of another run in the place of fresh ones.

    Args:
        directory: what `rice_jax.convert` wrote, or a workdir.
        params: fresh parameters; those that the checkpoint does not have stay.
        config: of the model; positions are interpolated to its image size.

    Raises:
        CheckpointError: there is no checkpoint, or its parameters have other names or shapes.
    """
    saved, saved_config = checkpoint.load_weights(directory)
    saved_heads = saved_config["model"]["heads"]
    if saved_heads != config.heads:
        raise checkpoint.CheckpointError(f"{directory}: has {saved_heads} heads, config.model.heads is {config.heads}")
    positions = saved["encoder"]["position_embedding"]
    saved["encoder"]["position_embedding"] = np.asarray(resize_positions(positions, config.num_tokens))

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


def _model(config: ModelConfig, mesh: Mesh, seed: int) -> Rice:
    return Rice(config, constrain=constrain_batch(mesh), rngs=nnx.Rngs(seed))

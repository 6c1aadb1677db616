"""The state of a training: step, parameters and optimizer state, in their place on the mesh."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jaxtyping import Array, Int32, PyTree

from rice_jax.config import Config
from rice_jax.parallel.mesh import abstract_arrays, parameter_shardings
from rice_jax.train import checkpoint


class TrainState(NamedTuple):
    step: Int32[Array, ""]  # updates done
    params: PyTree  # nested dict of float32 arrays
    optimizer: PyTree


def create_state(params: PyTree, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step."""
    init = _initialize(optimizer)
    return jax.jit(init, out_shardings=parameter_shardings(mesh, jax.eval_shape(init, params)))(params)


def abstract_state(params: PyTree, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The shapes of the state and their place on the mesh, from the shapes of the parameters."""
    return abstract_arrays(mesh, jax.eval_shape(_initialize(optimizer), params))


def resume(
    checkpoints: ocp.CheckpointManager, step: int, state: TrainState, config: Config, data: Mapping[str, str]
) -> TrainState:
    """Reads a run's state after `step` updates.

    Args:
        checkpoints: of the run.
        step: one of its checkpoints.
        state: shapes of the result, on its mesh (`abstract_state`).
        config: of the run that continues.
        data: {name: digest} of its training data.

    Raises:
        CheckpointError: another configuration wrote it, on other data, or it cannot be read.
    """
    params, optimizer = checkpoint.restore(checkpoints, step, state.params, state.optimizer, config.to_dict(), data)
    return TrainState(jax.device_put(jnp.int32(step), state.step.sharding), params, optimizer)


def _initialize(optimizer: optax.GradientTransformation) -> Callable[[PyTree], TrainState]:
    return lambda params: TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))

"""The state of a training: step, parameters and optimizer state, in their place on the mesh."""

import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jaxtyping import Array, Int32, PyTree

from rice_jax.config import Config
from rice_jax.parallel.mesh import parameter_shardings
from rice_jax.train import checkpoint

logger = logging.getLogger(__name__)


class TrainState(NamedTuple):
    step: Int32[Array, ""]  # updates done
    params: PyTree  # nested dict of float32 arrays
    optimizer: PyTree


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

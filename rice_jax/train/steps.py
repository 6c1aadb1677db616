"""The training step: a function of (state, batch) that the loop runs, made of a loss and an optimizer."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int32, PyTree

from rice_jax.models.resample import show
from rice_jax.parallel.mesh import BATCH, parameter_shardings, replicated
from rice_jax.train.state import TrainState

Batch = Mapping[str, PyTree]
Metrics = dict[str, Float[Array, ""]]
# Of (structure of the model, parameters, global batch, steps done) to the loss and what to report, which includes it.
Loss = Callable[[nnx.GraphDef, PyTree, Batch, Int32[Array, ""]], tuple[Float[Array, ""], Metrics]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def training_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    rates: Mapping[str, optax.Schedule] = MappingProxyType({}),
) -> Step:
    """One step of an optimizer down a loss.

    Its metrics also get the `gradient_norm`, and the `…_learning_rate` of each of `rates`
    (`optimizer.learning_rates`).
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss_of = lambda params: loss(graphdef, params, batch, state.step)  # noqa: E731
        (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        metrics |= {f"{name}_learning_rate": jnp.asarray(rate(state.step)) for name, rate in rates.items()}
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return step


def compile_step(step: Step, state: TrainState, mesh: Mesh) -> Step:
    """jit with the state's place on the mesh; the state that goes in is donated."""
    shardings = parameter_shardings(mesh, state)
    return jax.jit(
        lambda state, batch: step(state, show(batch)),
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )

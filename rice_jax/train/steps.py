"""Training steps: functions of (state, batch) that the loop runs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, PyTree

from rice_jax.config import LossConfig
from rice_jax.losses.contrastive import contrastive_loss, different_images
from rice_jax.mesh import BATCH, parameter_shardings, replicated
from rice_jax.train.state import TrainState
from rice_jax.types import Batch

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def retrieval_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, config: LossConfig) -> Step:
    """The step that trains RICE on pairs of a video and its product's image.

    Returns:
        A pure function; metrics are scalars: loss, accuracy (share of videos nearest to their own image in the batch),
        logit_scale, gradient_norm.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        compute = jax.value_and_grad(lambda params: retrieval_loss(graphdef, params, batch, config), has_aux=True)
        (_, metrics), gradients = compute(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return step


def retrieval_loss(
    graphdef: nnx.GraphDef, params: PyTree, batch: Batch, config: LossConfig
) -> tuple[Float[Array, ""], Metrics]:
    """Total loss over the global batch, and what is reported of it."""
    model = nnx.merge(graphdef, params)
    image, video = model(batch["image"], batch["video"], batch["frame_mask"])
    negative_mask = different_images(batch["image_key"]) if config.mask_same_image else None
    logit_scale = model.logit_scale[...]
    loss = contrastive_loss(image, video, logit_scale, negative_mask)
    nearest = jnp.argmax(video @ image.T, axis=1)
    accuracy = jnp.mean(batch["image_key"][nearest] == batch["image_key"])
    return loss, {"loss": loss, "accuracy": accuracy, "logit_scale": logit_scale}


def compile_step(step: Step, state: TrainState, mesh: Mesh) -> Step:
    """jit with the state's place on the mesh; the state that goes in is donated."""
    shardings = parameter_shardings(mesh, state)
    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )

"""AdamW as the reference runs it, with one learning rate for pretrained parts of a model and one for new ones."""

from collections.abc import Container, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from rice_jax.config import OptimizerConfig
from rice_jax.models.cope import CLASSES
from rice_jax.parallel.mesh import parameter_shardings, path_name

TEXT = "text"  # the part that is a text tower
FROZEN = "frozen"


def create_optimizer(
    config: OptimizerConfig,
    total_steps: int,
    pretrained: Sequence[str],
    mesh: Mesh | None = None,
    new: Sequence[str] = (),
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Clipping, Adam, then per group its learning rate and weight decay.

    Args:
        config: learning rates, moments, decay and warm-up.
        total_steps: length of the schedule in updates.
        pretrained: names of the parts with `config.encoder_learning_rate` (`PRETRAINED` of the model's class); the
            others have `config.new_learning_rate`. Of the former, `text` has `config.text_learning_rate`, if above 0.
        mesh: gradients are split over it like their parameters, so that no device has to hold all of them; None = the
            compiler decides.
        new: paths within pretrained parts that have `config.new_learning_rate` all the same.
        frozen: paths of parameters that never change; their gradients are zeros.

    Returns:
        A transformation over the model's parameters as a nested dict.

    Source: docs/reference.md, section 5; transformers' former `AdamW`, whose epsilon is not bias-corrected and whose
    decay follows the step. Kind "adamw": Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    is_adamw = config.kind == "adamw"

    def group(rate: optax.Schedule) -> optax.GradientTransformation:
        step = optax.scale_by_learning_rate(rate)
        if is_adamw:
            return optax.chain(optax.add_decayed_weights(config.weight_decay), step)
        return optax.chain(step, decay_after_step(rate, config.weight_decay))

    groups = {name: group(rate) for name, rate in learning_rates(config, total_steps).items()}
    if frozen:
        groups[FROZEN] = optax.set_to_zero()
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if is_adamw:  # the centers of classes are not clipped
        clip = optax.masked(clip, lambda params: {part: part != CLASSES for part in params})
    moments = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon) if is_adamw else adam(config)
    labels = partial(learning_rate_groups, pretrained, new=new, own=groups, frozen=frozen)
    optimizer = optax.chain(clip, moments, optax.partition(groups, labels))
    return split_gradients(optimizer, mesh) if mesh else optimizer


def learning_rates(config: OptimizerConfig, total_steps: int) -> dict[str, optax.Schedule]:
    """{name of a group of parameters: its learning rate as a function of the steps done}."""
    peaks = {"encoder": config.encoder_learning_rate, "new": config.new_learning_rate}
    if config.text_learning_rate:
        peaks[TEXT] = config.text_learning_rate
    return {name: schedule(peak, config.warmup_steps, total_steps) for name, peak in peaks.items()}


def split_gradients(optimizer: optax.GradientTransformation, mesh: Mesh) -> optax.GradientTransformation:
    """The same optimizer, on gradients that are split like their parameters."""

    def update(gradients, state, params=None):
        gradients = jax.lax.with_sharding_constraint(gradients, parameter_shardings(mesh, gradients))
        return optimizer.update(gradients, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, cosine to 0 at `total_steps`, 0 afterwards; the first update uses schedule(0)."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


def adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam whose epsilon is added before the second moment's bias is corrected.

    optax corrects first, so its epsilon has to grow by the same factor: epsilon / sqrt(1 - beta2^t) at update t.
    """
    return optax.inject_hyperparams(optax.scale_by_adam, static_args=("b1", "b2"))(
        b1=config.beta1,
        b2=config.beta2,
        eps=lambda count: config.epsilon / jnp.sqrt(1 - config.beta2 ** (count + 1.0)),
    )


def decay_after_step(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Decays the already updated parameter by rate · weight_decay, layer norms' scales too, but no biases."""

    def update(updates, state, params):
        shrink = rate(state.count) * weight_decay

        def decay(path, step, value):
            return step if path_name(path).endswith("bias") else step - shrink * (value + step)

        updates = jax.tree_util.tree_map_with_path(decay, updates, params)
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)


def learning_rate_groups(
    pretrained: Sequence[str],
    params: PyTree,
    new: Sequence[str] = (),
    own: Container[str] = (),
    frozen: Sequence[str] = (),
) -> PyTree:
    """The group of every parameter: "encoder" in the pretrained parts, but for their `new` paths, "new" in the others.

    The pretrained part `text` is a group of its own if it is in `own`, and so are the paths in `frozen`.

    Checkpoints hold the optimizer's state by these names.
    """

    def group(path, _) -> str:
        name = path_name(path)
        part = name.split("/")[0]
        if name.startswith(tuple(frozen)):
            return FROZEN
        if part not in pretrained or name.startswith(tuple(new)):
            return "new"
        return TEXT if part == TEXT and TEXT in own else "encoder"

    return jax.tree_util.tree_map_with_path(group, params)

"""The training step, compiled for one device without allocating anything."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, Mesh

from rice_jax.config import Config
from rice_jax.config.cope import DOMAINS, PAGE
from rice_jax.models.create import create_model, create_params
from rice_jax.models.rice import Rice
from rice_jax.parallel.mesh import Placement
from rice_jax.tasks import TASKS
from rice_jax.tasks.start import run_optimizer
from rice_jax.train.state import create_state
from rice_jax.train.steps import compile_step, training_step
from rice_jax.types import Batch, Decoded


def compiled_step(config: Config, model: type[Rice] | None = None) -> jax.stages.Compiled:
    """The training step of `rice_jax.main` for one device, or that of another model; nothing is allocated."""
    mesh, task = one_device(), TASKS[config.task]
    parts = task.model(config)
    graphdef = create_model(parts, mesh)
    if model:
        create = lambda: model(parts, placement=Placement(mesh), rngs=nnx.Rngs(0))  # noqa: E731
        graphdef, _ = nnx.split(nnx.eval_shape(create))
    optimizer = run_optimizer(config, parts, mesh)
    state = jax.eval_shape(lambda: create_state(create_params(parts, mesh, seed=0), optimizer, mesh))
    step = training_step(graphdef, optimizer, task.loss(config, mesh))
    return compile_step(step, state, mesh).lower(state, abstract_rows(config)).compile()


def operations(config: Config, model: type[Rice] | None = None) -> float:
    """Additions, multiplications and the like in a compiled step; exponentials and roots are not among them."""
    return compiled_step(config, model).cost_analysis()["flops"]


def one_device() -> Mesh:
    """The mesh of the first device."""
    return jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 2)


def abstract_rows(config: Config) -> Batch | dict[str, Any]:
    """Shapes of a training batch."""
    return abstract_triplets(config) if config.task == "cope" else abstract_batch(config)


def abstract_triplets(config: Config) -> dict[str, Any]:
    """Shapes of a batch of task "cope"."""
    batch, texts = config.data.batch_size, TASKS[config.task].model(config).text_domains
    tokens = batch, config.input.text_context
    number = jax.ShapeDtypeStruct((batch,), jnp.int32)
    found: dict[str, Any] = {"product": number, "index": number}
    for domain in DOMAINS:
        frames = 1 if domain == PAGE else config.data.num_frames
        found[domain] = {
            "video": abstract_pictures(config, batch, frames),
            "frame_mask": jax.ShapeDtypeStruct((batch, frames), jnp.bool_),
            "real": jax.ShapeDtypeStruct((batch,), jnp.bool_),
        }
        if domain in texts:
            found[domain]["text_ids"] = jax.ShapeDtypeStruct(tokens, jnp.int32)
            found[domain]["text_token_mask"] = jax.ShapeDtypeStruct(tokens, jnp.bool_)
    return found


def abstract_batch(config: Config) -> Batch:
    """Shapes of a batch of images and videos."""
    batch, frames, model = config.data.batch_size, config.data.num_frames, config.model
    rows: Batch = {
        "image": abstract_pictures(config, batch),
        "video": abstract_pictures(config, batch, frames),
        "frame_mask": jax.ShapeDtypeStruct((batch, frames), jnp.bool_),
        "image_key": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "index": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    if model.ipd != "off" and model.ipd_use == "mask":
        rows["patch_mask"] = jax.ShapeDtypeStruct((batch, frames, model.num_tokens - 1), jnp.bool_)
    return rows


def abstract_pictures(config: Config, *shape: int) -> jax.ShapeDtypeStruct | Decoded:
    """Shapes of pictures, or of the `Decoded` pictures that the device crops and resizes."""
    side, room = config.model.image_size, (config.data.device_resize_height, config.data.device_resize_width)
    if not any(room):
        return jax.ShapeDtypeStruct((*shape, side, side, 3), jnp.uint8)
    return Decoded(
        pixels=jax.ShapeDtypeStruct((*shape, *room, 3), jnp.uint8),
        size=jax.ShapeDtypeStruct((*shape, 2), jnp.int32),
        rows=jax.ShapeDtypeStruct((*shape, side), jnp.float32),
        columns=jax.ShapeDtypeStruct((*shape, side), jnp.float32),
        color=jax.ShapeDtypeStruct((*shape, 3, 4), jnp.float32) if config.data.changes_color else None,
    )

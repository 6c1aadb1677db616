"""The optimizer of a training and the state that it starts from: fresh, of other weights, or of its newest checkpoint.

The centers of products need more than other parameters: the rows of two runs are of other products, and a run that
goes on may have new ones.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jaxtyping import PyTree

from rice_jax.config import Config
from rice_jax.input.items import list_classes
from rice_jax.models.cope import CLASSES, CopeConfig
from rice_jax.models.create import AnyModelConfig, abstract_params, create_params, model_class
from rice_jax.models.encoders import between_frames, frozen
from rice_jax.models.start import start_from
from rice_jax.models.text_weights import start_text
from rice_jax.models.weights import CheckpointError, load_weights, read_config, read_data
from rice_jax.parallel.mesh import parameter_shardings, path_name
from rice_jax.tasks.cope import PRODUCTS, class_rows
from rice_jax.tasks.task import Run
from rice_jax.train.optimizer import create_optimizer
from rice_jax.train.state import TrainState, abstract_state, resume

logger = logging.getLogger(__name__)


def run_optimizer(config: Config, model: AnyModelConfig, mesh: Mesh) -> optax.GradientTransformation:
    """The optimizer of a run: which parts of its model learn at which rate, and which are frozen.

    Args:
        config: settings of the run.
        model: settings of the model's parts.
        mesh: all devices.
    """
    fresh = between_frames(config.model.encoder) if config.optimizer.between_frames == "new" else ()
    new, fixed = ([f"encoder/{path}" for path in paths] for paths in (fresh, frozen(config.model.encoder)))
    pretrained = model_class(model).PRETRAINED
    return create_optimizer(config.optimizer, config.train.total_steps, pretrained, mesh, new, fixed)


def initial_params(run: Run) -> PyTree:
    """Fresh parameters, or those that the run starts from."""
    params, settings = create_params(run.model, run.mesh, run.config.seed), run.config.model
    if settings.text == "tower":
        params = start_text(Path(settings.text_init_from), params)
    if not settings.init_from:
        return params
    params = start_from(settings.init_from, params, run.model)
    return take_centers(Path(settings.init_from), params, run.config.data.products) if CLASSES in params else params


def resume_run(
    run: Run,
    checkpoints: ocp.CheckpointManager,
    step: int,
    optimizer: optax.GradientTransformation,
    data: Mapping[str, str],
) -> TrainState:
    """Reads a run's state after `step` updates; rows of new products in the class matrix are fresh.

    Args:
        run: that continues.
        checkpoints: of the run.
        step: one of its checkpoints.
        optimizer: of the run.
        data: {name: digest} of its training data.

    Raises:
        CheckpointError: as in `train.state.resume`, or the run's list of products is not that of the checkpoint.
    """
    config, mesh = run.config, run.mesh
    state = abstract_state(run.params, optimizer, mesh)
    directory, now = Path(checkpoints.directory) / str(step), config.model.cope.num_classes
    before = read_config(directory)["model"].get("cope", {}).get("num_classes", now)
    if CLASSES not in run.params or before == now:
        return resume(checkpoints, step, state, config, data)
    _require_same_start(directory, config.data.products, before)
    assert isinstance(run.model, CopeConfig)
    model = dataclasses.replace(run.model, num_classes=class_rows(before))
    saved = abstract_state(abstract_params(model, mesh), optimizer, mesh)
    # Other data than the checkpoint's are what brings new products.
    found = resume(checkpoints, step, saved, config, {})
    logger.warning(
        "%s: the data have %d new products, %d in all; their centers start fresh, and all else goes on. The order of "
        "the examples is that of the new data",
        *(directory, now - before, now),
    )
    fresh = create_params(run.model, mesh, config.seed)[CLASSES]["embedding"]
    grown = jax.jit(grow, static_argnums=2, out_shardings=parameter_shardings(mesh, state))
    return grown(found, fresh, before)


def grow(state: TrainState, fresh: jax.Array, num_classes: int) -> TrainState:
    """Gives a state a larger class matrix: its rows of classes, and then fresh ones without moments.

    Args:
        state: of a smaller class matrix, or of one whose rows beyond `num_classes` are padding.
        fresh: the larger matrix.
        num_classes: classes of the state.
    """

    def rows(path, leaf: jax.Array) -> jax.Array:
        first, *names = path_name(path).split("/")
        if CLASSES not in names or leaf.ndim < 2:
            return leaf
        added = fresh if first == "params" else jnp.zeros_like(fresh)
        return added.at[:num_classes].set(leaf[:num_classes])

    return jax.tree_util.tree_map_with_path(rows, state)


def take_centers(source: Path, params: PyTree, path: str) -> PyTree:
    """Replaces the centers of products that another run knows, too, by that run's.

    Args:
        source: its workdir or one of its checkpoints, or weights without centers.
        params: of this run.
        path: this run's list of products.
    """
    saved, about = load_weights(source)
    if CLASSES not in saved:
        return params
    listed = Path(about.get("data", {}).get("products") or source / PRODUCTS)
    places = [place for place in (listed, source / PRODUCTS, source.parent.parent / PRODUCTS) if place.exists()]
    if not places:
        logger.warning("%s: found no list of its products (%s), so all centers start fresh", source, listed)
        return params
    products = list_classes(str(places[0]), ())[: len(saved[CLASSES]["embedding"])]
    number = {product: row for row, product in enumerate(products)}
    own = list_classes(path, ())
    known = [row for row, product in enumerate(own) if product in number]
    logger.info("%s: has centers of %d of the %d products; the others start fresh", source, len(known), len(own))
    theirs = np.asarray(saved[CLASSES]["embedding"])[[number[own[row]] for row in known]]
    fresh = params[CLASSES]["embedding"]
    # As arguments, since a program would hold closed-over rows as constants.
    replace = jax.jit(lambda rows, places, others: rows.at[places].set(others), out_shardings=fresh.sharding)
    return params | {CLASSES: {"embedding": replace(fresh, np.array(known, int), theirs)}} if known else params


def _require_same_start(directory: Path, path: str, before: int) -> None:
    """Refuses a list of products whose first ones are not those of a checkpoint."""
    products = list_classes(path, ())[:before]
    digest = hashlib.sha256("".join(f"{product}\n" for product in products).encode()).hexdigest()
    if len(products) < before or read_data(directory).get("config.data.products", digest) != digest:
        raise CheckpointError(
            f"{path}: found other products in its first {before} lines than at {directory}, whose centers they number; "
            "restore the file as it was, or use another --workdir"
        )

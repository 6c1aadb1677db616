"""Trains a tiny model with every loss and aggregation, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from rice_jax.config import LossConfig
from rice_jax.config.loss import CONTRAST_METRICS, KINDS
from rice_jax.losses.sigmoid import one_block
from rice_jax.models.create import create_model, create_params
from rice_jax.models.rice import Rice
from rice_jax.models.similarity import LearnedScale
from rice_jax.pages import compare, domains, report
from rice_jax.parallel.mesh import global_batch, parameter_shardings
from rice_jax.tasks import TASKS
from rice_jax.tasks.contrast import CONTRASTS
from rice_jax.tasks.retrieval import retrieval_loss
from rice_jax.train.optimizer import learning_rate_groups
from rice_jax.train.state import create_state
from rice_jax.train.steps import compile_step, training_step
from rice_jax.types import Embeddings
from tests.settings import model_of, small_config

BATCH, FRAMES, STEPS = 16, 3, 5
RUNS = {
    "sigmoid, relu": dict(
        loss__kind="sigmoid", loss__multi_positive=True, model__aggregation__kind="attention",
        model__aggregation__attention__non_local="relu",
    ),
    "triplet, differences": dict(
        loss__kind="triplet", model__aggregation__kind="transformer", model__aggregation__transformer__differences=True,
        model__aggregation__transformer__layers=1, data__num_frames=10,
    ),
    "triplet, embeddings": dict(
        loss__kind="triplet", loss__multi_positive=True, model__aggregation__kind="embeddings"
    ),
    "softmax, non-local": dict(
        model__aggregation__kind="attention", model__aggregation__attention__non_local="softmax",
        model__aggregation__attention__pooling="mean",
    ),
}  # fmt: skip


@functools.cache
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8),
        "video": rng.integers(0, 256, (BATCH, FRAMES, 16, 16, 3), np.uint8),
        "frame_mask": np.arange(FRAMES) < rng.integers(1, FRAMES + 1, (BATCH, 1)),
        "image_key": rng.integers(0, 12, BATCH, np.int32),
        "index": np.arange(BATCH, dtype=np.int32),
    }


def mesh_of(devices: int, fsdp: int) -> Mesh:
    shape = devices // fsdp, fsdp
    return jax.make_mesh(shape, ("data", "fsdp"), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,) * 2)


def train(config, mesh: Mesh) -> list[dict[str, float]]:
    """The metrics of each step."""
    optimizer = optax.sgd(1e-2)
    params = create_params(model_of(config), mesh, seed=0)
    state = create_state(jax.device_put(params, parameter_shardings(mesh, params)), optimizer, mesh)
    loss = TASKS[config.task].loss(config, mesh)
    step = compile_step(training_step(create_model(model_of(config), mesh), optimizer, loss), state, mesh)
    found = []
    for _ in range(STEPS):
        state, metrics = step(state, global_batch(mesh, batch()))
        found.append({name: float(value) for name, value in metrics.items()})
    return found


@pytest.mark.parametrize("name", RUNS)
def test_training_lowers_the_loss_and_eight_devices_do_as_one(name):
    config = small_config(**{"data__batch_size": BATCH, "loss__pmd_weight": 0.0, "model__layers": 2, **RUNS[name]})
    one = train(config, mesh_of(1, 1))
    metric = {"softmax": "icl"}.get(config.loss.kind, config.loss.kind)
    assert one[-1][metric] < one[0][metric]
    for found, expected in zip(train(config, mesh_of(8, 2)), one, strict=True):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-3, atol=1e-6, err_msg=key)


def test_the_decoder_learns_the_same_whatever_loss_contrasts():
    def metrics(kind: str) -> dict[str, float]:
        config = small_config(data__batch_size=BATCH, loss__kind=kind, loss__pfr_weight=0.0)
        params = create_params(model_of(config), mesh_of(1, 1), seed=0)
        graphdef = create_model(model_of(config), mesh_of(1, 1))
        loss, found = jax.jit(lambda params, rows: retrieval_loss(graphdef, params, rows, config.loss))(params, batch())
        name = {"softmax": "icl"}.get(kind, kind)
        np.testing.assert_allclose(loss, found[name] + found["pmd"], rtol=1e-6)
        return {key: float(found[key]) for key in ("pmd", "match_accuracy", "accuracy")}

    assert metrics("softmax") == pytest.approx(metrics("sigmoid")) == metrics("triplet")


def test_there_is_a_loss_of_every_kind():
    assert {*CONTRASTS} == {*KINDS}


@pytest.mark.parametrize(("kind", "metric"), zip(KINDS, CONTRAST_METRICS, strict=True))
def test_pages_draw_every_loss_that_contrasts(kind, metric):
    rows = jnp.eye(4)
    loss, metrics = CONTRASTS[kind](
        LearnedScale(kind, 4.0), Embeddings(rows, rows[::-1]), jnp.arange(4), LossConfig(kind=kind), one_block
    )
    assert metrics[metric] == loss
    log = [{"step": step, metric: 1.0} for step in (1, 2)]
    for curves in (report.CURVES, compare.CURVES, {"Loss": domains.LOSSES}):
        assert len(report.training_plots({"run": log}, curves)) == 1


def test_a_scale_a_bias_and_an_aggregation_are_new_parts():
    config = small_config(**RUNS["sigmoid, relu"])
    params = jax.eval_shape(lambda: create_params(model_of(config), mesh_of(1, 1), seed=0))
    groups = learning_rate_groups(Rice.PRETRAINED, params)
    assert {"aggregation", "encoder", "log_scale", "logit_bias"} < groups.keys() and "logit_scale" not in groups
    found = {part: set(jax.tree.leaves(tree)) for part, tree in groups.items()}
    assert found.pop("encoder") == {"encoder"} and all(group == {"new"} for group in found.values())

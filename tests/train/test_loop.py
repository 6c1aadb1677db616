import json

import grain
import jax
import jax.numpy as jnp
import numpy as np

from rice_jax.models.weights import load_weights, newest_step
from rice_jax.parallel.mesh import create_mesh
from rice_jax.train import checkpoint
from rice_jax.train.loop import train
from rice_jax.train.state import TrainState
from tests.settings import small_config


def step(state, batch):
    weight = state.params["weight"] + batch["index"]
    metrics = {"loss": weight.mean(), "accuracy": jnp.float32(0)}
    return TrainState(state.step + 1, {"weight": weight}, state.optimizer), metrics


def fresh() -> TrainState:
    return TrainState(jnp.int32(0), {"weight": jnp.zeros(8)}, {"moment": jnp.zeros(8)})


def batches():
    return iter(grain.MapDataset.range(6).map(lambda i: {"index": np.full(8, i)}).to_iter_dataset())


def test_nothing_is_lost_if_an_evaluation_outlasts_what_time_is_left(tmp_path):
    config = small_config(train__checkpoint_interval_steps=1000, train__eval_interval_steps=4)
    saved = {}
    with checkpoint.open_checkpoints(tmp_path, keep=2) as checkpoints:

        def evaluator(number, params):
            checkpoint.finish(checkpoints)
            saved[number] = newest_step(tmp_path)
            return {}

        train(config, create_mesh(config.mesh), step, fresh(), batches(), checkpoints, {"e": evaluator}, {})
    assert saved == {0: None, 4: 4, 6: 6}
    params, _ = load_weights(tmp_path)
    np.testing.assert_array_equal(jax.device_get(params["weight"]), np.full(8, 15))


def test_every_evaluation_is_logged_once_however_often_a_run_is_lengthened(tmp_path):
    state, evaluators = fresh(), {"e": lambda number, params: {"x": float(number)}}
    with checkpoint.open_checkpoints(tmp_path, keep=2) as checkpoints:
        for total in (3, 4, 6):
            config = small_config(
                train__total_steps=total, optimizer__warmup_steps=0, train__checkpoint_interval_steps=1000,
                train__eval_interval_steps=4,
            )  # fmt: skip
            state = train(config, create_mesh(config.mesh), step, state, batches(), checkpoints, evaluators, {})
    logged = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in logged if "e/x" in line] == [0, 3, 4, 6]

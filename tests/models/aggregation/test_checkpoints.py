"""Aggregations in checkpoints and indexes: a fresh one may be trained, but gives no answers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rice_jax.config import MeshConfig
from rice_jax.index.model import place_model, read_settings
from rice_jax.index.store import About
from rice_jax.models.create import create_model, create_params
from rice_jax.models.start import start_from
from rice_jax.models.weights import CheckpointError, save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks import TASKS
from rice_jax.tasks.task import Run
from tests.settings import model_of, small_config

ONE = create_mesh(MeshConfig(1, 1), jax.devices()[:1])


def settings(kind: str, heads: int = 2, **changes):
    transformer = {"model__aggregation__transformer__heads": heads, "model__aggregation__transformer__layers": 1}
    return small_config(
        model__aggregation__kind=kind, data__num_frames=10, loss__pmd_weight=0.0, **transformer, **changes
    )


def saved(directory, config):
    params = jax.tree.map(np.asarray, create_params(model_of(config), ONE, seed=1))
    save_weights(directory, params, config.to_dict())
    return params


def test_a_fresh_aggregation_is_trained_but_refused_everywhere_else(tmp_path):
    saved(tmp_path / "mean", settings("features"))
    config = settings("transformer")
    fresh = create_params(model_of(config), ONE, seed=0)
    started = start_from(tmp_path / "mean", fresh, model_of(config))
    jax.tree.map(np.testing.assert_array_equal, started["aggregation"], fresh["aggregation"])
    message = r"mean: has no trained aggregation of this kind \(aggregation/blocks/down/bias is missing"
    parts = dataclasses.replace(read_settings(tmp_path / "mean"), model=model_of(config))
    with pytest.raises(CheckpointError, match=message):
        place_model(tmp_path / "mean", parts, ONE)
    for task in ("retrieval", "domains"):
        graphdef = create_model(model_of(config), ONE)
        run = Run(config, tmp_path, ONE, model_of(config), graphdef, fresh, tmp_path / "mean")
        with pytest.raises(CheckpointError, match=message):
            TASKS[task].evaluators(run)


def test_weights_of_frames_are_those_of_their_pooling(tmp_path):
    pooling = "model__aggregation__attention__pooling"
    saved(tmp_path / "score", settings("attention", **{pooling: "score"}))
    other = model_of(settings("attention", **{pooling: "direction"}))
    with pytest.raises(CheckpointError, match="score: found pooling='score', expected 'direction'"):
        start_from(tmp_path / "score", create_params(other, ONE, seed=0), other)


def test_a_text_tower_is_no_start(tmp_path):
    save_weights(tmp_path / "text", {"text": {"bias": np.zeros(3, np.float32)}}, {"text": {}})
    model = model_of(settings("features"))
    with pytest.raises(CheckpointError, match="text: found text, expected an encoder; a text tower goes to"):
        start_from(tmp_path / "text", create_params(model, ONE, seed=0), model)


def test_a_trained_aggregation_is_loaded_with_the_settings_saved_beside_it(tmp_path):
    params = saved(tmp_path / "run", settings("transformer", loss__kind="sigmoid"))
    model = place_model(tmp_path / "run", read_settings(tmp_path / "run"), ONE)
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    assert (model.config.aggregation.kind, model.config.loss) == ("transformer", "sigmoid")
    stored = json.loads(json.dumps(dataclasses.asdict(model.about)))
    assert About.from_dict(stored) == model.about
    for name in ("aggregation", "loss"):  # version 0.2 stored neither
        del stored["model"][name]
    before = About.from_dict(stored).model
    assert (before.aggregation.kind, before.loss) == ("features", "softmax")


def test_other_numbers_of_heads_are_refused(tmp_path):
    saved(tmp_path / "run", settings("transformer"))
    four = model_of(settings("transformer", heads=4))
    with pytest.raises(
        CheckpointError, match=r"found 2 heads, expected 4 \(config.model.aggregation.transformer.heads"
    ):
        start_from(tmp_path / "run", create_params(four, ONE, seed=0), four)

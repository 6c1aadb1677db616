"""What a training starts with; `test_cope_runs.py` tests its state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from rice_jax.config import MeshConfig
from rice_jax.models.cope import CLASSES
from rice_jax.models.create import abstract_params
from rice_jax.models.encoders.timesformer import Timesformer
from rice_jax.models.weights import save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks.start import run_optimizer, take_centers
from tests.settings import model_of, small_config


def test_new_layers_of_an_encoder_learn_faster_and_frozen_ones_do_not_learn():
    """One update with gradients of one is the learning rate of a parameter."""
    encoder = dict(architecture="timesformer", stem="mobilenet", patch_size=16, frozen_stages=2)
    rates = dict(encoder_learning_rate=0.1, new_learning_rate=0.2, between_frames="new", weight_decay=0.0)
    settings = {f"model__{name}": value for name, value in encoder.items()}
    settings |= {f"optimizer__{name}": value for name, value in rates.items()}
    config = small_config(loss__pmd_weight=0.0, optimizer__warmup_steps=0, **settings)
    model, mesh = model_of(config), create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    # A number for one parameter of each part of a layer.
    paths = {tuple(name.split("/")[:3]): name for name in flatten_dict(abstract_params(model, mesh), sep="/")}
    ones = unflatten_dict(dict.fromkeys(paths.values(), jnp.ones(1)), sep="/")
    optimizer = run_optimizer(config, model, mesh)
    updates = flatten_dict(jax.jit(lambda ones: optimizer.update(ones, optimizer.init(ones), ones)[0])(ones), sep="/")
    between = tuple(f"encoder/{path}" for path in Timesformer.BETWEEN_FRAMES)
    found = set()
    for name, update in updates.items():
        expected = 0.2 if name.startswith(between) else 0.1
        if name.startswith(("encoder/stem/stage_0/", "encoder/stem/stage_1/")):
            expected = 0.0
        assert float(update[0]) == pytest.approx(-expected, rel=1e-4), name
        found.add(expected)
    assert found == {0.0, 0.1, 0.2}


def test_centers_come_with_the_list_that_their_run_names(tmp_path, caplog):
    params = {CLASSES: {"embedding": jnp.zeros((4, 3))}}
    mine, own = tmp_path / "mine.txt", tmp_path / "own.txt"
    saved = {CLASSES: {"embedding": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    save_weights(tmp_path / "old", saved, {"data": {"products": str(mine)}})
    mine.write_text("a\nb\nc\n")  # has grown since, by a product that the checkpoint does not know
    own.write_text("c\nb\n")
    found = take_centers(tmp_path / "old", params, str(own))
    np.testing.assert_array_equal(found[CLASSES]["embedding"], [[0, 0, 0], [3, 4, 5], [0, 0, 0], [0, 0, 0]])
    mine.unlink()
    assert take_centers(tmp_path / "old", params, str(own)) is params
    assert "old: found no list of its products" in caplog.text and str(mine) in caplog.text

"""Distillation in the retrieval task: its losses, its head, and what becomes of the head."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from rice_jax.config import ConfigError
from rice_jax.losses.distillation import direct_loss, relational_loss
from rice_jax.models.create import create_model, create_params
from rice_jax.models.start import start_from
from rice_jax.models.weights import embedding_fingerprint, save_weights
from rice_jax.parallel.mesh import global_batch, parameter_shardings
from rice_jax.tasks import TASKS
from rice_jax.tasks.retrieval import retrieval_loss
from rice_jax.train.state import create_state
from rice_jax.train.steps import compile_step, training_step
from tests.settings import model_of, small_config
from tests.tasks.test_contrast import BATCH, batch, mesh_of

DIM = 6
DISTILL = {"loss__distill_weight": 2.0, "loss__distill_direct_weight": 0.5, "data__teacher": "teacher"}
DISTILL |= {"loss__distill_dim": DIM, "loss__pmd_weight": 0.0, "data__batch_size": BATCH, "model__layers": 2}


def taught() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    teacher = rng.standard_normal((BATCH, 2, DIM)).astype(np.float32)
    teacher /= np.linalg.norm(teacher, axis=2, keepdims=True)
    return batch() | {"teacher": teacher, "teacher_mask": rng.random((BATCH, 2)) < 0.7}


def test_the_losses_are_added_with_their_weights():
    config, rows = small_config(**DISTILL), taught()
    graphdef, params = create_model(model_of(config), mesh_of(1, 1)), create_params(model_of(config), mesh_of(1, 1), 0)
    loss, found = jax.jit(lambda params, rows: retrieval_loss(graphdef, params, rows, config.loss))(params, rows)
    np.testing.assert_allclose(loss, found["icl"] + 2 * found["distill"] + 0.5 * found["distill_direct"], rtol=1e-6)
    mask = np.concatenate(rows["teacher_mask"].T)
    np.testing.assert_allclose(found["taught"], mask.mean(), rtol=1e-6)
    embeddings, _ = jax.jit(lambda params, rows: nnx.merge(graphdef, params)(rows))(params, rows)
    student, teacher = np.concatenate(embeddings), np.concatenate([rows["teacher"][:, 0], rows["teacher"][:, 1]])
    relations = relational_loss(*map(jax.numpy.asarray, (student, teacher, mask)), 0.1)
    np.testing.assert_allclose(found["distill"], relations, rtol=1e-4)
    mapped = student @ np.asarray(params["teacher_head"]["kernel"])
    np.testing.assert_allclose(
        found["distill_direct"], direct_loss(*map(jax.numpy.asarray, (mapped, teacher, mask))), rtol=1e-4
    )


def test_training_lowers_the_losses_and_eight_devices_do_as_one():
    def train(mesh) -> list[dict[str, float]]:
        config, optimizer = small_config(**DISTILL), optax.sgd(1e-2)
        params = create_params(model_of(config), mesh, seed=0)
        state = create_state(jax.device_put(params, parameter_shardings(mesh, params)), optimizer, mesh)
        loss = TASKS["retrieval"].loss(config, mesh)
        step = compile_step(training_step(create_model(model_of(config), mesh), optimizer, loss), state, mesh)
        found = []
        for _ in range(5):
            state, metrics = step(state, global_batch(mesh, taught()))
            found.append({name: float(value) for name, value in metrics.items()})
        return found

    one, eight = train(mesh_of(1, 1)), train(mesh_of(8, 2))
    for name in ("loss", "distill", "distill_direct"):
        assert one[-1][name] < one[0][name]
    for found, expected in zip(eight, one, strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_only_training_has_the_head(tmp_path):
    mesh = mesh_of(1, 1)
    model, plain = (model_of(small_config(**settings)) for settings in (DISTILL, {"loss__pmd_weight": 0.0}))
    params = create_params(model, mesh, 0)
    assert params["teacher_head"]["kernel"].shape == (16, DIM)
    save_weights(tmp_path / "taught", params, {"model": small_config().to_dict()["model"]})
    started = start_from(tmp_path / "taught", create_params(plain, mesh, 1), plain)
    assert "teacher_head" not in started
    fingerprints = embedding_fingerprint(params, model, 20), embedding_fingerprint(started, plain, 20)
    assert fingerprints[0] == fingerprints[1], "the head changes no embedding"
    without_head = model_of(small_config(**DISTILL | {"loss__distill_direct_weight": 0.0}))
    assert flatten_dict(create_params(without_head, mesh, 0)).keys() == flatten_dict(started).keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss__distill_weight": 1.0},
            "config.data.teacher: found '' with config.loss.distill_weight=1.0 and distill",
        ),
        ({"data__teacher": "t"}, "config.data.teacher: found 't' with config.loss.distill_weight=0.0 and .* set one"),
        ({"loss__distill_weight": -1.0}, "config.loss.distill_weight: found -1.0, expected 0"),
        (DISTILL | {"task": "detection"}, "config.task: found 'detection' with config.loss.distill_weight=2.0 and"),
    ],
)
def test_settings_that_exclude_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        small_config(**settings)

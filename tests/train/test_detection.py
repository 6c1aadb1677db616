import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from rice_jax.config import Config
from rice_jax.models.create import create_model, create_params
from rice_jax.models.start import start_from
from rice_jax.models.weights import CheckpointError, save_weights
from rice_jax.parallel.mesh import global_batch, parameter_shardings
from rice_jax.tasks import TASKS
from rice_jax.tasks.detection import detector_loss, top_accuracy
from rice_jax.train.state import create_state
from rice_jax.train.steps import Step, compile_step, training_step
from tests.settings import model_of, small_config

BATCH, FRAMES, BOXES = 16, 3, 2
CONFIG = small_config(
    task="detection", data__batch_size=BATCH, model__detector__kind="clip", model__detector__num_boxes=BOXES
)
GRADIENTS = optax.trace(0.0)  # keeps the gradients it is given


def mesh_of(devices: int, fsdp: int = 1) -> Mesh:
    shape = (devices // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,) * 2)


@functools.cache
def batch(size: int = BATCH) -> dict[str, np.ndarray]:
    """Dark noise with a bright rectangle in it, the first box; the second box is anywhere."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 8, (size, FRAMES, BOXES, 2))
    boxes = np.concatenate([low, low + rng.integers(4, 9, low.shape)], axis=-1)
    video = rng.integers(0, 60, (size, FRAMES, 16, 16, 3), np.uint8)
    for b, t in np.ndindex(size, FRAMES):
        left, top, right, bottom = boxes[b, t, 0]
        video[b, t, top:bottom, left:right] += 180
    frame_mask = np.arange(FRAMES) < rng.integers(1, FRAMES + 1, (size, 1))
    return {
        "video": np.where(frame_mask[..., None, None, None], video, 0).astype(np.uint8),
        "frame_mask": frame_mask,
        "boxes": (boxes / 16).astype(np.float32),
        "box_mask": (np.arange(BOXES) < rng.integers(0, BOXES + 1, (size, FRAMES, 1))) & frame_mask[..., None],
        "index": np.arange(size, dtype=np.int32),
    }


@functools.cache
def params() -> dict:
    return jax.tree.map(np.asarray, create_params(model_of(CONFIG), mesh_of(1), seed=0))


def step_of(config: Config, mesh: Mesh, optimizer: optax.GradientTransformation) -> Step:
    """The step of the configuration's task, uncompiled."""
    return training_step(create_model(model_of(config), mesh), optimizer, TASKS[config.task].loss(config, mesh))


def one_step(mesh: Mesh):
    """Metrics and gradients of the first step."""
    placed = jax.device_put(params(), parameter_shardings(mesh, params()))
    state = create_state(placed, GRADIENTS, mesh)
    step = compile_step(step_of(CONFIG, mesh, GRADIENTS), state, mesh)
    state, metrics = step(state, global_batch(mesh, batch()))
    return metrics, state.optimizer.trace


@pytest.fixture(scope="module")
def one_device():
    return one_step(mesh_of(1))


def test_eight_devices_give_the_losses_and_gradients_of_one(one_device):
    """Split along both axes of the mesh."""
    expected, expected_gradients = one_device
    metrics, gradients = one_step(mesh_of(8, 4))
    assert sorted(metrics) == ["accuracy", "class", "giou", "gradient_norm", "l1", "loss"]
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients, expected_gradients)


def test_everything_but_what_only_retrieval_needs_learns(one_device):
    _, gradients = one_device
    unused = {"ln_post", "projection"}
    for name, part in gradients["encoder"].items():
        assert all(np.any(leaf) for leaf in jax.tree.leaves(part)) == (name not in unused), name
    # A bias of keys moves all scores of a query alike; the last corrections of boxes start at zero.
    flat = jax.tree_util.tree_leaves_with_path(gradients["detector"])
    silent = {jax.tree_util.keystr(path) for path, leaf in flat if not np.any(np.abs(leaf) > 1e-9)}
    assert all("'key'" in name or "'box_1'" in name or "'box_2'" in name for name in silent), silent


def test_padding_changes_nothing():
    graphdef, weights = create_model(model_of(CONFIG), mesh_of(1)), params()
    loss = jax.jit(lambda rows: detector_loss(graphdef, weights, rows, CONFIG.loss.detection)[1])
    expected, rows = loss(batch()), dict(batch())
    rows["boxes"] = np.where(rows["box_mask"][..., None], rows["boxes"], np.float32(0.3))
    rows["video"] = np.where(rows["frame_mask"][..., None, None, None], rows["video"], np.uint8(99))
    found = loss(rows)

    def padded(axis, names):
        return {n: np.pad(rows[n], [(0, 2 * (i == axis)) for i in range(rows[n].ndim)]) for n in names}

    wider, longer = padded(2, ["boxes", "box_mask"]), padded(1, set(rows) - {"index"})
    for other in (found, loss(rows | wider), loss(rows | longer)):
        for name, value in expected.items():
            assert float(other[name]) == pytest.approx(float(value), rel=2e-5), name


def test_top_accuracy_by_hand():
    logits = jnp.array([[[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]]])
    predicted = jnp.broadcast_to(jnp.array([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]), (1, 3, 2, 4))
    boxes = jnp.broadcast_to(jnp.array([[0.5, 0.5, 1.0, 1.0]]), (1, 3, 1, 4))
    asked = jnp.array([[[True], [True], [False]]])
    assert float(top_accuracy(logits, predicted, boxes, asked)) == 0.5
    assert float(top_accuracy(logits, predicted, boxes, jnp.zeros_like(asked))) == 0


def test_learns_a_few_frames_by_heart():
    config = small_config(task="detection", model__detector__kind="frame", data__batch_size=4)
    mesh, rows = mesh_of(1), {name: value[:4] for name, value in batch().items()}
    rows["boxes"], rows["box_mask"] = rows["boxes"][:, :, :1], rows["frame_mask"][..., None]
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    state = create_state(create_params(model_of(config), mesh, seed=0), optimizer, mesh)
    step = compile_step(step_of(config, mesh, optimizer), state, mesh)
    rows, history = global_batch(mesh, rows), []
    for _ in range(150):
        state, metrics = step(state, rows)
        history.append({name: float(value) for name, value in metrics.items()})
    assert history[-1]["accuracy"] > 0.9 and history[-1]["loss"] < history[0]["loss"] / 4, (history[0], history[-1])


def test_a_detector_starts_from_rices_encoder_and_rice_from_a_detectors(tmp_path):
    mesh, rice = mesh_of(1), small_config()
    trained = create_params(model_of(rice), mesh, seed=5)
    save_weights(tmp_path / "rice", trained, rice.to_dict())
    frame = small_config(task="detection", model__detector__kind="frame")
    fresh = create_params(model_of(frame), mesh, seed=0)
    started = start_from(tmp_path / "rice", fresh, model_of(frame))
    jax.tree.map(np.testing.assert_array_equal, started["encoder"], trained["encoder"])
    jax.tree.map(np.testing.assert_array_equal, started["detector"], fresh["detector"])

    save_weights(tmp_path / "frame", started, frame.to_dict())
    clip = start_from(tmp_path / "frame", create_params(model_of(CONFIG), mesh, seed=0), model_of(CONFIG))
    jax.tree.map(np.testing.assert_array_equal, clip["detector"]["layers"], started["detector"]["layers"])
    back = start_from(tmp_path / "frame", create_params(model_of(rice), mesh, seed=0), model_of(rice))
    jax.tree.map(np.testing.assert_array_equal, back["encoder"], trained["encoder"])
    assert "detector" not in back

    four = small_config(task="detection", model__detector__kind="frame", model__detector__heads=4)
    with pytest.raises(CheckpointError, match=r"found 2 heads, expected 4 \(config.model.detector.heads\)"):
        start_from(tmp_path / "frame", fresh, model_of(four))

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from rice_jax.config import Config, ConfigError
from rice_jax.losses.contrastive import contrastive_loss, different_images
from rice_jax.models.create import create_model, create_params
from rice_jax.parallel.mesh import global_batch, parameter_shardings
from rice_jax.tasks import TASKS
from rice_jax.tasks.retrieval import retrieval_loss
from rice_jax.train.state import create_state
from rice_jax.train.steps import Step, compile_step, training_step
from scripts.benchmarks.hlo import collectives
from tests.settings import model_of, small_config

BATCH, FRAMES = 16, 3
# One negative, so that two pairs on each of eight devices suffice where negatives come from a device.
CONFIG = small_config(data__batch_size=BATCH, loss__num_negatives=1, loss__pmd_weight=0.5, loss__pfr_weight=0.25)
# An optimizer that keeps the gradients it is given.
GRADIENTS = optax.trace(0.0)


def mesh_of(devices: int, fsdp: int = 1) -> Mesh:
    shape = (devices // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,) * 2)


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


def with_loss(config: Config, **changes) -> Config:
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, **changes))


@functools.cache
def params() -> dict:
    return jax.tree.map(np.asarray, create_params(model_of(CONFIG), mesh_of(1), seed=0))


def step_of(config: Config, mesh: Mesh) -> Step:
    """The step of the configuration's task, uncompiled."""
    loss = TASKS[config.task].loss(config, mesh)
    return training_step(create_model(model_of(config), mesh), GRADIENTS, loss)


def compiled(mesh: Mesh, config: Config = CONFIG, start: dict | None = None):
    """The step as the loop runs it, and a function that makes its state after a number of updates."""
    start = start or params()
    placed = jax.device_put(start, parameter_shardings(mesh, start))
    state = create_state(placed, GRADIENTS, mesh)
    step = compile_step(step_of(config, mesh), state, mesh)
    shardings = parameter_shardings(mesh, state)
    copy = jax.jit(lambda state, number: jax.tree.map(jnp.copy, state._replace(step=number)), out_shardings=shardings)
    return step, lambda number: copy(state, jnp.int32(number))


def one_step(mesh: Mesh, config: Config = CONFIG, start: dict | None = None, rows: dict | None = None):
    """Metrics and gradients of the first step."""
    step, state = compiled(mesh, config, start)
    state, metrics = step(state(0), global_batch(mesh, rows or batch()))
    return metrics, state.optimizer.trace


@pytest.fixture(scope="module")
def one_device():
    return compiled(mesh_of(1))


def assert_same(actual, expected):
    (metrics, gradients), (expected_metrics, expected_gradients) = actual, expected
    assert metrics.keys() == expected_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected_metrics[name], rtol=2e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients, expected_gradients)


def test_eight_devices_give_the_losses_and_gradients_of_one(one_device):
    """With dropout: what is drawn does not depend on the mesh.

    Of parameters that are split over all devices; `test_text_in_pmd.py` splits none, and masked patches are compared
    on both axes, below.
    """
    step, state = one_device
    assert CONFIG.model.pmd.attention_dropout > 0
    after, metrics = step(state(0), global_batch(mesh_of(1), batch()))
    assert_same(one_step(mesh_of(8, fsdp=8)), (metrics, after.optimizer.trace))


def test_eight_devices_give_the_losses_and_gradients_of_one_with_another_kind_of_encoder():
    """No CLS token, a pooling that attends, registers, layer scale, SwiGLU, rotary positions."""
    parts = dict(class_token=False, pooling="attention", registers=1, ln_pre=False, layer_scale=True, gated_mlp=True)
    parts |= dict(positions="rotary", key_bias=False, patch_bias=True, activation="silu", projection=False)
    sizes = {f"model__{name}": value for name, value in (parts | dict(embed_dim=32, pixels="half")).items()}
    config = small_config(data__batch_size=BATCH, loss__num_negatives=1, **sizes)
    own = jax.tree.map(np.asarray, create_params(model_of(config), mesh_of(1), seed=0))
    assert_same(one_step(mesh_of(8, 2), config, own), one_step(mesh_of(1), config, own))


def test_eight_devices_give_the_losses_and_gradients_of_one_with_a_stem():
    """All but the last convolution are frozen, so that the step compiles in seconds."""
    sizes = dict(model__stem="mobilenet", model__patch_size=16, model__frozen_stages=8)
    config = small_config(data__batch_size=BATCH, loss__num_negatives=1, **sizes)
    own = jax.tree.map(np.asarray, create_params(model_of(config), mesh_of(1), seed=0))
    assert_same(one_step(mesh_of(8, 2), config, own), one_step(mesh_of(1), config, own))


@pytest.mark.parametrize(("architecture", "num_chunks"), [("timesformer", 1), ("xclip", 2)])
def test_eight_devices_give_the_losses_and_gradients_of_one_with_an_encoder_of_videos(architecture, num_chunks):
    config = small_config(data__batch_size=BATCH, loss__pmd_weight=0.0, model__architecture=architecture)
    own = jax.tree.map(np.asarray, create_params(model_of(config), mesh_of(1), seed=0))
    rng = np.random.default_rng(0)  # fresh frames take nothing from each other
    encoder = own["encoder"]
    if architecture == "timesformer":
        encoder["time_embedding"] = rng.standard_normal((10, 32), np.float32)
        last = [encoder["blocks"]["temporal"]["dense"]]
    else:
        over_frames = encoder["integration"]["blocks"]
        encoder["integration"]["position"] = rng.standard_normal((10, 16), np.float32)
        last = [encoder["blocks"]["message"]["out"], over_frames["out"], over_frames["down"]]
    for layer in last:
        layer["kernel"] = 0.2 * rng.standard_normal(layer["kernel"].shape, np.float32)
    train = dataclasses.replace(config.train, grad_cache_chunks=num_chunks)
    chunked = dataclasses.replace(config, train=train)
    assert_same(one_step(mesh_of(8, 2), chunked, own), one_step(mesh_of(1), config, own))


def test_dropout_and_nothing_else_depends_on_the_number_of_the_step(one_device):
    step, state = one_device
    rows = global_batch(mesh_of(1), batch())
    (first, metrics), (_, again), (second, later) = (step(state(number), rows) for number in (0, 0, 1))
    assert (first.step, second.step) == (1, 2)
    jax.tree.map(np.testing.assert_array_equal, metrics, again)
    assert metrics["pmd"] != later["pmd"]
    assert (metrics["icl"], metrics["pfr"]) == (later["icl"], later["pfr"])


def test_total_is_the_weighted_sum_and_metrics_are_those_promised(one_device):
    step, state = one_device
    metrics = step(state(0), global_batch(mesh_of(1), batch()))[1]
    np.testing.assert_allclose(
        metrics["loss"], metrics["icl"] + 0.5 * metrics["pmd"] + 0.25 * metrics["pfr"], rtol=1e-6
    )
    promised = ["loss", "icl", "pmd", "pfr", "accuracy", "match_accuracy", "logit_scale", "gradient_norm"]
    assert sorted(metrics) == sorted(promised)
    assert all(np.isfinite(value) and value > 0 for name, value in metrics.items() if not name.endswith("accuracy"))


def test_negatives_of_a_device_are_those_of_as_many_parts_on_one_device():
    config = with_loss(CONFIG, negatives="device")
    metrics, gradients = one_step(mesh_of(8, fsdp=2), config)
    graphdef, rows = create_model(model_of(config), mesh_of(1)), global_batch(mesh_of(1), batch())
    dropout_key = jax.random.fold_in(jax.random.key(config.seed), 0)

    def loss(params, num_shards):
        return retrieval_loss(graphdef, params, rows, config.loss, num_shards, dropout_key)

    (_, expected), expected_gradients = jax.jit(jax.value_and_grad(lambda p: loss(p, 8), has_aux=True))(params())
    del metrics["gradient_norm"]
    assert_same((metrics, gradients), (expected, expected_gradients))
    anywhere = jax.jit(lambda params: loss(params, 1)[1])(params())
    assert float(metrics["pmd"]) != pytest.approx(float(anywhere["pmd"]), rel=1e-3), (
        "some image's hardest negative lies in another part"
    )


def masked() -> dict[str, np.ndarray]:
    """The batch with a patch mask; a quarter of all patches is masked."""
    return batch() | {"patch_mask": np.random.default_rng(1).random((BATCH, FRAMES, 4)) < 0.75}


def test_masked_patches_play_no_part_in_any_loss_or_gradient(one_device):
    step, state = one_device
    rows = masked()
    hidden = np.kron(~rows["patch_mask"].reshape(BATCH, FRAMES, 2, 2), np.ones((8, 8), bool))[..., None]
    other = rows | {"video": np.where(hidden, 255 - rows["video"], rows["video"])}
    assert (other["video"] != rows["video"]).mean() > 0.2
    results = []
    for some in (rows, other):
        after, metrics = step(state(0), global_batch(mesh_of(1), some))
        # The kernel of the patches sees all of them, with gradients of zero from the masked ones.
        results.append((metrics, after.optimizer.trace))
    assert_same(*results)
    assert results[0][0]["pfr"] != step(state(0), global_batch(mesh_of(1), batch()))[1]["pfr"]


def test_a_patch_mask_of_all_ones_changes_no_bit_of_the_losses(one_device):
    """Gradients are summed in the order of another program, and so agree to rounding."""
    step, state = one_device
    ones = batch() | {"patch_mask": np.ones((BATCH, FRAMES, 4), bool)}
    (after, metrics), (expected, expected_metrics) = (
        step(state(0), global_batch(mesh_of(1), rows)) for rows in (ones, batch())
    )
    norms = metrics.pop("gradient_norm"), expected_metrics.pop("gradient_norm")
    jax.tree.map(np.testing.assert_array_equal, metrics, expected_metrics)
    for found, wanted in (norms, (after.optimizer.trace, expected.optimizer.trace)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_eight_devices_mask_the_same_patches(one_device):
    step, state = one_device
    after, metrics = step(state(0), global_batch(mesh_of(1), masked()))
    assert_same(one_step(mesh_of(8, fsdp=2), rows=masked()), (metrics, after.optimizer.trace))


@pytest.mark.parametrize(("devices", "chunks"), [(1, 4), (8, 2)])
def test_chunks_give_the_losses_and_gradients_of_the_whole_batch(one_device, devices, chunks):
    """Of all three losses and with a patch mask."""
    step, state = one_device
    after, metrics = step(state(0), global_batch(mesh_of(1), masked()))
    found = one_step(mesh_of(devices, fsdp=min(devices, 2)), in_parts(chunks), rows=masked())
    assert_same(found, (metrics, after.optimizer.trace))


def test_chunks_hold_the_activations_of_one(one_device):
    def held(chunks):
        config, mesh = (
            in_parts(chunks, small_config(data__batch_size=64, model__layers=6, loss__pmd_weight=0.0)),
            mesh_of(1),
        )
        state = jax.eval_shape(lambda: create_state(create_params(model_of(config), mesh, 0), GRADIENTS, mesh))
        rows = {name: jax.ShapeDtypeStruct((64, *x.shape[1:]), x.dtype) for name, x in batch().items()}
        step = step_of(config, mesh)
        return compile_step(step, state, mesh).lower(state, rows).compile().memory_analysis().temp_size_in_bytes

    assert held(8) < 0.3 * held(1)


def test_gradients_meet_once_however_many_chunks_there_are():
    """Of eight devices; the encoder's are nearly all that is sent."""

    def sent(chunks):
        config, mesh = in_parts(chunks, small_config(data__batch_size=64, loss__pmd_weight=0.0)), mesh_of(8)
        state = jax.eval_shape(lambda: create_state(create_params(model_of(config), mesh, 0), GRADIENTS, mesh))
        rows = {name: jax.ShapeDtypeStruct((64, *x.shape[1:]), x.dtype) for name, x in batch().items()}
        step = step_of(config, mesh)
        compiled = compile_step(step, state, mesh).lower(state, rows).compile()
        return sum(one.sent for one in collectives(compiled.as_text()))

    assert 0 < sent(8) < 1.1 * sent(2)


def test_chunks_that_do_not_divide_over_the_devices_are_refused():
    message = "found 4 chunks of 16 pairs, expected chunks that divide over 8 devices"
    with pytest.raises(ConfigError, match=message):
        step_of(in_parts(4), mesh_of(8))


def in_parts(chunks: int, config: Config = CONFIG) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, grad_cache_chunks=chunks))


def test_a_device_with_too_few_pairs_is_refused():
    config = with_loss(CONFIG, negatives="device", num_negatives=2)
    message = "found 16 pairs on 8 devices, expected more than config.loss.num_negatives (2) on each"
    with pytest.raises(ConfigError, match=re.escape(message)):
        step_of(config, mesh_of(8))
    step_of(config, mesh_of(4))
    step_of(with_loss(config, negatives="batch"), mesh_of(8))


def test_a_weight_of_zero_leaves_out_parameters_and_computation():
    mesh = mesh_of(1)

    def parameters_metrics_and_operations(**weights):
        config = small_config(data__batch_size=BATCH, **weights)
        abstract = jax.eval_shape(lambda: create_params(model_of(config), mesh, seed=0))
        graphdef = create_model(model_of(config), mesh)
        loss = lambda params, rows: retrieval_loss(graphdef, params, rows, config.loss)  # noqa: E731
        lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(abstract, batch())
        (_, metrics), _ = lowered.out_info
        return set(abstract), set(metrics), lowered.cost_analysis()["flops"]

    everything, names, operations = parameters_metrics_and_operations()
    assert everything == {"encoder", "logit_scale", "pmd", "pfr"} and {"pmd", "match_accuracy", "pfr"} < names
    no_pfr, names, fewer = parameters_metrics_and_operations(loss__pfr_weight=0.0)
    assert no_pfr == everything - {"pfr"} and "pmd" in names and "pfr" not in names
    icl, names, fewest = parameters_metrics_and_operations(loss__pmd_weight=0.0)
    assert icl == {"encoder", "logit_scale"} and names == {"loss", "icl", "accuracy", "logit_scale"}

    graphdef = create_model(model_of(small_config(loss__pmd_weight=0.0)), mesh)

    def only_icl(params, rows):
        (image, video), _ = nnx.merge(graphdef, params)(rows)
        mask = different_images(rows["image_key"])
        return contrastive_loss(image, video, params["logit_scale"], mask)

    abstract = {name: value for name, value in params().items() if name in icl}
    expected = jax.jit(jax.value_and_grad(only_icl)).lower(abstract, batch()).cost_analysis()["flops"]
    assert fewest == pytest.approx(expected, rel=0.01)
    assert 1.05 * fewest < fewer and 1.01 * fewer < operations

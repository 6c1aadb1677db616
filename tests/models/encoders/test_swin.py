"""Swin transformers beyond what `tests/test_golden_encoders.py` compares with transformers' models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from rice_jax.config import ConfigError, DetectorConfig, PmdConfig, SwinSettings
from rice_jax.index.store import About
from rice_jax.models.contract import SupportsAttention, SupportsMatching, SupportsStreaming
from rice_jax.models.create import create_model, create_params
from rice_jax.models.detr import DetrConfig
from rice_jax.models.encoders.swin import Swin, relative_places
from rice_jax.models.layers import unstack
from rice_jax.models.weights import embedding_fingerprint
from rice_jax.parallel.mesh import global_batch, parameter_shardings
from rice_jax.tasks import TASKS
from rice_jax.train.state import create_state
from rice_jax.train.steps import compile_step, training_step
from tests.settings import model_of, small_swin

RUN = small_swin(data__batch_size=16)
CONFIG = RUN.model.encoder


def pictures(count=3, size=16):
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, size, size, 3)), jnp.float32)


def mesh_of(devices: int, fsdp: int = 1):
    shape = devices // fsdp, fsdp
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(shape, ("data", "fsdp"), devices=jax.devices()[:devices], axis_types=types)


def test_pairs_of_blocks_are_scanned_as_a_loop_runs_them():
    """Three blocks: a pair, and one that is left."""
    swin = Swin(dataclasses.replace(CONFIG, depths="3,1"), rngs=nnx.Rngs(0))

    def unrolled(swin, x):
        for number in range(3):
            x = unstack(swin.stage_0.blocks, number)(x, 4, 2 * (number % 2))
        return x

    def value_and_gradient(apply):
        return nnx.jit(nnx.value_and_grad(lambda swin: (apply(swin, swin.embed(pictures())) ** 2).sum()))(swin)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        value_and_gradient(lambda swin, x: swin.stage_0.apply_blocks(x)),
        value_and_gradient(unrolled),
    )


def test_rematerialization_and_unrolling_change_no_number():
    outputs = []
    for changes in ({}, {"remat": "dots"}, {"remat": "full"}, {"unroll": True}):
        swin = Swin(dataclasses.replace(CONFIG, depths="4,1", **changes), rngs=nnx.Rngs(0))
        loss = lambda swin: (swin(pictures())[1] ** 2).sum()  # noqa: E731
        outputs.append(nnx.jit(nnx.value_and_grad(loss))(swin))
    for output in outputs[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), output, outputs[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compute_dtype_leaves_parameters_in_float32(dtype):
    swin = Swin(dataclasses.replace(CONFIG, dtype=dtype), rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(swin, nnx.Param))} == {jnp.dtype("float32")}
    tokens, feature = nnx.jit(Swin.__call__)(swin, pictures())
    assert (tokens.shape, feature.shape) == ((3, 1, 16), (3, 16)), "the summary is the only token"
    assert tokens.dtype == feature.dtype == dtype


def test_a_projection_is_built_where_the_embedding_has_another_size():
    without, smaller = (Swin(dataclasses.replace(CONFIG, embed_dim=size), rngs=nnx.Rngs(0)) for size in (16, 10))
    apply = nnx.jit(Swin.__call__)
    summary, feature = (x[:, 0] if x.ndim == 3 else x for x in apply(without, pictures()))
    np.testing.assert_array_equal(feature, summary)
    tokens, feature = apply(smaller, pictures())
    np.testing.assert_allclose(feature, tokens[:, 0] @ smaller.projection.kernel[...], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [4, 6, 14, 16, 24])
def test_any_size_of_picture_is_encoded_with_the_same_parameters(size):
    """Grids smaller than a window, odd ones, and ones that windows do not divide."""
    config = dataclasses.replace(CONFIG, image_size=size)
    shapes = [jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(Swin(c, rngs=nnx.Rngs(0))))) for c in (config, CONFIG)]
    assert shapes[0] == shapes[1]
    loss = lambda swin: (swin(pictures(size=size))[1] ** 2).sum()  # noqa: E731
    values = nnx.jit(nnx.value_and_grad(loss))(Swin(config, rngs=nnx.Rngs(0)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values))


def test_a_bias_depends_on_the_difference_of_places_alone():
    small, whole = relative_places(2, 4), relative_places(4, 4)
    assert small.shape == (4, 4) and whole.shape == (16, 16)
    inside = [0, 1, 4, 5]  # the upper left of the whole window
    np.testing.assert_array_equal(small, whole[np.ix_(inside, inside)])
    rows, columns = np.divmod(np.arange(16), 4)
    differences = np.stack([rows[:, None] - rows, columns[:, None] - columns], axis=-1).reshape(-1, 2)
    pairs = set(zip(map(tuple, differences.tolist()), whole.reshape(-1).tolist(), strict=True))
    assert len(pairs) == 49 and {row for _, row in pairs} == set(range(49))


def test_no_pixel_passes_a_window_in_the_first_block_and_all_meet_in_the_last():
    swin = Swin(CONFIG, rngs=nnx.Rngs(0))
    changed = pictures().at[:, 0, 0].add(1.0)

    def moved(apply):
        apply = nnx.jit(apply)
        difference = apply(swin, swin.embed(changed)) - apply(swin, swin.embed(pictures()))
        return np.abs(np.asarray(difference)).max(axis=(0, 3)) > 1e-6

    plain = moved(lambda swin, x: unstack(swin.stage_0.blocks, 0)(x, 4, 0))
    assert plain[:4, :4].all() and plain.sum() == 16
    shifted = moved(lambda swin, x: unstack(swin.stage_0.blocks, 0)(x, 4, 2))
    assert shifted[:2, :2].all() and shifted.sum() == 4, "rolled to the end, it is a window of its own"
    assert moved(lambda swin, x: swin.stage_1(swin.stage_0(x))).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss__pmd_weight": 1.0}, r"config\.loss\.pmd_weight: found 1\.0 with .*'swin', expected 0: PMD and PFR "),
        (
            {"model__ipd": "boxes"},
            r"config\.model\.ipd_use: found 'mask' with .*'swin', which cannot leave out ",
        ),
        ({"task": "detection"}, r"config\.model\.architecture: found 'swin' with config\.task='detection', expected "),
        ({"model__width": 64}, r"config\.model\.width: found 64 with .*'swin', which does not read it"),
        ({"model__pooling": "mean"}, r"config\.model\.pooling: found 'mean' with .*'swin', which does not read it"),
        ({"model__swin__depths": "2,x"}, r"config\.model\.swin\.depths: found '2,x', expected positive whole numbers"),
        ({"model__swin__heads": "2,0"}, r"config\.model\.swin\.heads: found '2,0', expected positive whole numbers"),
        (
            {"model__swin__heads": "2"},
            r"config\.model\.swin\.heads: found '2', expected as many stages as ",
        ),
        ({"model__swin__heads": "2,3"}, r"config\.model\.swin\.heads: found 3 heads in a stage of width 16"),
        (
            {"model__swin__patch_size": 3},
            r"config\.model\.image_size: found 16, expected a multiple of swin",
        ),
        ({"eval__rerank": 2}, r"config\.eval\.rerank: found 2, expected 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config = small_swin(**changes)
        TASKS[config.task].check(config)


def test_what_needs_patches_is_refused():
    """Cropped frames need no mask."""
    assert small_swin(model__ipd="boxes", model__ipd_use="crop").model.ipd == "boxes"
    with pytest.raises(ConfigError, match="cannot leave out patches; set config.model.ipd_use='crop'"):
        Swin(CONFIG, rngs=nnx.Rngs(0))(pictures(), jnp.ones((3, 64), bool))
    for model in (dataclasses.replace(model_of(RUN), pmd=PmdConfig()), DetrConfig(CONFIG, DetectorConfig())):
        with pytest.raises(ConfigError, match="found 'swin', expected 'vit' with .*, which attends to the encoder's "):
            create_model(model, mesh_of(1))
    model = nnx.merge(create_model(model_of(RUN), mesh_of(1)), create_params(model_of(RUN), mesh_of(1), seed=0))
    assert SupportsStreaming in model.capabilities
    assert not model.capabilities & {SupportsMatching, SupportsAttention}


def test_every_parameter_and_setting_changes_the_fingerprint():
    config = model_of(RUN)
    params = create_params(config, mesh_of(1), seed=0)
    found = {embedding_fingerprint(params, config, 20)}
    flat = flatten_dict(params, sep="/")
    encoder = [name for name in flat if name.startswith("encoder/")]
    for name in encoder:
        value = np.array(flat[name])
        value.flat[0] += 0.125
        found.add(embedding_fingerprint(unflatten_dict(flat | {name: value}, sep="/"), config, 20))
    others = dict(patch_size=1, width=4, depths="1,2", heads="1,1", window=5, mlp_ratio=3.0, activation="silu")
    others |= dict(epsilon=1e-6, pixels="half", image_size=32)
    assert others.keys() == {field.name for field in dataclasses.fields(SwinSettings)} | {"pixels", "image_size"}
    for name, value in others.items():
        changed = dataclasses.replace(config, encoder=dataclasses.replace(CONFIG, **{name: value}))
        found.add(embedding_fingerprint(params, changed, 20))
    free = dataclasses.replace(CONFIG, dtype="bfloat16", remat="full", unroll=True)
    found.add(embedding_fingerprint(params, dataclasses.replace(config, encoder=free), 20))
    assert len(found) == 1 + len(encoder) + len(others)


def test_an_index_stores_the_settings():
    about = About(model_of(RUN), 20, 3, "", "", None)
    assert About.from_dict(dataclasses.asdict(about)) == about


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
        "video": rng.integers(0, 256, (16, 3, 16, 16, 3), np.uint8),
        "frame_mask": np.arange(3) < rng.integers(1, 4, (16, 1)),
        "image_key": rng.integers(0, 12, 16, np.int32),
        "index": np.arange(16, dtype=np.int32),
    }


def one_step(mesh):
    """Metrics and gradients of the first step."""
    keep = optax.trace(0.0)  # an optimizer that keeps the gradients
    start = jax.tree.map(np.asarray, create_params(model_of(RUN), mesh_of(1), seed=0))
    state = create_state(jax.device_put(start, parameter_shardings(mesh, start)), keep, mesh)
    step = training_step(create_model(model_of(RUN), mesh), keep, TASKS[RUN.task].loss(RUN, mesh))
    state, metrics = compile_step(step, state, mesh)(state, global_batch(mesh, batch()))
    return metrics, state.optimizer.trace


@pytest.fixture(scope="module")
def one_device():
    return one_step(mesh_of(1))


def test_eight_devices_compute_what_one_does(one_device):
    metrics, gradients = one_step(mesh_of(8, 2))
    np.testing.assert_allclose(metrics["loss"], one_device[0]["loss"], rtol=1e-5)
    expected = flatten_dict(one_device[1], sep="/")
    assert len(expected) > 30
    total = np.sqrt(sum(np.linalg.norm(x) ** 2 for x in expected.values()))
    for name, x in flatten_dict(gradients, sep="/").items():
        difference = np.linalg.norm(np.asarray(x) - expected[name])
        assert difference <= 1e-4 * np.linalg.norm(expected[name]) + 1e-6 * total, name
    split = {n for n, x in flatten_dict(gradients, sep="/").items() if not x.sharding.is_fully_replicated}
    assert {n for n in expected if n.startswith("encoder/") and n.endswith("/kernel")} - split <= {
        "encoder/patch_embedding/kernel"
    }

"""MobileNetV2 as a stem: its convolutions against a computation in float64, and an encoder with it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from rice_jax.config import ConfigError, MeshConfig, OptimizerConfig, VitConfig
from rice_jax.convert.vit import settings
from rice_jax.models.create import create_params
from rice_jax.models.encoders import encoder_class, frozen
from rice_jax.models.encoders.mobilenet import STAGES, Mobilenet, convolve, filter_channels
from rice_jax.models.encoders.vit import Vit
from rice_jax.models.start import start_from
from rice_jax.models.weights import save_weights
from rice_jax.parallel.mesh import ONE_PLACE, create_mesh
from rice_jax.train.optimizer import create_optimizer
from tests.settings import model_of, small_config

SMALL = dict(model__stem="mobilenet", model__patch_size=16, model__image_size=32, data__resize=36)

CONFIG = VitConfig(
    stem="mobilenet", image_size=64, patch_size=16, width=32, layers=1, heads=2, embed_dim=8, dtype="float32"
)


def pictures(size=64, count=2):
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, size, size, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    """Of MobileNetV2, as large at every depth as those of a trained one."""
    rng = np.random.default_rng(1)
    ranges = {"scale": (0.8, 1.2), "bias": (-0.5, 0.5)}

    def draw(path, value):
        name = path[-1].key
        return rng.uniform(*ranges[name], value.shape) if name in ranges else value

    fresh = nnx.to_pure_dict(nnx.state(Mobilenet(CONFIG, nnx.Rngs(0)), nnx.Param))
    return jax.tree.map(lambda x: np.asarray(x, np.float32), jax.tree_util.tree_map_with_path(draw, fresh))


def feature_map(params, **changes):
    graphdef = nnx.split(Mobilenet(dataclasses.replace(CONFIG, **changes), nnx.Rngs(0)))[0]
    places = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x))(params, pictures())
    side = round(places.shape[1] ** 0.5)
    return places.reshape(2, side, side, 1280)


def in_float64(params, x):
    """MobileNetV2 as its paper describes it, place by place, for patches of 32 pixels."""

    def convolution(x, layer, stride=1, activate=True):
        kernel = np.asarray(layer["kernel"], np.float64)
        if kernel.ndim == 2:
            x = x @ kernel
        else:
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
            x = np.einsum("bhwcij,ijc->bhwc" if kernel.ndim == 3 else "bhwcij,ijco->bhwo", windows, kernel)
        x = x * layer["scale"] + layer["bias"]
        return np.clip(x, 0, 6) if activate else x

    x = convolution(x.astype(np.float64), params["stage_0"], stride=2)
    for number, (expansion, _, depth, stride) in enumerate(STAGES, 1):
        for index in range(depth):
            block, before = params[f"stage_{number}"][f"block_{index}"], x
            if expansion > 1:
                x = convolution(x, block["expand"])
            x = convolution(x, block["filter"], stride=stride if index == 0 else 1)
            x = convolution(x, block["project"], activate=False)
            if index:
                x = before + x
    return convolution(x, params["stage_8"])


def test_the_feature_map_is_the_papers(params):
    expected = in_float64(params, np.asarray(pictures()))
    assert expected.shape == (2, 2, 2, 1280) and 0.1 < (expected > 0).mean() < 0.9
    np.testing.assert_allclose(feature_map(params, patch_size=32), expected, rtol=1e-3, atol=1e-4)


def test_patches_of_half_the_side_hold_those_of_the_whole(params):
    """The same weights on a map of twice the side: every other place sees what it sees with the last stride."""
    fine, coarse = feature_map(params), feature_map(params, patch_size=32)
    assert fine.shape == (2, 4, 4, 1280)
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("stride", "dilation", "size"), [(1, 1, 5), (2, 1, 6), (2, 1, 5), (1, 2, 4)])
def test_shifted_maps_give_the_values_and_gradients_of_a_grouped_convolution(stride, dilation, size):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, size, size, 6), (3, 3, 6)))

    def value_and_gradients(apply):
        loss = lambda x, kernel: (apply(x, kernel) ** 2).sum()  # noqa: E731
        return jax.jit(lambda x, kernel: (apply(x, kernel), jax.grad(loss, (0, 1))(x, kernel)))(x, kernel)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        value_and_gradients(lambda x, kernel: filter_channels(x, kernel, stride, dilation)),
        value_and_gradients(lambda x, kernel: convolve(x, kernel[:, :, None], stride, dilation, groups=6)),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_are_a_summary_and_the_places_in_reading_order(dtype):
    model = Vit(dataclasses.replace(CONFIG, dtype=dtype), rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype("float32")}
    tokens, feature = nnx.jit(Vit.__call__)(model, pictures())
    assert (tokens.shape, feature.shape) == ((2, 17, 32), (2, 8)) and tokens.dtype == feature.dtype == dtype
    mask = np.ones((2, 16), bool)
    mask[1, 5:] = False
    _, masked = nnx.jit(Vit.__call__)(model, pictures(), jnp.asarray(mask))
    np.testing.assert_array_equal(masked[0], feature[0])
    assert np.abs(masked[1] - feature[1]).max() > 1e-4


def test_frozen_stages_do_not_change_and_the_others_do():
    """Weight decay, too, leaves them as they are; and recomputation changes no gradient."""
    config = dataclasses.replace(CONFIG, image_size=32, frozen_stages=8)
    model = Vit(config, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    start = {"encoder": nnx.to_pure_dict(state)}
    paths = [f"encoder/{path}" for path in frozen(config)]
    assert paths == [f"encoder/stem/stage_{number}" for number in range(8)]
    settings = OptimizerConfig(encoder_learning_rate=1e-2, warmup_steps=0, weight_decay=0.5)
    optimizer = create_optimizer(settings, 10, ("encoder",), frozen=paths)

    def loss(params, graphdef):
        return (nnx.merge(graphdef, params["encoder"])(pictures(32))[1] ** 2).sum()

    gradients = jax.jit(jax.grad(lambda params: loss(params, graphdef)))(start)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(start), start)
    moved = {path: bool(np.any(update)) for path, update in flatten_dict(updates, sep="/").items()}
    assert moved == {path: not path.startswith(tuple(paths)) for path in moved}
    again = nnx.split(Vit(dataclasses.replace(config, remat="full"), rngs=nnx.Rngs(0)))[0]
    recomputed = jax.jit(jax.grad(lambda params: loss(params, again)))(start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), recomputed, gradients)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__stem": "mobilenet"},
            "config.model.patch_size: found 8 with stem='mobilenet', expected 16 or",
        ),
        (
            {"model__stem": "mobilenet", "model__patch_size": 16, "model__frozen_stages": 10},
            "config.model.frozen_stages: found 10, expected 0 to 9",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        small_config(**changes)


def test_frozen_stages_of_another_stem_are_refused():
    config = small_config(model__frozen_stages=1).model.encoder
    with pytest.raises(ConfigError, match="frozen_stages: found 1 with stem='patches', expected 0"):
        frozen(config)


@pytest.mark.parametrize("architecture", ["timesformer", "xclip"])
def test_encoders_of_videos_start_from_one_with_a_stem(architecture, tmp_path):
    config = model_of(small_config(**SMALL, model__architecture=architecture, loss__pmd_weight=0.0))
    pictures_alone = model_of(small_config(**SMALL, loss__pmd_weight=0.0))
    mesh = create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    saved = create_params(pictures_alone, mesh, seed=1)
    save_weights(tmp_path / "pictures", jax.tree.map(np.asarray, saved), {"model": settings(pictures_alone.encoder)})
    params = start_from(tmp_path / "pictures", create_params(config, mesh, seed=0), config)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"]["stem"], saved["encoder"]["stem"])
    encoder = nnx.split(encoder_class(config.encoder)(config.encoder, placement=ONE_PLACE, rngs=nnx.Rngs(0)))[0]
    videos = pictures(32, count=6).reshape(2, 3, 32, 32, 3)
    encode = jax.jit(lambda params, videos, mask: nnx.merge(encoder, params)(videos, mask))
    mask = jnp.asarray([[True, True, True], [True, True, False]])
    features = encode(params["encoder"], videos, mask)
    assert features.shape == (2, 16) and np.isfinite(features).all()
    changed = videos.at[1, 2].add(1.0)  # padding
    np.testing.assert_allclose(encode(params["encoder"], changed, mask), features, rtol=1e-5, atol=1e-6)

"""The weights from which the sample's encoder is trained, from tensors with PyTorch's names."""

import jax
import numpy as np
from flax import nnx
from PIL import Image

from data.sample import start
from rice_jax.models.encoders.mobilenet import STAGES, Mobilenet
from rice_jax.models.weights import load_weights

RNG = np.random.default_rng(0)


def norm(channels):
    values = {"weight": (0.5, 1.5), "bias": (-1, 1), "running_mean": (-1, 1), "running_var": (0.5, 2)}
    return {name: RNG.uniform(*span, channels) for name, span in values.items()}


def pretrained():
    """A state dict of MobileNetV2: {name: tensor}, convolutions as [outputs, inputs, rows, columns]."""
    state, number, channels = {}, 1, 32

    def add(at, place, shape):
        state[f"{at}.{place}.weight"] = RNG.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        state.update({f"{at}.{place + 1}.{name}": value for name, value in norm(shape[0]).items()})

    add("features.0", 0, (32, 3, 3, 3))
    for stage in STAGES:
        for _ in range(stage.depth):
            at, hidden = f"features.{number}.conv", channels * stage.expansion
            shapes = [(hidden, 1, 3, 3), (stage.channels, hidden, 1, 1)]
            if stage.expansion > 1:
                shapes.insert(0, (hidden, channels, 1, 1))
            for place, shape in enumerate(shapes):
                add(at, 3 * place, shape)
            number, channels = number + 1, stage.channels
    add(f"features.{number}", 0, (1280, channels, 1, 1))
    return state


def test_every_tensor_finds_its_place_and_batch_norms_are_folded():
    state = pretrained()
    params = start.stem(state)
    expected = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Mobilenet(start.ENCODER, nnx.Rngs(0))), nnx.Param))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, expected)
    x, at = RNG.normal(size=(5, 320)), "features.18"
    mean, variance = state[f"{at}.1.running_mean"], state[f"{at}.1.running_var"]
    normed = (x @ state[f"{at}.0.weight"][:, :, 0, 0].T - mean) / np.sqrt(variance + 1e-5)
    layer = params["stage_8"]
    np.testing.assert_allclose(
        x @ layer["kernel"] * layer["scale"] + layer["bias"],
        normed * state[f"{at}.1.weight"] + state[f"{at}.1.bias"],
        rtol=1e-4,
        atol=1e-4,
    )
    np.testing.assert_allclose(
        params["stage_2"]["block_1"]["filter"]["kernel"][0, 2, 7],
        state["features.3.conv.3.weight"][7, 0, 0, 2] / np.sqrt(state["features.3.conv.4.running_var"][7] + 1e-5),
        rtol=1e-6,
    )


def test_the_projection_starts_from_the_principal_directions_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "read_torch", lambda path: (pretrained(), {}))
    (tmp_path / "images").mkdir()
    for number in range(4):
        pixels = RNG.integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg")
    start.main([f"--pretrained={tmp_path}", f"--raw={tmp_path}", f"--out={tmp_path / 'start'}"])
    params, config = load_weights(tmp_path / "start")
    assert config["model"]["stem"] == "mobilenet"
    kernel, bias = params["encoder"]["patch_embedding"]["kernel"], params["encoder"]["patch_embedding"]["bias"]
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(192), atol=1e-4)
    graphdef = nnx.split(Mobilenet(start.ENCODER, nnx.Rngs(0)))[0]
    paths = sorted((tmp_path / "images").glob("*.jpg"))
    mean, std = (np.float32(x) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = np.stack([np.asarray(Image.open(path).resize((128, 128), Image.Resampling.BICUBIC)) for path in paths])
    stem = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x))
    places = np.asarray(stem(params["encoder"]["stem"], (pixels / np.float32(255) - mean) / std)).reshape(-1, 1280)
    projected = places @ kernel + bias
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-3)
    spread = projected.var(axis=0)
    assert (np.diff(spread) <= 1e-3 * spread[0]).all(), "the first direction has the most variance"
    np.testing.assert_allclose(spread.sum(), places.var(axis=0).sum(), rtol=0.05)

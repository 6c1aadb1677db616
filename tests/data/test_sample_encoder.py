"""The encoder that the repository ships for its sample shop."""

import csv
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from data.sample import start
from rice_jax.convert.clip import from_hugging_face, read_hugging_face
from rice_jax.models.rice import Rice, RiceConfig

SAMPLE = Path(__file__).parents[2] / "data" / "sample"


@pytest.fixture(scope="module")
def encoder():
    state, config = read_hugging_face(SAMPLE / "encoder")
    return from_hugging_face(state, config)


def test_it_is_small_and_has_the_sizes_of_the_weights_that_it_started_from(encoder):
    _, config = encoder
    assert (SAMPLE / "encoder" / "model.safetensors").stat().st_size <= 8e6
    assert config == start.ENCODER
    assert json.loads((SAMPLE / "encoder" / "config.json").read_text())["model_type"] == "rice_jax"


def test_it_tells_products_apart(encoder):
    """Among the shop images of 40 products a rendering on white finds its own far more often than by chance."""
    params, config = encoder
    fresh = nnx.eval_shape(lambda: Rice(RiceConfig(config), rngs=nnx.Rngs(0)))
    model = nnx.merge(nnx.split(fresh)[0], _with_scale(params))
    products = [row["product_id"] for row in csv.DictReader((SAMPLE / "products.csv").open())][::7][:40]
    images = np.stack([_square(Image.open(SAMPLE / "images" / f"{name}.jpg")) for name in products])
    views = np.stack([_square(_first_view(name)) for name in products])
    embed = nnx.jit(lambda model, pictures: model.embed_image({"image": pictures}))
    similarity = np.asarray(embed(model, jnp.asarray(views)) @ embed(model, jnp.asarray(images)).T)
    found = (similarity.argmax(1) == np.arange(40)).mean()
    assert found >= 10 / 40, f"{found:.0%} found, by chance 2.5 %"


def _with_scale(params):
    return {"encoder": params, "logit_scale": np.float32(4)}


def _first_view(name: str) -> Image.Image:
    strip = Image.open(SAMPLE / "views" / f"{name}.webp").convert("RGBA").crop((0, 0, 160, 160))
    return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)


def _square(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB").resize((start.ENCODER.image_size,) * 2, Image.Resampling.BICUBIC))

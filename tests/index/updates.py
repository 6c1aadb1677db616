"""A model and pictures, whose index the tests of this directory update."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from rice_jax.config import Config, MeshConfig
from rice_jax.index.model import ModelSettings, place_model
from rice_jax.index.update import update_index
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks import TASKS
from tests.input.tiny_shop import picture
from tests.settings import small_config

PARTS = TASKS["retrieval"].model(small_config())


class Shop(NamedTuple):
    """A model with weights on disk, and pictures to index."""

    config: Config
    weights: Path
    workdir: Path
    pictures: Path

    @property
    def directory(self) -> Path:
        return self.workdir / "index"

    def update(
        self,
        images=None,
        change="add",
        num_devices=1,
        with_decoder=True,
        mix=True,
        dimensions=None,
        store_as=None,
        **changes,
    ):
        config = dataclasses.replace(self.config, **changes)
        model = load(self.weights, num_devices, config.data.resize, with_decoder, self.workdir)
        how = {"change": change, "mix": mix, "batch_size": 8, "num_threads": 1}
        how |= {"dimensions": dimensions, "store_as": store_as}
        return update_index(self.directory, images or self.pictures, model, **how)

    def write(self, **numbers):
        for name, number in numbers.items():
            (self.pictures / f"{name}.jpg").write_bytes(picture(number, size=(40, 30)))


def load(weights, num_devices=1, resize=20, with_decoder=True, workdir=None):
    config, mesh = small_config(), create_mesh(MeshConfig(-1, 1), jax.devices()[:num_devices])
    parts = dataclasses.replace(PARTS, pmd=PARTS.pmd if with_decoder else None)
    return place_model(weights, ModelSettings(parts, resize, config.eval.num_frames), mesh, workdir=workdir)


def assert_same_rows(index, other, atol=0.0):
    for name in ("gallery_ids", "image_ids", "product_ids", "titles", "paths", "digests", "fields", "about"):
        assert getattr(index, name) == getattr(other, name), name
    np.testing.assert_allclose(index.vectors, other.vectors, rtol=0, atol=atol)
    np.testing.assert_allclose(np.float32(index.queries), np.float32(other.queries), rtol=0, atol=2e4 * atol)

"""Pictures to index, for the tests of this directory."""

import jax
import pytest

from rice_jax.config import MeshConfig
from rice_jax.index import embedding
from rice_jax.models.create import create_params
from rice_jax.models.weights import save_weights
from rice_jax.parallel.mesh import create_mesh
from tests.index.updates import PARTS, Shop
from tests.settings import small_config


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    config, mesh = small_config(), create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    directory = tmp_path_factory.mktemp("weights") / "model"
    save_weights(directory, create_params(PARTS, mesh, seed=7), config.to_dict())
    return directory


@pytest.fixture
def made(tmp_path, weights):
    made = Shop(small_config(), weights, tmp_path / "run", tmp_path / "pictures")
    made.pictures.mkdir()
    made.write(a=1, b=2, c=3)
    return made


@pytest.fixture
def embedded(monkeypatch):
    """The ids of the pictures that are embedded."""
    ids, decode = [], embedding._decode

    def record(about, picture, digest):
        ids.append(picture.id)
        return decode(about, picture, digest)

    monkeypatch.setattr(embedding, "_decode", record)
    return ids

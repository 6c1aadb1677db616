import jax
import pytest

from rice_jax.config import MeshConfig
from rice_jax.models.create import create_model
from rice_jax.parallel.mesh import create_mesh
from tests.settings import model_of, small_config


@pytest.mark.parametrize("settings", [{}, {"task": "detection"}])
def test_two_structures_on_one_mesh_are_equal(settings):
    """So that a program compiled for one serves the other."""
    config = model_of(small_config(**settings))
    mesh, other = create_mesh(MeshConfig(fsdp=2)), create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    one, again = create_model(config, mesh), create_model(config, mesh)
    assert one == again and hash(one) == hash(again)
    assert one != create_model(config, other)

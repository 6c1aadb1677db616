import dataclasses

import jax
import pytest

from rice_jax.config import MeshConfig
from rice_jax.models.create import create_model, create_params
from rice_jax.parallel.mesh import create_mesh
from tests.settings import model_of, small_config


@pytest.mark.parametrize("settings", [{}, {"task": "detection"}])
def test_models_of_equal_settings_share_their_programs(settings, programs):
    config = model_of(small_config(**settings))
    mesh, other = create_mesh(MeshConfig(fsdp=2)), create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    one, again = create_model(config, mesh), create_model(dataclasses.replace(config), mesh)
    assert one == again and hash(one) == hash(again)
    assert one != create_model(config, other)
    create_params(config, mesh, seed=0)
    compiled = len(programs)
    create_params(dataclasses.replace(config), mesh, seed=0)
    assert len(programs) == compiled
    create_params(config, mesh, seed=1)
    assert len(programs) > compiled

"""What a run needs before any data are read."""

from unittest.mock import Mock

import jax
import pytest
from flax import nnx

from rice_jax.config import ConfigError, MeshConfig
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks import TASKS
from rice_jax.tasks.task import Run
from tests.settings import model_of, small_config


@pytest.mark.parametrize(
    ("task", "names", "evaluated"),
    [
        ("retrieval", ("train", "query", "gallery"), ("query", "gallery")),
        ("detection", ("train", "query"), ("query",)),
    ],
)
def test_a_data_set_that_is_not_set_is_named(task, names, evaluated, tmp_path):
    for name in names:
        config = small_config(task=task, **{f"data__{name}": ""})
        message = f"config.data.{name}: found '', expected a data set such as lpr4m/{name}"
        with pytest.raises(ConfigError, match=message):
            TASKS[task].prepare(config, tmp_path)
        if name in evaluated:
            mesh = create_mesh(MeshConfig(1, 1), jax.devices()[:1])
            with pytest.raises(ConfigError, match=message):
                TASKS[task].evaluators(Run(config, tmp_path, mesh, model_of(config), Mock(nnx.GraphDef), {}))


@pytest.mark.parametrize(("task", "unused"), [("domains", ("train", "query", "gallery")), ("detection", ("gallery",))])
def test_a_data_set_that_a_task_does_not_read_may_be_left_out(task, unused, tmp_path):
    sets = {f"data__{name}": "" for name in unused}
    domains = "rope/pages,rope/lives" if task == "domains" else ""
    config = small_config(task=task, data__domains=domains, **sets)
    assert TASKS[task].prepare(config, tmp_path) is config

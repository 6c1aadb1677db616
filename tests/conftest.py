import os

import jax
import pytest
from absl import flags

from tests.fixtures import build_shop, command, run

# Sharding is tested on eight virtual devices; a test of one device says so by making a mesh of one.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Compiling a step takes far longer than running it on a few pictures. Runs of the program inherit these flags.
FLAGS = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):  # later releases do not know it and stop
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
# Grain's worker processes read absl's flags.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """Runs of the program keep what they compile here and not among the user's files."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """Data directory of a tiny LPR4M, built from raw files."""
    return build_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def reference(shop, tmp_path_factory):
    """Workdir and result of a run of one process and one device that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("reference")
    result = run(command(shop, workdir, module="tests.recorded_main"))
    assert result.returncode == 0, result.stderr
    return workdir, result

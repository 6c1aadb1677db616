import os

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from data.build import main as build
from tests.data.raw_lpr4m import write_raw
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


@pytest.fixture(scope="session")
def evil_shop(tmp_path_factory):
    """Data sets whose images have names that no page should take for its own."""
    from tests.pages.reports import EVIL

    directory = tmp_path_factory.mktemp("evil")
    [titles] = write_raw(directory / "raw", num_train=2).glob("test_image_title_*.txt")
    lines = titles.read_text(encoding="utf-8").splitlines()
    titles.write_text("".join(f"{line} {EVIL}\n" for line in lines), encoding="utf-8")
    build(["lpr4m", "--raw_dir", str(directory / "raw"), "--data_dir", str(directory / "built")])
    return directory / "built"


@pytest.fixture(scope="session")
def live_shop(tmp_path_factory):
    """An index of a fresh model with a decoder, and a calibration."""
    from tests.shop import make_shop

    return make_shop(tmp_path_factory.mktemp("live_shop"))


@pytest.fixture
def programs():
    """Programs that have been compiled since."""
    heard = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            heard.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x * 17)(jnp.ones(3)).block_until_ready()
    assert heard, "it hears of what is compiled"
    heard.clear()
    yield heard
    jax.monitoring.unregister_event_duration_listener(listen)

import jax
import jax.numpy as jnp
import pytest

from tests.live.shop import make_shop


@pytest.fixture(scope="session")
def live_shop(tmp_path_factory):
    """An index of a fresh model with a decoder, and a calibration."""
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

"""A server of the tiny shop, for the tests of a module."""

import copy
import threading

import pytest

from rice_jax.recognition.engine import Engine
from tests.serving.serving import BATCH_SIZES, asking, make_named_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_named_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def engine(shop):
    return Engine(shop.directory, batch_sizes=BATCH_SIZES)


@pytest.fixture(scope="module")
def client(engine):
    with asking(engine) as client:
        yield client


@pytest.fixture
def held(engine):
    """An engine that encodes only after `held.go` is set, and records the sizes of its batches."""
    held, held.sizes, held.go = copy.copy(engine), [], threading.Event()

    def encode(pictures):
        held.sizes.append(len(pictures))
        assert held.go.wait(20)
        return engine.encode(pictures)

    held.encode = encode
    yield held
    held.go.set()

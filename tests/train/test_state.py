import dataclasses
import functools
import logging

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rice_jax.config import MeshConfig
from rice_jax.models.create import create_params
from rice_jax.models.rice import Rice
from rice_jax.models.start import start_from
from rice_jax.models.weights import CheckpointError, save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.train import checkpoint
from rice_jax.train.optimizer import create_optimizer
from rice_jax.train.state import create_state
from tests.settings import model_of, small_config

CONFIG = small_config(model__layers=6)
TWO_PAIRS = small_config(model__layers=6, model__pmd__num_pairs=2)
ONLY_ICL = small_config(model__layers=6, loss__pmd_weight=0.0)


@functools.cache
def fresh(config, seed=0):
    return create_params(model_of(config), create_mesh(MeshConfig(fsdp=4)), seed)


def converted(directory, seed=1):
    """An encoder as `rice_jax.convert` writes it, other than the fresh one; returns its blocks."""
    encoder = jax.tree.map(np.asarray, fresh(ONLY_ICL, seed)["encoder"])
    save_weights(directory, {"encoder": encoder}, {"model": dataclasses.asdict(ONLY_ICL.model)})
    return encoder["blocks"]


def assert_decoder_starts_from(blocks, params, layers):
    """`layers` of the encoder, in the order in which the decoder applies them: self, cross, self, cross …"""
    places = [(name, pair) for pair in range(len(layers) // 2) for name in ("self_blocks", "cross_blocks")]
    for (name, pair), layer in zip(places, layers, strict=True):
        decoder = flatten_dict(params["pmd"][name], sep="/")
        assert len(decoder) == 12
        for path, value in flatten_dict(blocks, sep="/").items():
            np.testing.assert_array_equal(decoder[path][pair], value[layer], err_msg=f"{name} {pair} {path}")


@pytest.mark.parametrize(("config", "layers"), [(CONFIG, [4, 5]), (TWO_PAIRS, [2, 3, 4, 5])])
def test_decoder_starts_from_the_last_blocks_of_its_encoder(config, layers, tmp_path):
    """As recorded from the reference: decoder layer j is the encoder's layer layers - 2n + j; even self, odd cross."""
    params = fresh(config)
    assert_decoder_starts_from(params["encoder"]["blocks"], params, layers)
    blocks = converted(tmp_path)
    assert not np.array_equal(blocks["qkv"]["kernel"], params["encoder"]["blocks"]["qkv"]["kernel"])
    started = start_from(tmp_path, params, model_of(config))
    assert_decoder_starts_from(blocks, started, layers)
    for name in ("pool", "ln_pool", "match_vector"):
        jax.tree.map(np.testing.assert_array_equal, started["pmd"][name], params["pmd"][name])
    jax.tree.map(np.testing.assert_array_equal, started["pfr"], params["pfr"])
    assert jax.tree.map(lambda x: x.sharding, started) == jax.tree.map(lambda x: x.sharding, params)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's workdir whose decoder no longer equals the encoder's blocks, and its parameters."""
    workdir = tmp_path_factory.mktemp("run")
    params = jax.tree.map(lambda x: x + 0.5, fresh(CONFIG))
    state = create_state(
        params, create_optimizer(CONFIG.optimizer, 10, Rice.PRETRAINED), create_mesh(MeshConfig(fsdp=4))
    )
    with checkpoint.open_checkpoints(workdir, keep=1) as checkpoints:
        checkpoint.save(checkpoints, 3, state.params, state.optimizer, CONFIG.to_dict(), {})
    return workdir, params


def test_a_trained_decoder_is_taken_as_it_is(run):
    workdir, params = run
    jax.tree.map(np.testing.assert_array_equal, start_from(workdir, fresh(CONFIG), model_of(CONFIG)), params)


def test_a_trained_decoder_is_left_out_where_there_is_none(run, caplog):
    workdir, params = run
    with caplog.at_level(logging.INFO, logger="rice_jax"):
        started = start_from(workdir, fresh(ONLY_ICL), model_of(ONLY_ICL))
    jax.tree.map(np.testing.assert_array_equal, started, {name: params[name] for name in ("encoder", "logit_scale")})
    for part in ("pmd", "pfr"):
        assert f"{workdir}: has a part {part}, which this model does not have; it is not loaded" in caplog.text


def test_other_numbers_of_heads_and_pairs_are_refused(run):
    workdir, _ = run
    eight = small_config(model__layers=6, model__pmd__num_heads=8)
    with pytest.raises(CheckpointError, match=r"found 2 heads, expected 8 \(config.model.pmd.num_heads\)"):
        start_from(workdir, fresh(eight), model_of(eight))
    four = small_config(model__layers=6, model__heads=4)
    with pytest.raises(CheckpointError, match=r"found 2 heads, expected 4 \(config.model.heads\)"):
        start_from(workdir, fresh(CONFIG), model_of(four))
    with pytest.raises(CheckpointError, match=r"pmd/cross_blocks/down/bias: found \(1, 32\), expected \(2, 32\)"):
        start_from(workdir, fresh(TWO_PAIRS), model_of(TWO_PAIRS))

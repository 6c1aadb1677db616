"""The decoder's layers against the reference's, on nearly constant tokens, where a layer norm's epsilon decides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rice_jax.config import PmdConfig, VitConfig
from rice_jax.convert.reference import from_reference
from rice_jax.models.layers import unstack
from rice_jax.models.pmd import Pmd
from scripts.check_parity import decode
from tests.golden import oracle
from tests.golden.cases import HERE, assert_close


@functools.cache
def recorded():
    """The recording, and a decoder with its weights."""
    arrays = dict(np.load(HERE / "units.npz"))
    # Of an encoder that is not used here, but without which the names are not the reference's.
    config = dict(width=32, layers=1, patch=4, image=8, embed=8, pmd_layers=1, pmd_heads=4)
    state = {name: np.zeros(shape, np.float32) for name, shape in oracle.shapes(config).items()}
    state |= {f"{oracle.DECODER}{key[7:]}": x for key, x in arrays.items() if key.startswith("params/")}
    params, sizes = from_reference(state, encoder_heads=1)
    pmd = PmdConfig(**sizes["pmd"], attention_dropout=0.0)
    encoder = VitConfig(**{name: size for name, size in sizes.items() if name != "pmd"}, dtype="float32")
    graphdef = nnx.split(nnx.eval_shape(lambda: Pmd(encoder, pmd, rngs=nnx.Rngs(0))))[0]
    arrays, params = jax.tree.map(jnp.asarray, (arrays, params["pmd"]))
    return arrays, nnx.merge(graphdef, params)


def test_self_block():
    arrays, pmd = recorded()
    block = unstack(pmd.self_blocks, 0)
    assert_close(block.ln_1(arrays["in/query"]), arrays["out/ln_self"])
    assert_close(block(arrays["in/query"]), arrays["out/self_layer"])


def test_cross_block_also_where_every_key_is_masked():
    arrays, pmd = recorded()
    block = unstack(pmd.cross_blocks, 0)
    token_mask = arrays["in/mask"].astype(bool)
    assert not token_mask.any(axis=1).all()
    x, attention = block(arrays["in/query"], *block.keys_values(arrays["in/key_value"]), token_mask)
    assert_close(block.ln_1(arrays["in/query"]), arrays["out/ln_cross"])
    assert_close(x, arrays["out/cross_layer"])
    head_dim = arrays["in/query"].shape[-1] // pmd.config.num_heads
    assert_close(attention * head_dim**0.5, arrays["out/cross_layer_attn"])


def test_pool():
    arrays, pmd = recorded()
    assert_close(pmd.pooled(arrays["in/query"][:, 0]), arrays["out/pooler"])


def test_whole_decoder():
    arrays, pmd = recorded()
    hidden, self_attention = decode(pmd, arrays["in/query"], arrays["in/key_value"], arrays["in/mask"].astype(bool))
    assert_close(self_attention[:, 0], arrays["out/self_layer_attn_mean"])
    assert_close(hidden, arrays["out/model_last_hidden"])
    assert_close(pmd.pooled(hidden[:, 0]), arrays["out/model_pooled"])

"""The decoder as it stands, and its layers beside recorded ones; `check_parity.py` is the command."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rice_jax.config import PmdConfig, VitConfig
from rice_jax.convert.reference import from_reference
from rice_jax.models.layers import unstack
from rice_jax.models.pmd import Pmd
from scripts.parity import Case, Line, of_maximum

# Recorded, but not part of rice_jax.
MASK_AS_GIVEN = {"out/attn_mask_4d": "the layers take the mask as it is"}


def decode(pmd: Pmd, image_tokens, video_tokens, token_mask) -> tuple[jax.Array, jax.Array]:
    """Runs the decoder without its optimizations.

    Returns:
        All tokens' last hidden state [B, L, D], and the self attention's mean over heads [B, pairs, L, L].
    """
    x, maps = image_tokens, []
    video_tokens = video_tokens.reshape(*token_mask.shape, -1)
    for pair in range(pmd.config.num_pairs):
        block, cross_block = unstack(pmd.self_blocks, pair), unstack(pmd.cross_blocks, pair)
        queries, keys = (block.split_heads(block.project(block.ln_1(x), part)) for part in (0, 1))
        scores = jnp.einsum("blhc,bmhc->bhlm", queries, keys) * keys.shape[-1] ** -0.5
        maps.append(jax.nn.softmax(scores).mean(axis=1))
        x, _ = cross_block(block(x), *cross_block.keys_values(video_tokens), token_mask)
    return x, jnp.stack(maps, axis=1)


def compare_layers(case: Case) -> Iterator[Line]:
    """Compares the decoder's layers, on tokens so alike that a layer norm's epsilon decides."""
    for name, found in layers(case).items():
        yield Line(f"out/{name}", (of_maximum(found, case.recorded[f"out/{name}"]),))


def layers(case: Case) -> dict[str, jax.Array]:
    """What the decoder's layers compute, by their recorded names.

    The recorded attention is the softmax divided by its scale.
    """
    pmd = _decoder(case)
    query, key_value = (jnp.asarray(case.recorded[f"in/{name}"]) for name in ("query", "key_value"))
    mask = jnp.asarray(case.recorded["in/mask"], bool)
    block, cross_block = unstack(pmd.self_blocks, 0), unstack(pmd.cross_blocks, 0)
    crossed, attention = cross_block(query, *cross_block.keys_values(key_value), mask)
    hidden, self_attention = decode(pmd, query, key_value, mask)
    return {
        "ln_self": block.ln_1(query),
        "self_layer": block(query),
        "ln_cross": cross_block.ln_1(query),
        "cross_layer": crossed,
        "cross_layer_attn": attention * (query.shape[-1] // pmd.config.num_heads) ** 0.5,
        "pooler": pmd.pooled(query[:, 0]),
        "self_layer_attn_mean": self_attention[:, 0],
        "model_last_hidden": hidden,
        "model_pooled": pmd.pooled(hidden[:, 0]),
    }


def _decoder(case: Case) -> Pmd:
    """A decoder with the recorded weights."""
    sizes = case.facts["config"]
    state = _rest(sizes["hidden"], sizes["heads"] * sizes["pmd_layers"])
    state |= {f"transformer.transformer.{name}": value for name, value in case.under("params/").items()}
    params, model = from_reference(state, encoder_heads=1, pmd_heads=sizes["heads"])
    pmd = PmdConfig(**model.pop("pmd"), attention_dropout=0.0)
    encoder = VitConfig(**model, dtype="float32")
    graphdef = nnx.split(nnx.eval_shape(lambda: Pmd(encoder, pmd, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params["pmd"]))


def _rest(width: int, maps: int) -> dict[str, np.ndarray]:
    """Zeros for what the reference has beside the decoder, without which a state dict is not complete."""
    encoder, heads = "image_encoder.model.", "transformer.heads."
    block = f"{encoder}transformer.resblocks.0."
    norms = [f"{encoder}ln_pre", f"{encoder}ln_post", f"{block}ln_1", f"{block}ln_2"]
    shapes = {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    for name, size in {
        "attn.in_proj_": (3 * width, width),
        "attn.out_proj.": (width, width),
        "mlp.c_fc.": (4 * width, width),
        "mlp.c_proj.": (width, 4 * width),
    }.items():
        shapes |= {f"{block}{name}weight": size, f"{block}{name}bias": size[:1]}
    shapes |= {
        f"{encoder}class_embedding": (width,),
        f"{encoder}positional_embedding": (2, width),
        f"{encoder}conv1.weight": (width, 3, 1, 1),
        f"{encoder}proj": (width, width),
        f"{heads}vim.weight": (1, width),
        f"{heads}rec.0.weight": (maps // 2, maps, 1, 1),
        f"{heads}rec.0.bias": (maps // 2,),
        f"{heads}rec.2.weight": (1, maps // 2, 1, 1),
        f"{heads}rec.2.bias": (1,),
        "transformer.logit_scale": (),
    }
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

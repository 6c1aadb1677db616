"""Text towers: token ids in, tokens and features out.

Source: Devlin et al. 2019, "BERT"; Yang et al. 2022, "Chinese CLIP", whose head projects the CLS token and leaves out
BERT's pooler; Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
Checked against transformers' models of these names.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from rice_jax.config import TextTowerConfig, VitConfig
from rice_jax.models.encoders.vit import REMAT_POLICIES
from rice_jax.models.layers import BlockLayers, layer_norm, linear, stack
from rice_jax.parallel.mesh import ONE_PLACE, Placement


class EncodedTexts(NamedTuple):
    """The output of a text tower; in the compute dtype."""

    features: Float[Array, "B E"]  # not normalized
    tokens: Float[Array, "B L D"]  # those of padding have no meaning


class Bert(nnx.Module):
    """BERT, with Chinese-CLIP's projection of the CLS token or with its own pooler."""

    def __init__(self, config: TextTowerConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Builds the tower with fresh weights.

        Args:
            config: sizes, head, compute dtype and rematerialization.
            placement: of the activations of every block, `[texts, L, D]`.
            rngs: key stream `params`.
        """
        self.config, self.placement = config, placement
        block, normal = block_config(config), nnx.initializers.normal(0.02)
        self.token_embedding = _embedding(config, config.vocab_size, rngs)
        self.position_embedding = nnx.Param(normal(rngs.params(), (config.positions, config.width)))
        self.type_embedding = nnx.Param(normal(rngs.params(), (config.token_types, config.width)))
        self.ln_embed = layer_norm(block, rngs)
        self.blocks = stack(lambda rngs: BertBlock(block, rngs), config.layers, rngs)
        if config.head == "pooler":
            self.pooler = linear(block, config.width, config.width, normal, rngs)
        else:
            self.projection = _projection(config, rngs)

    def __call__(self, ids: Int[Array, "B L"], token_mask: Bool[Array, "B L"]) -> EncodedTexts:
        """Encodes texts.

        Args:
            ids: of the tokens, [CLS] first and [SEP] last.
            token_mask: True = a token, False = padding.
        """
        tokens = self.apply_blocks(self.embed(ids), token_mask)
        return EncodedTexts(self.summarize(tokens), tokens)

    def embed(self, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """The input of the first block."""
        positions = self.position_embedding[: ids.shape[1]] + self.type_embedding[0]
        return self.ln_embed(self.token_embedding(ids) + positions.astype(self.config.dtype))

    def apply_blocks(self, x: Float[Array, "B L D"], token_mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        """The output of the last block."""
        return _apply(self.blocks, x, token_mask[:, None, None], self.config, self.placement)

    def summarize(self, tokens: Float[Array, "B L D"]) -> Float[Array, "B E"]:
        """The head's output for the CLS token."""
        if self.config.head == "pooler":
            return jnp.tanh(self.pooler(tokens[:, 0]))
        return self.projection(tokens[:, 0])


class ClipText(nnx.Module):
    """CLIP's text transformer, whose tokens attend to those before them."""

    def __init__(self, config: TextTowerConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Builds the tower with fresh weights; the arguments are those of `Bert`."""
        self.config, self.placement = config, placement
        block, normal = block_config(config), nnx.initializers.normal(0.01)
        self.token_embedding = _embedding(config, config.vocab_size, rngs)
        self.position_embedding = nnx.Param(normal(rngs.params(), (config.positions, config.width)))
        self.blocks = stack(lambda rngs: PreNormBlock(block, rngs), config.layers, rngs)
        self.ln_final = layer_norm(block, rngs)
        self.projection = _projection(config, rngs)

    def __call__(self, ids: Int[Array, "B L"], token_mask: Bool[Array, "B L"]) -> EncodedTexts:
        """Encodes texts.

        Args:
            ids: of the tokens, the last of which ends the text.
            token_mask: True = a token, False = padding, which is behind the tokens.
        """
        positions = self.position_embedding[: ids.shape[1]].astype(self.config.dtype)
        causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))[None, None]
        x = _apply(self.blocks, self.token_embedding(ids) + positions, causal, self.config, self.placement)
        tokens = self.ln_final(x)
        last = jnp.maximum(token_mask.sum(axis=1) - 1, 0)
        return EncodedTexts(self.projection(tokens[jnp.arange(len(ids)), last]), tokens)


TEXT_TOWERS: dict[str, type[Bert] | type[ClipText]] = {"bert": Bert, "clip": ClipText}


@functools.cache
def create_tower(config: TextTowerConfig, mesh: Mesh) -> nnx.GraphDef:
    """A tower's structure without weights: `nnx.merge(graphdef, params)` is the tower."""
    create = TEXT_TOWERS[config.kind]
    return nnx.split(nnx.eval_shape(lambda: create(config, placement=Placement(mesh), rngs=nnx.Rngs(0))))[0]


class BertBlock(BlockLayers):
    """Self attention and an MLP, each added to its input and normalized afterwards."""

    def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "#B 1 #L L"]) -> Float[Array, "B L D"]:
        x = self.ln_1(x + self.out(_attend(self, x, mask).reshape(x.shape)))
        return self.ln_2(x + self.down(self.activate(self.up(x))))


class PreNormBlock(BlockLayers):
    """The picture encoder's block, with a mask for each pair of tokens."""

    def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "#B 1 #L L"]) -> Float[Array, "B L D"]:
        return self.residuals(x, _attend(self, self.ln_1(x), mask))


def block_config(config: TextTowerConfig) -> VitConfig:
    """The settings of a tower's layers, as a picture encoder's layers take them."""
    return VitConfig(
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        mlp_ratio=config.mlp_width / config.width,
        activation=config.activation,
        epsilon=config.epsilon,
        dtype=config.dtype,
    )


def _attend(block: BlockLayers, x: Float[Array, "B L D"], mask: Bool[Array, "#B 1 #L L"]) -> Float[Array, "B L H C"]:
    queries, keys, values = (block.split_heads(part) for part in block.project_all(x))
    return jax.nn.dot_product_attention(queries, keys, values, mask=mask)


def _apply(
    blocks: nnx.Module,
    x: Float[Array, "B L D"],
    mask: Bool[Array, "#B 1 #L L"],
    config: TextTowerConfig,
    place: Placement,
) -> Float[Array, "B L D"]:
    def apply(block, x, mask):
        return place.constrain(block(place.constrain(x), mask))

    if config.remat != "none":
        apply = nnx.remat(apply, policy=REMAT_POLICIES[config.remat])
    scan = nnx.scan(apply, in_axes=(0, nnx.Carry, None), out_axes=nnx.Carry, unroll=config.unroll)
    return scan(blocks, x, mask)


def _embedding(config: TextTowerConfig, num: int, rngs: nnx.Rngs) -> nnx.Embed:
    init = nnx.initializers.normal(0.02)
    return nnx.Embed(num, config.width, dtype=config.dtype, embedding_init=init, rngs=rngs)


def _projection(config: TextTowerConfig, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(config.width**-0.5)
    return linear(block_config(config), config.width, config.embed_dim, init, rngs, use_bias=False)

"""Vision transformers: pictures in, tokens and features out; `VitConfig` says of which family.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), with the
defaults; Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (no CLS, attention pooling); Oquab et al.
2023, "DINOv2" (layer scale, SwiGLU); Darcet et al. 2023, "Vision Transformers Need Registers"; Simeoni et al. 2025,
"DINOv3" (rotary positions). Checked against transformers' models of these names.
Differs: the blocks are stacked and scanned, which compiles once for any depth and trains faster on CPU than a loop.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from rice_jax.config import VitConfig
from rice_jax.models.encoders.mobilenet import LAST, Mobilenet
from rice_jax.models.layers import (
    ACTIVATIONS,
    LINEAR,
    Block,
    Linear,
    Rotary,
    layer_norm,
    linear,
    split3,
    stack,
    with_cls,
)
from rice_jax.parallel.mesh import ONE_PLACE, Placement

# What is kept for the backward pass, by `VitConfig.remat`.
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_only_these_names(LINEAR),
    "full": jax.checkpoint_policies.nothing_saveable,
}
ROTARY_BASE = 100.0  # DINOv3's; the ratio of the longest to the shortest wave


class VitLayers(nnx.Module):
    """A vision transformer's layers, and what comes before, in and after its blocks."""

    def __init__(
        self,
        config: VitConfig,
        *,
        placement: Placement = ONE_PLACE,
        rngs: nnx.Rngs,
        create_block: Callable[[VitConfig, nnx.Rngs], nnx.Module] = Block,
    ):
        """Builds the layers with fresh weights.

        Args:
            config: sizes, parts, compute dtype and rematerialization.
            placement: of the activations of every block, `[pictures, L, D]`.
            rngs: key stream `params`.
            create_block: builds a function of tokens, a mask and rotary positions.
        """
        self.config = config
        self.placement = placement
        width = config.width
        inputs = LAST if config.stem == "mobilenet" else 3 * config.patch_size**2
        self.patch_embedding = Linear(inputs, width, use_bias=config.patch_bias, dtype=config.dtype, rngs=rngs)
        if config.stem == "mobilenet":
            self.stem = Mobilenet(config, rngs)
        # 0.02 lets the content of a patch outweigh its position; CLIP's own width**-0.5 is for a long training.
        normal = nnx.initializers.normal(0.02)
        if config.class_token:
            self.class_embedding = nnx.Param(normal(rngs.params(), (width,)))
        if config.positions == "learned":
            num_positions = config.num_patches + config.class_token
            self.position_embedding = nnx.Param(normal(rngs.params(), (num_positions, width)))
        if config.registers:
            self.registers = nnx.Param(normal(rngs.params(), (config.registers, width)))
        if config.ln_pre:
            self.ln_pre = layer_norm(config, rngs)
        self.blocks = stack(lambda rngs: create_block(config, rngs), config.layers, rngs)
        self.ln_post = layer_norm(config, rngs)
        if config.pooling == "attention":
            self.pool = AttentionPool(config, rngs)
        if config.projection:
            init = nnx.initializers.normal(width**-0.5)
            self.projection = linear(config, width, config.embed_dim, init, rngs, use_bias=False)

    @staticmethod
    def fit(params: PyTree, config: VitConfig) -> PyTree:
        """Interpolates learned positions to the image size."""
        if "position_embedding" not in params:
            return params
        num_extra = int(config.class_token)
        positions = jnp.asarray(params["position_embedding"])
        positions = resize_positions(positions, config.num_patches + num_extra, num_extra)
        return params | {"position_embedding": np.asarray(positions)}

    @property
    def num_extra(self) -> int:
        """Tokens before the patches in the blocks: CLS and registers."""
        return self.config.class_token + self.config.registers

    def embed(self, pictures: Float[Array, "B S S 3"]) -> Float[Array, "B K D"]:
        """The input of the first block: CLS, registers, patches."""
        config, x = self.config, self.embed_patches(pictures)

        def repeat(tokens) -> Float[Array, "B R D"]:
            return jnp.broadcast_to(jnp.asarray(tokens, x.dtype), (x.shape[0], *tokens.shape))

        if config.class_token:
            x = jnp.concatenate([repeat(self.class_embedding[...][None]), x], axis=1)
        if config.positions == "learned":
            x = x + self.position_embedding[...].astype(x.dtype)
        if config.registers:
            num_cls = int(config.class_token)
            x = jnp.concatenate([x[:, :num_cls], repeat(self.registers[...]), x[:, num_cls:]], axis=1)
        return self.ln_pre(x) if config.ln_pre else x

    def embed_patches(self, pictures: Float[Array, "B S S 3"]) -> Float[Array, "B N D"]:
        """The patches in reading order, without positions."""
        if self.config.stem == "mobilenet":
            return self.patch_embedding(self.stem(pictures))
        return self.patch_embedding(patchify(pictures.astype(self.config.dtype), self.config.patch_size))

    def summarize(
        self, x: Float[Array, "B K D"], patch_mask: Bool[Array, "B N"] | None = None
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B D"]]:
        """The tokens and the pooled token, before its projection, from the last block's output."""
        patches = x[:, self.num_extra :]
        if self.config.pooling == "cls":
            tokens = jnp.concatenate([x[:, :1], patches], axis=1) if self.config.registers else x
            return tokens, self.ln_post(x[:, 0])
        normed = self.ln_post(patches)
        if self.config.pooling == "attention":
            pooled = self.pool(normed, patch_mask)
        else:
            mask = jnp.ones(normed.shape[:2], bool) if patch_mask is None else patch_mask
            kept = mask | ~mask.any(axis=1, keepdims=True)  # all of a picture of which none is
            pooled = jnp.mean(normed, axis=1, where=kept[..., None])
        return jnp.concatenate([pooled[:, None], patches], axis=1), pooled

    def apply_blocks(self, x: Float[Array, "B L D"], mask: Bool[Array, "B *M"] | None = None) -> Float[Array, "B L D"]:
        """The output of the last block; `mask` is passed to every block."""
        constrain = self.placement.constrain
        rotary = rotary_positions(self.config, self.num_extra) if self.config.positions == "rotary" else None

        def apply(block, x, mask):
            return constrain(block(constrain(x), mask, rotary))

        if self.config.remat != "none":
            apply = nnx.remat(apply, policy=REMAT_POLICIES[self.config.remat])
        scan = nnx.scan(apply, in_axes=(0, nnx.Carry, None), out_axes=nnx.Carry, unroll=self.config.unroll)
        return scan(self.blocks, x, mask)


class Vit(VitLayers):
    """Encoder shared by shop images and video frames."""

    def __call__(
        self, pictures: Float[Array, "B S S 3"], patch_mask: Bool[Array, "B N"] | None = None
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B E"]]:
        """Encodes pictures.

        Args:
            pictures: normalized as `config.pixels` says, square, side `config.image_size`.
            patch_mask: True = a patch to attend to, in reading order; None = all. The tokens of the others have no
                meaning.

        Returns:
            tokens: the last block's output without `ln_post` and projection, CLS first, in the compute dtype; if
                `config.pooling` is not "cls", the pooled patches are in the place of CLS. Registers are left out.
            feature: `ln_post(CLS) @ projection` or the projection of the pooled patches, not normalized, in the
                compute dtype.

        Source: docs/reference.md, section 1.
        """
        x = self.apply_blocks(self.embed(pictures), None if patch_mask is None else self.token_mask(patch_mask))
        tokens, pooled = self.summarize(x, patch_mask)
        return tokens, self.projection(pooled) if self.config.projection else pooled

    def token_mask(self, patch_mask: Bool[Array, "B N"]) -> Bool[Array, "B K"]:
        """Which tokens the blocks attend to: CLS, registers and kept patches."""
        for _ in range(self.num_extra):
            patch_mask = with_cls(patch_mask)
        return patch_mask


def patchify(pictures: Float[Array, "B S S 3"], patch_size: int) -> Float[Array, "B N P"]:
    """Cuts pictures into patches in reading order; P = patch_size² · 3, (row, column, channel) within a patch."""
    batch, size, _, _ = pictures.shape
    grid = size // patch_size
    patches = pictures.reshape(batch, grid, patch_size, grid, patch_size, 3).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, grid * grid, patch_size * patch_size * 3)


def resize_positions(positions: Float[Array, "L D"], num_tokens: int, num_extra: int = 1) -> Float[Array, "M D"]:
    """Interpolates learned positions bicubically to another square grid, for another image size.

    Args:
        positions: of `num_extra` tokens, which have no place and stay, and of patches.
        num_tokens: M.
        num_extra: 1 = CLS, 0 = only patches.
    """
    old_grid, new_grid = (round((n - num_extra) ** 0.5) for n in (positions.shape[0], num_tokens))
    if old_grid == new_grid:
        return positions
    extra, patches = positions[:num_extra], positions[num_extra:].reshape(old_grid, old_grid, -1)
    patches = jax.image.resize(patches, (new_grid, new_grid, patches.shape[-1]), "bicubic")
    return jnp.concatenate([extra, patches.reshape(new_grid * new_grid, -1)])


def rotary_positions(config: VitConfig, num_extra: int) -> Rotary:
    """Angles of patches grow with their row and column; tokens before the patches are not rotated.

    Source: Simeoni et al. 2025, "DINOv3"; the coordinates of patches' centers are -1 to 1, so that they fit any size.
    """
    grid, quarter = config.image_size // config.patch_size, config.width // config.heads // 4
    centers = (2 * np.arange(grid) + 1) / grid - 1
    places = np.stack(np.meshgrid(centers, centers, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = (2 * np.pi * places * ROTARY_BASE ** -(np.arange(quarter) / quarter)).reshape(-1, 2 * quarter)
    angles = np.concatenate([np.zeros((num_extra, 2 * quarter)), angles]).astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


class AttentionPool(nnx.Module):
    """A learned query attends to the patches; an MLP follows.

    Source: Zhai et al. 2022, "Scaling Vision Transformers", section 3 (MAP head).
    """

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        """Fresh weights of `config.width` and `config.heads`."""
        width, normal = config.width, nnx.initializers.normal(config.width**-0.5)
        self.heads, self.activation = config.heads, config.activation
        self.probe = nnx.Param(normal(rngs.params(), (width,)))
        self.qkv = linear(config, width, 3 * width, normal, rngs)
        self.out = linear(config, width, width, normal, rngs)
        self.ln = layer_norm(config, rngs)
        self.up = linear(config, width, config.mlp_width, normal, rngs)
        self.down = linear(config, config.mlp_width, width, normal, rngs)

    def __call__(
        self, patches: Float[Array, "B N D"], patch_mask: Bool[Array, "B N"] | None = None
    ) -> Float[Array, "B D"]:
        """Pools patches where `patch_mask` is True; None = all."""
        probe = jnp.broadcast_to(self.probe[...].astype(patches.dtype), (len(patches), 1, patches.shape[2]))
        projected = split3(self.qkv(jnp.concatenate([probe, patches], axis=1)))
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1) for x in projected)
        mask = None if patch_mask is None else patch_mask[:, None, None]
        attended = jax.nn.dot_product_attention(q[:, :1], k[:, 1:], v[:, 1:], mask=mask)
        x = self.out(attended.reshape(len(patches), -1))
        return x + self.down(ACTIVATIONS[self.activation](self.up(self.ln(x))))

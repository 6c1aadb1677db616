"""CLIP's vision transformer: pictures in, tokens and features out.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; its published
code's `VisionTransformer`.
Differs: the blocks are stacked and scanned, which compiles once for any depth and trains faster on CPU than a loop.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from rice_jax.config import VitConfig
from rice_jax.models.layers import Block, layer_norm, stack, with_cls
from rice_jax.parallel.mesh import ONE_PLACE, Placement

# What is kept for the backward pass, by `VitConfig.remat`. The products within attention have batch dimensions.
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Vit(nnx.Module):
    """Encoder shared by shop images and video frames."""

    def __init__(self, config: VitConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Builds the encoder with fresh weights.

        Args:
            config: sizes, compute dtype and rematerialization.
            placement: of the activations of every block, `[pictures, L, D]`.
            rngs: key stream `params`.
        """
        self.config = config
        self.placement = placement
        width = config.width
        self.patch_embedding = nnx.Linear(
            3 * config.patch_size**2, width, use_bias=False, dtype=config.dtype, rngs=rngs
        )
        # 0.02 lets the content of a patch outweigh its position; CLIP's own width**-0.5 is for a long training.
        normal = nnx.initializers.normal(0.02)
        self.class_embedding = nnx.Param(normal(rngs.params(), (width,)))
        self.position_embedding = nnx.Param(normal(rngs.params(), (config.num_tokens, width)))
        self.ln_pre = layer_norm(config, rngs)
        self.blocks = stack(lambda rngs: Block(config, rngs), config.layers, rngs)
        self.ln_post = layer_norm(config, rngs)
        self.projection = nnx.Linear(
            width,
            config.embed_dim,
            use_bias=False,
            dtype=config.dtype,
            kernel_init=nnx.initializers.normal(width**-0.5),
            rngs=rngs,
        )

    def __call__(
        self, pictures: Float[Array, "B S S 3"], patch_mask: Bool[Array, "B N"] | None = None
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B E"]]:
        """Encodes pictures.

        Args:
            pictures: normalized by CLIP's mean and standard deviation, square, side `config.image_size`.
            patch_mask: True = a patch to attend to, in reading order; None = all. The tokens of the others have no
                meaning.

        Returns:
            tokens: the last block's output without `ln_post` and projection, CLS first, in the compute dtype.
            feature: `ln_post(CLS) @ projection`, not normalized, in the compute dtype.

        Source: docs/reference.md, section 1.
        """
        patches = patchify(pictures.astype(self.config.dtype), self.config.patch_size)
        x = self.patch_embedding(patches)  # [B, N, D]
        cls = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([cls, x], axis=1) + self.position_embedding[...].astype(x.dtype)
        tokens = self.apply_blocks(self.ln_pre(x), None if patch_mask is None else with_cls(patch_mask))
        return tokens, self.projection(self.ln_post(tokens[:, 0]))

    @staticmethod
    def fit(params: PyTree, config: VitConfig) -> PyTree:
        """Interpolates the positions to the image size."""
        positions = resize_positions(jnp.asarray(params["position_embedding"]), config.num_tokens)
        return params | {"position_embedding": np.asarray(positions)}

    def apply_blocks(
        self, x: Float[Array, "B L D"], token_mask: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        constrain = self.placement.constrain

        def apply(block, x, token_mask):
            return constrain(block(constrain(x), token_mask))

        if self.config.remat != "none":
            apply = nnx.remat(apply, policy=REMAT_POLICIES[self.config.remat])
        scan = nnx.scan(apply, in_axes=(0, nnx.Carry, None), out_axes=nnx.Carry, unroll=self.config.unroll)
        return scan(self.blocks, x, token_mask)


def patchify(pictures: Float[Array, "B S S 3"], patch_size: int) -> Float[Array, "B N P"]:
    """Cuts pictures into patches in reading order; P = patch_size² · 3, (row, column, channel) within a patch."""
    batch, size, _, _ = pictures.shape
    grid = size // patch_size
    patches = pictures.reshape(batch, grid, patch_size, grid, patch_size, 3).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, grid * grid, patch_size * patch_size * 3)


def resize_positions(positions: Float[Array, "L D"], num_tokens: int) -> Float[Array, "M D"]:
    """Interpolates learned positions (CLS kept) bicubically to another square grid, for another image size."""
    old_grid, new_grid = (round((n - 1) ** 0.5) for n in (positions.shape[0], num_tokens))
    if old_grid == new_grid:
        return positions
    cls, patches = positions[:1], positions[1:].reshape(old_grid, old_grid, -1)
    patches = jax.image.resize(patches, (new_grid, new_grid, patches.shape[-1]), "bicubic")
    return jnp.concatenate([cls, patches.reshape(new_grid * new_grid, -1)])

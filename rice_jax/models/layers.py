"""Layers that the encoder and the decoder share: CLIP's transformer block and its parts."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rice_jax.config import VitConfig

LAYERNORM_EPSILON = 1e-5


class BlockLayers(nnx.Module):
    """The layers of a block, and what follows its attention."""

    def __init__(
        self, config: VitConfig, rngs: nnx.Rngs, *, heads: int | None = None, epsilon: float = LAYERNORM_EPSILON
    ):
        """Builds the layers with fresh weights.

        Args:
            config: sizes and compute dtype.
            rngs: key stream `params`.
            heads: None = `config.heads`.
            epsilon: of both layer norms.
        """
        width = config.width
        self.heads = heads or config.heads
        residual = nnx.initializers.normal(width**-0.5 * (2 * config.layers) ** -0.5)
        self.ln_1 = layer_norm(config, rngs, epsilon)
        self.qkv = linear(config, width, 3 * width, nnx.initializers.normal(width**-0.5), rngs)
        self.out = linear(config, width, width, residual, rngs)
        self.ln_2 = layer_norm(config, rngs, epsilon)
        self.up = linear(config, width, 4 * width, nnx.initializers.normal((2 * width) ** -0.5), rngs)
        self.down = linear(config, 4 * width, width, residual, rngs)

    def residuals(self, x: Float[Array, "B L D"], attended: Float[Array, "B L H C"]) -> Float[Array, "B L D"]:
        """What follows attention: its output projection and the MLP, each added to its input."""
        x = x + self.out(attended.reshape(x.shape))
        return x + self.down(quick_gelu(self.up(self.ln_2(x))))

    def split_heads(self, x: Float[Array, "B L D"]) -> Float[Array, "B L H C"]:
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)


class Block(BlockLayers):
    """Pre-norm self attention and a QuickGELU MLP, both residual."""

    def __call__(self, x: Float[Array, "B L D"], token_mask: Bool[Array, "B L"] | None = None) -> Float[Array, "B L D"]:
        """Updates all tokens.

        Args:
            x: the tokens.
            token_mask: True = a token to attend to; None = all.
        """
        q, k, v = (self.split_heads(part) for part in split3(self.qkv(self.ln_1(x))))
        mask = None if token_mask is None else token_mask[:, None, None]
        return self.residuals(x, jax.nn.dot_product_attention(q, k, v, mask=mask))


def with_cls(patch_mask: Bool[Array, "*B N"]) -> Bool[Array, "*B L"]:
    """The mask of a picture's tokens, given that of its patches: the CLS token is always kept."""
    return jnp.concatenate([jnp.ones_like(patch_mask[..., :1]), patch_mask], axis=-1)


def video_token_mask(
    frame_mask: Bool[Array, "B T"], patch_mask: Bool[Array, "B T N"] | None, num_tokens: int
) -> Bool[Array, "B M"]:
    """Which of a video's tokens to attend to: the CLS tokens and kept patches (None = all) of real frames."""
    mask = jnp.repeat(frame_mask, num_tokens, axis=1)
    return mask if patch_mask is None else mask & with_cls(patch_mask).reshape(mask.shape)


def split3(x: Float[Array, "*B D3"]) -> list[Array]:
    """Queries, keys and values of a fused projection."""
    return [x[..., i * x.shape[-1] // 3 : (i + 1) * x.shape[-1] // 3] for i in range(3)]


def quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def layer_norm(config: VitConfig, rngs: nnx.Rngs, epsilon: float = LAYERNORM_EPSILON) -> nnx.LayerNorm:
    # The fast variance, E[x²] - E[x]², rounds to 0 for nearly constant tokens, which shows with a tiny epsilon.
    return nnx.LayerNorm(config.width, epsilon=epsilon, dtype=config.dtype, use_fast_variance=False, rngs=rngs)


def linear(config: VitConfig, inputs: int, outputs: int, kernel_init, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, dtype=config.dtype, kernel_init=kernel_init, rngs=rngs)


def kernel_and_bias(linear: nnx.Linear) -> tuple[Float[Array, "I O"], Float[Array, " O"]]:
    """The parameters of a layer that has both."""
    assert linear.kernel is not None and linear.bias is not None
    return linear.kernel[...], linear.bias[...]


def stack(create_one, num: int, rngs: nnx.Rngs):
    """One module whose every parameter carries a leading axis of `num`, as `nnx.scan` walks it.

    Args:
        create_one: function of `rngs` that creates one of them.
        num: how many.
        rngs: each is created from a split of it.
    """
    return nnx.split_rngs(splits=num)(nnx.vmap(create_one, in_axes=0, out_axes=0))(rngs)


def unstack(stacked, index: int):
    """One module out of those that `stack` made."""
    graphdef, state = nnx.split(stacked)
    return nnx.merge(graphdef, jax.tree.map(lambda parameter: parameter[index], state))

"""Layers that the encoder and the decoder share: the transformer block, as `VitConfig` describes it, and its parts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from rice_jax.config import VitConfig
from rice_jax.ops.matmul import matmul

# Large enough to vanish in a softmax, finite so that no gradient becomes NaN.
MASKED_SCORE = -1e9
# The name by which rematerialization finds the products of linear layers.
LINEAR = "linear"
# Cosines and sines by which queries and keys are rotated, of every token and half of a head's channels; float32.
Rotary = tuple[Float[Array, "L C2"], Float[Array, "L C2"]]


class Linear(nnx.Linear):
    """A linear layer with float32 parameters that computes in `dtype` (`ops.matmul`)."""

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:  # type: ignore[override]
        """Multiplies by the weights, and adds the bias if there is one."""
        assert self.kernel is not None
        y = checkpoint_name(matmul(x.astype(self.dtype), self.kernel[...]), LINEAR)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class AttentionLayers(nnx.Module):
    """The layers of an attention: a norm, the projections of queries, keys and values, and that of its output."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs, *, heads: int | None = None, epsilon: float | None = None):
        """Builds the layers with fresh weights.

        Args:
            config: sizes, parts and compute dtype.
            rngs: key stream `params`.
            heads: None = `config.heads`.
            epsilon: of the layer norm; None = `config.epsilon`.
        """
        width = config.width
        self.heads = heads or config.heads
        self.ln_1 = layer_norm(config, rngs, epsilon)
        init = nnx.initializers.normal(width**-0.5)
        self.qkv = linear(config, width, 3 * width, init, rngs, use_bias=config.key_bias)
        if not config.key_bias:
            self.query_bias, self.value_bias = (nnx.Param(jnp.zeros(width, jnp.float32)) for _ in range(2))
        self.out = linear(config, width, width, residual_init(config), rngs)

    def project(self, x: Float[Array, "B L D"], part: int) -> Float[Array, "B L D"]:
        """One third of the fused projection: 0 queries, 1 keys, 2 values."""
        assert self.qkv.kernel is not None
        bias = self._biases()[part]
        projected = matmul(x.astype(self.qkv.dtype), split3(self.qkv.kernel[...])[part])
        return projected if bias is None else projected + bias.astype(self.qkv.dtype)

    def project_all(self, x: Float[Array, "B L D"]) -> list[Array]:
        """Queries, keys and values, in a single product."""
        parts = split3(self.qkv(x))
        if self.qkv.bias is not None:
            return parts
        biases = self._biases()
        return [y if bias is None else y + bias.astype(y.dtype) for y, bias in zip(parts, biases, strict=True)]

    def _biases(self) -> list[Array | None]:
        if self.qkv.bias is not None:
            return list(split3(self.qkv.bias[...]))
        return [self.query_bias[...], None, self.value_bias[...]]

    def split_heads(self, x: Float[Array, "B L D"]) -> Float[Array, "B L H C"]:
        """Splits the channels over the heads; C = D / H."""
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)


class BlockLayers(AttentionLayers):
    """The layers of a block, and what follows its attention."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs, *, heads: int | None = None, epsilon: float | None = None):
        """Builds the layers with fresh weights; the arguments are those of `AttentionLayers`."""
        super().__init__(config, rngs, heads=heads, epsilon=epsilon)
        width, hidden = config.width, config.mlp_width
        self.activation, self.gated = config.activation, config.gated_mlp
        self.recomputes_activation = config.remat == "none"  # otherwise rematerialization does
        self.ln_2 = layer_norm(config, rngs, epsilon)
        init = nnx.initializers.normal((2 * width) ** -0.5)
        self.up = linear(config, width, hidden * (1 + self.gated), init, rngs)
        self.down = linear(config, hidden, width, residual_init(config), rngs)
        if config.layer_scale:
            self.scale_1, self.scale_2 = (nnx.Param(jnp.ones(width, jnp.float32)) for _ in range(2))

    def residuals(self, x: Float[Array, "B L D"], attended: Float[Array, "B L H C"]) -> Float[Array, "B L D"]:
        """What follows attention: its output projection and the MLP, each added to its input."""
        x = x + self._scaled(self.out(attended.reshape(x.shape)), "scale_1")
        hidden = self.up(self.ln_2(x))
        if self.gated:
            gate, hidden = jnp.split(hidden, 2, axis=-1)
            hidden = self.activate(gate) * hidden
        else:
            hidden = self.activate(hidden)
        return x + self._scaled(self.down(hidden), "scale_2")

    def activate(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """The MLP's activation function; for the backward pass, its input is kept and not each of its steps."""
        activation = ACTIVATIONS[self.activation]
        return jax.checkpoint(activation)(x) if self.recomputes_activation else activation(x)

    def _scaled(self, x: Float[Array, "B L D"], name: str) -> Float[Array, "B L D"]:
        return x * getattr(self, name)[...].astype(x.dtype) if hasattr(self, name) else x


class Block(BlockLayers):
    """Pre-norm self attention and an MLP, both residual."""

    def __call__(
        self, x: Float[Array, "B L D"], token_mask: Bool[Array, "B L"] | None = None, rotary: Rotary | None = None
    ) -> Float[Array, "B L D"]:
        """Updates all tokens.

        Args:
            x: the tokens.
            token_mask: True = a token to attend to; None = all.
            rotary: rotates queries and keys; None = not at all.
        """
        q, k, v = (self.split_heads(part) for part in self.project_all(self.ln_1(x)))
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        mask = None if token_mask is None else token_mask[:, None, None]
        return self.residuals(x, jax.nn.dot_product_attention(q, k, v, mask=mask))


def fresh_block(config: VitConfig, rngs: nnx.Rngs, epsilon: float | None = None) -> Block:
    """A block that changes nothing yet: the layers that end its two parts are zero.

    Args:
        config: sizes, parts and compute dtype.
        rngs: key stream `params`.
        epsilon: of the layer norms; None = `config.epsilon`.
    """
    block = Block(config, rngs, epsilon=epsilon)
    for last in (block.out, block.down):
        assert last.kernel is not None
        last.kernel[...] = jnp.zeros_like(last.kernel[...])
    return block


def rotate(x: Float[Array, "B L H C"], rotary: Rotary) -> Float[Array, "B L H C"]:
    """Rotates channel i of each head with channel i + C / 2."""
    cos, sin = (part[:, None] for part in rotary)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def with_cls(patch_mask: Bool[Array, "*B N"]) -> Bool[Array, "*B L"]:
    """The mask of a picture's tokens, given that of its patches: the first one, its summary, is always kept."""
    return jnp.concatenate([jnp.ones_like(patch_mask[..., :1]), patch_mask], axis=-1)


def video_token_mask(
    frame_mask: Bool[Array, "B T"], patch_mask: Bool[Array, "B T N"] | None, num_tokens: int
) -> Bool[Array, "B M"]:
    """Which of a video's tokens to attend to: the summaries and kept patches (None = all) of real frames."""
    mask = jnp.repeat(frame_mask, num_tokens, axis=1)
    return mask if patch_mask is None else mask & with_cls(patch_mask).reshape(mask.shape)


def split3(x: Float[Array, "*B D3"]) -> list[Array]:
    """Queries, keys and values of a fused projection."""
    return jnp.split(x, 3, axis=-1)


def quick_gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """GELU approximated by a sigmoid, as OpenAI's CLIP has it."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def layer_norm(config: VitConfig, rngs: nnx.Rngs, epsilon: float | None = None) -> nnx.LayerNorm:
    """A layer norm over `config.width` channels; its epsilon is that of the config if None."""
    # The fast variance, E[x²] - E[x]², rounds to 0 for nearly constant tokens, which shows with a tiny epsilon.
    return nnx.LayerNorm(
        config.width, epsilon=epsilon or config.epsilon, dtype=config.dtype, use_fast_variance=False, rngs=rngs
    )


def linear(
    config: VitConfig, inputs: int, outputs: int, kernel_init, rngs: nnx.Rngs, *, use_bias: bool = True
) -> Linear:
    """A fresh linear layer that computes in the config's dtype."""
    return Linear(inputs, outputs, use_bias=use_bias, dtype=config.dtype, kernel_init=kernel_init, rngs=rngs)


def residual_init(config: VitConfig):
    """Fresh weights of a layer whose output is added to its block's input."""
    return nnx.initializers.normal(config.width**-0.5 * (2 * config.layers) ** -0.5)


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

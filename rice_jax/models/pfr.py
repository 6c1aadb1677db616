"""PFR, patch feature reconstruction: rebuilds an image's tokens from a video's tokens and the decoder's attention.

Source: docs/reference.md, section 4.
Differs: padding frames get no weight and the initial weights are not all ones, unless the settings ask for both.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rice_jax.config import PfrConfig, PmdConfig
from rice_jax.models.layers import MASKED_SCORE, kernel_and_bias, video_token_mask

# Relative spread of the initial weights around the reference's ones, so that the hidden maps can become different.
SPREAD = 0.3


class Pfr(nnx.Module):
    """Two 1×1 convolutions that turn a pair's attention maps into one map of weights."""

    def __init__(self, width: int, pmd: PmdConfig, config: PfrConfig, *, rngs: nnx.Rngs):
        """Builds the head.

        Args:
            width: of the decoder's tokens.
            pmd: the decoder's settings, which tell the number of maps.
            config: the head's own.
            rngs: key stream `params`.
        """
        self.mask_padding = config.mask_padding
        self.head_dim = width // pmd.num_heads
        maps = pmd.num_pairs * pmd.num_heads
        start = nnx.initializers.ones if config.init == "ones" else _around_one
        self.conv_1 = nnx.Linear(maps, maps // 2, kernel_init=start, rngs=rngs)
        self.conv_2 = nnx.Linear(maps // 2, 1, kernel_init=start, rngs=rngs)

    def __call__(
        self,
        attention: Float[Array, "B C L M"],
        video_tokens: Float[Array, "B T L D"],
        frame_mask: Bool[Array, "B T"],
        patch_mask: Bool[Array, "B T N"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Rebuilds the image's tokens, float32.

        Args:
            attention: maps of every pair and head from image i to video i, probabilities.
            video_tokens: of the encoder; no gradient flows into them.
            frame_mask: True = a real frame; the tokens of others count as zeros.
            patch_mask: True = a patch that counts; the others are treated like those of padding frames. None = all.
        """
        token_mask = video_token_mask(frame_mask, patch_mask, video_tokens.shape[2])
        tokens = jax.lax.stop_gradient(video_tokens).reshape(*token_mask.shape, -1)
        tokens = jnp.where(token_mask[..., None], tokens, 0)
        weights = self.weights(self.scores(attention), token_mask)
        return jnp.einsum("blm,bmd->bld", weights.astype(tokens.dtype), tokens, preferred_element_type=jnp.float32)

    def scores(self, attention: Float[Array, "B C L M"]) -> Float[Array, "B L M"]:
        """One number for every token of the image and token of the video, 0 or more."""
        (kernel_1, bias_1), (kernel_2, bias_2) = kernel_and_bias(self.conv_1), kernel_and_bias(self.conv_2)
        hidden = jnp.einsum("bclm,ch->bhlm", attention * self.head_dim**0.5, kernel_1)
        hidden = jax.nn.relu(hidden + bias_1[:, None, None])
        return jax.nn.relu(jnp.einsum("bhlm,h->blm", hidden, kernel_2[:, 0]) + bias_2)

    def weights(self, scores: Float[Array, "B L M"], token_mask: Bool[Array, "B M"]) -> Float[Array, "B L M"]:
        """Their softmax over the video's tokens; masked tokens are left out if `mask_padding` is set."""
        if self.mask_padding:
            scores = jnp.where(token_mask[:, None], scores, MASKED_SCORE)
        return jax.nn.softmax(scores)


def _around_one(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    return 1 + SPREAD * jax.random.normal(key, shape, dtype)

"""PFR, patch feature reconstruction: rebuilds an image's tokens from a video's by where the decoder looked.

Source: RICE.md §4.
Differs: padding frames get no weight and the start is not all ones, unless the configuration mirrors the reference.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rice_jax.config import PfrConfig, PmdConfig
from rice_jax.models.layers import video_token_mask
from rice_jax.models.pmd import MASKED_SCORE

# Relative spread of the start around the reference's ones, so that the hidden maps can become different.
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
            patch_mask: True = a patch to look at; the others are treated as those of padding frames. None = all.
        """
        token_mask = video_token_mask(frame_mask, patch_mask, video_tokens.shape[2])
        tokens = jax.lax.stop_gradient(video_tokens).reshape(*token_mask.shape, -1)
        tokens = jnp.where(token_mask[..., None], tokens, 0)
        weights = self.weights(self.scores(attention), token_mask)
        return jnp.einsum("blm,bmd->bld", weights.astype(tokens.dtype), tokens, preferred_element_type=jnp.float32)

    def scores(self, attention: Float[Array, "B C L M"]) -> Float[Array, "B L M"]:
        """One number for every token of the image and token of the video, 0 or more."""
        hidden = jnp.einsum("bclm,ch->bhlm", attention * self.head_dim**0.5, self.conv_1.kernel[...])
        hidden = jax.nn.relu(hidden + self.conv_1.bias[...][:, None, None])
        return jax.nn.relu(jnp.einsum("bhlm,h->blm", hidden, self.conv_2.kernel[...][:, 0]) + self.conv_2.bias[...])

    def weights(self, scores: Float[Array, "B L M"], token_mask: Bool[Array, "B M"]) -> Float[Array, "B L M"]:
        """Their softmax over the video's tokens, the masked ones left out unless the reference is mirrored."""
        if self.mask_padding:
            scores = jnp.where(token_mask[:, None], scores, MASKED_SCORE)
        return jax.nn.softmax(scores)


def _around_one(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    return 1 + SPREAD * jax.random.normal(key, shape, dtype)

"""Texts as tokens of the decoder: a title is one more token of its image, speech one more of its video.

Source: docs/reference.md, section 7.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rice_jax.config import VitConfig
from rice_jax.models.layers import linear
from rice_jax.types import EmbeddedTexts


class TextTokens(nnx.Module):
    """A linear layer for each kind of text, whose output is the last token."""

    def __init__(self, embed_dim: int, encoder: VitConfig, *, rngs: nnx.Rngs):
        """Builds the layers with fresh weights.

        Args:
            embed_dim: size of a text's embedding.
            encoder: whose tokens the texts join.
            rngs: key stream `params`.
        """
        init = nnx.initializers.normal(0.02)
        self.embed_dim = embed_dim
        self.title = linear(encoder, embed_dim, encoder.width, init, rngs)
        self.speech = linear(encoder, embed_dim, encoder.width, init, rngs)

    def with_title(
        self, image_tokens: Float[Array, "B L D"], title: EmbeddedTexts | None
    ) -> tuple[Float[Array, "B L1 D"], Bool[Array, "B L1"]]:
        """The tokens of images and their titles, and which of them to attend to; None = all titles are missing."""
        if title is None:
            rows = len(image_tokens)
            title = EmbeddedTexts(jnp.zeros((rows, self.embed_dim)), jnp.zeros(rows, bool))
        mask = jnp.ones(image_tokens.shape[:2], bool)
        return _append(image_tokens, mask, self.title(title.embedding), title.mask)

    def with_speech(
        self, video_tokens: Float[Array, "B M D"], token_mask: Bool[Array, "B M"], speech: EmbeddedTexts | None
    ) -> tuple[Float[Array, "B M1 D"], Bool[Array, "B M1"]]:
        """The tokens of videos and their speech, and which of them to attend to; None = no token is added."""
        if speech is None:
            return video_tokens, token_mask
        return _append(video_tokens, token_mask, self.speech(speech.embedding), speech.mask)


def _append(tokens: Array, mask: Array, token: Array, token_mask: Array) -> tuple[Array, Array]:
    tokens = jnp.concatenate([tokens, token.astype(tokens.dtype)[:, None]], axis=1)
    return tokens, jnp.concatenate([mask, token_mask[:, None]], axis=1)

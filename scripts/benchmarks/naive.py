"""RICE with the straightforward matching of the reference, as a baseline for ours."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rice_jax.models.layers import unstack
from rice_jax.models.rice import Rice
from rice_jax.types import Matches, Tokens


class NaiveRice(Rice):
    """RICE that matches as the reference does: the same numbers with more work.

    All tokens of an image go through both blocks with every candidate, whose keys and values are projected again each
    time, and PFR takes a second pass over the positive pairs. The compiler may remove unused parts of this.

    Source: docs/reference.md, section 9.
    """

    def match_batch(
        self,
        batch: Mapping[str, Any],
        tokens: Tokens,
        negatives: Int[Array, "B N"],
        *,
        num_shards: int = 1,
        dropout_key: Array | None = None,
    ) -> Matches:
        """The same as `Rice.match_batch` without dropout and for whole frames."""
        frame_mask = batch["frame_mask"]
        candidates = jnp.concatenate([jnp.arange(len(negatives))[:, None], negatives], axis=1)  # [B, K]
        videos = candidates.reshape(-1)
        images = jnp.repeat(tokens.image, candidates.shape[1], axis=0)
        hidden = self.decode_pairs(images, tokens.video[videos], frame_mask[videos])
        _, attention = self.decode_all(tokens.image, tokens.video, frame_mask)
        return Matches(self.pmd.cosine(hidden.reshape(*candidates.shape, -1)), attention)

    def decode_pairs(
        self, x: Float[Array, "B L D"], video_tokens: Float[Array, "B T L D"], frame_mask: Bool[Array, "B T"]
    ) -> Float[Array, "B D"]:
        """The images' CLS tokens after the last pair of blocks."""
        return self.decode_all(x, video_tokens, frame_mask)[0][:, 0]

    def decode_all(
        self, x: Float[Array, "B L D"], video_tokens: Float[Array, "B T L D"], frame_mask: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B C L M"]]:
        """All tokens after the last pair of blocks, and all attention maps."""
        token_mask = jnp.repeat(frame_mask, video_tokens.shape[2], axis=1)
        video_tokens = video_tokens.reshape(*token_mask.shape, -1)
        maps = []
        for pair in range(self.pmd.config.num_pairs):
            x = unstack(self.pmd.self_blocks, pair)(x)
            cross_block = unstack(self.pmd.cross_blocks, pair)
            x, attention = cross_block(x, *cross_block.keys_values(video_tokens), token_mask)
            maps.append(attention)
        return x, jnp.concatenate(maps, axis=1)


class PairwiseRice(NaiveRice):
    """The same with one image and one candidate at a time, as in a loop over pairs."""

    def decode_pairs(
        self, x: Float[Array, "B L D"], video_tokens: Float[Array, "B T L D"], frame_mask: Bool[Array, "B T"]
    ) -> Float[Array, "B D"]:
        graphdef, params = nnx.split(self)

        def decode_pair(pair: tuple[Array, Array, Array]) -> Float[Array, " D"]:
            model = nnx.merge(graphdef, params)  # its own: a module does not go from one trace into another
            return NaiveRice.decode_pairs(model, *(rows[None] for rows in pair))[0]

        return jax.lax.map(decode_pair, (x, video_tokens, frame_mask))

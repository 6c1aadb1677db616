"""PMD, the pairwise matching decoder: tells how well an image and a video match, from the tokens of both.

Source: docs/reference.md, section 3.
Differs: a video's keys and values are projected once for all images that it is matched with. The last pair of blocks
updates only the CLS token, and computes the attention maps of all tokens only where PFR needs them.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rice_jax.config import PmdConfig, VitConfig
from rice_jax.models.layers import MASKED_SCORE, BlockLayers, Linear, layer_norm, stack, unstack, video_token_mask
from rice_jax.models.text_tokens import TextTokens
from rice_jax.parallel.mesh import ONE_PLACE, Placement
from rice_jax.types import EmbeddedTexts, Matches

SELF_EPSILON = 1e-12
# Keys and values of a video for every pair of blocks, each [B, M, H, C]; M = T · L tokens, C = D / H.
KeysValues = list[tuple[Array, Array]]
# The CLS token before the last block, [B, 1, D], and the output of its attention to a video there, [B, 1, H, C].
Attended = tuple[Array, Array]


class Pmd(nnx.Module):
    """Pairs of a self-attention block on the image's tokens and a cross-attention block to the video's tokens."""

    def __init__(self, encoder: VitConfig, config: PmdConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Builds the decoder with fresh weights.

        Args:
            encoder: the encoder's settings, whose tokens the decoder reads.
            config: the decoder's own.
            placement: of candidates' keys and values.
            rngs: key stream `params`.
        """
        width = encoder.width
        self.config = config
        self.remat = encoder.remat
        self.placement = placement
        self.self_blocks = stack(
            lambda rngs: SelfBlock(encoder, rngs, heads=config.num_heads, epsilon=SELF_EPSILON), config.num_pairs, rngs
        )
        self.cross_blocks = stack(
            lambda rngs: CrossBlock(encoder, rngs, heads=config.num_heads), config.num_pairs, rngs
        )
        self.ln_pool = layer_norm(encoder, rngs)
        normal = nnx.initializers.normal
        self.pool = Linear(width, width, use_bias=False, dtype=encoder.dtype, kernel_init=normal(0.02), rngs=rngs)
        self.match_vector = nnx.Param(normal(width**-0.5)(rngs.params(), (width,)))

    def read_texts(self, embed_dim: int, encoder: VitConfig, *, rngs: nnx.Rngs) -> None:
        """Adds the layers for titles and speech, after a model's other parts so that these start from the same weights.

        Args:
            embed_dim: size of a text's embedding.
            encoder: see `__init__`.
            rngs: key stream `params`.
        """
        self.text = TextTokens(embed_dim, encoder, rngs=rngs)

    def __call__(
        self,
        image_tokens: Float[Array, "B L D"],
        video_tokens: Float[Array, "B T L D"],
        frame_mask: Bool[Array, "B T"],
        negatives: Int[Array, "B K"],
        *,
        patch_mask: Bool[Array, "B T N"] | None = None,
        title: EmbeddedTexts | None = None,
        speech: EmbeddedTexts | None = None,
        with_attention: bool = False,
        num_shards: int = 1,
        dropout_key: Array | None = None,
    ) -> Matches:
        """Matches every image with its own video and with K others of the batch.

        With `num_shards=1` the others may be anywhere in the batch. With one pair of blocks, an image's query, D
        numbers, is sent to every device and attends to all videos there, and the outputs for its K others come back: B²
        vectors of attention, of which B · K count, are cheaper than moving a video's 2 · T · L · D keys and values.
        With more pairs, all of an image's tokens would have to be sent, L · B² vectors of attention; so every device
        gets the keys and values of the whole batch instead. With other `num_shards` the batch has that many equal
        parts, the negatives of an image lie in its own part, and nothing is moved if each device holds one part.

        Args:
            image_tokens, video_tokens: of the encoder; row i of one belongs to row i of the other.
            frame_mask: True = a real frame; every video has at least one.
            negatives: rows of other videos.
            patch_mask: True = a patch of a frame to attend to; None = all.
            title: of the images; None = all are missing.
            speech: of the videos; None = all are missing.
            with_attention: also return the attention maps of an image to its own video, without its texts.
            num_shards: parts of the batch within which the negatives lie.
            dropout_key: for the cross attention's dropout (`config.attention_dropout`); None = no dropout.

        Returns:
            Cosines with the match vector, the own video's first, and the attention maps or None.
        """
        video, token_mask = self.video_side(video_tokens, frame_mask, patch_mask, speech)
        queries = self.image_queries(image_tokens, title, with_attention=with_attention)
        keys = [None, None] if dropout_key is None else list(jax.random.split(dropout_key))
        own, attention = self.attend(queries, video, token_mask, with_attention=with_attention, dropout_key=keys[0])
        if self.config.num_pairs > 1 or num_shards > 1:
            others = self.gather_others(queries, video, token_mask, negatives, num_shards, keys[1])
        else:
            others = self.send_queries(queries[:, :1], video[0], token_mask, negatives, keys[1])
        # All videos at once: on a mesh every use of a parameter costs a sum of its gradient over the devices.
        attended = jax.tree.map(lambda *x: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), own, *others)
        hidden = self.finish(*attended)
        if attention is not None:
            attention = between_patches(attention, image_tokens, video_tokens)
        return Matches(self.cosine(hidden).reshape(negatives.shape[0], -1), attention)

    def send_queries(
        self,
        queries: Float[Array, "B 1 D"],
        video: tuple[Float[Array, "B M H C"], Float[Array, "B M H C"]],
        token_mask: Bool[Array, "B M"],
        negatives: Int[Array, "B K"],
        dropout_key: Array | None,
    ) -> list[Attended]:
        """Lets image i attend to videos negatives[i], wherever these are; one entry for each of the K."""
        block, drop = unstack(self.cross_blocks, 0), self.config.attention_dropout
        keep = None
        if drop and dropout_key is not None:  # the same for all images that attend to a video
            shape = token_mask.shape[0], block.heads, token_mask.shape[1]
            keep = jax.random.bernoulli(dropout_key, 1 - drop, shape) / (1 - drop)

        def attend(sent: tuple[Array, Array], kept: tuple, first: Int[Array, ""] | int) -> Float[Array, "B K H C"]:
            queries, negatives = sent

            @jax.checkpoint  # the weights of all videos would fill the memory
            def attend_to(video: tuple, row: Int[Array, ""]) -> Float[Array, "B K H C"]:
                keys, values, token_mask, keep = video
                scores = jnp.einsum("bhc,mhc->bhm", queries, keys, preferred_element_type=jnp.float32)
                weights = jax.nn.softmax(jnp.where(token_mask, scores * keys.shape[-1] ** -0.5, MASKED_SCORE))
                weights = weights if keep is None else weights * keep
                output = jnp.einsum("bhm,mhc->bhc", weights.astype(values.dtype), values)
                return jnp.where((negatives == row)[..., None, None], output[:, None], 0)

            # One video after the other: the outputs for all pairs of an image and a video would grow with B².
            add = lambda found, numbered: (found + attend_to(*numbered), None)  # noqa: E731
            rows = first + jnp.arange(len(kept[2]))
            zeros = jnp.where((negatives < 0)[..., None, None], queries[:, None], 0)  # sharded like the outputs
            return jax.lax.scan(add, zeros, (kept, rows))[0]

        projected = block.queries(queries)[:, 0]  # [B, H, C]
        outputs = self.placement.send_rows(attend, (projected, negatives), (*video, token_mask, keep))
        return [(queries, outputs[:, k, None]) for k in range(negatives.shape[1])]

    def gather_others(
        self,
        queries: Float[Array, "B R D"],
        video: KeysValues,
        token_mask: Bool[Array, "B M"],
        negatives: Int[Array, "B K"],
        num_shards: int,
        dropout_key: Array | None,
    ) -> list[Attended]:
        """The same for any number of pairs of blocks: the videos are gathered, unless they are on the same device."""
        memory, num_others = (video, token_mask), negatives.shape[1]
        if num_shards == 1:  # moved once for all candidates
            memory = jax.tree.map(lambda x: self.placement.take_rows(x, negatives), memory)

        def attend_to_other(self, queries, memory, k, key):
            if num_shards == 1:
                video, token_mask = jax.tree.map(lambda x: x[:, k], memory)
            else:
                other = negatives[:, k]
                video, token_mask = jax.tree.map(
                    lambda x: self.placement.constrain(take_local(x, other, num_shards)), memory
                )
            return self.attend(queries, video, token_mask, dropout_key=key)[0]

        if self.remat != "none":  # else the activations of all candidates are kept for the backward pass
            attend_to_other = nnx.remat(attend_to_other, static_argnums=3)
        if self.config.num_pairs == 1:
            queries = queries[:, :1]
        keys = [None] * num_others if dropout_key is None else list(jax.random.split(dropout_key, num_others))
        return [attend_to_other(self, queries, memory, k, keys[k]) for k in range(num_others)]

    def image_queries(
        self, image_tokens: Float[Array, "B L D"], title: EmbeddedTexts | None = None, *, with_attention: bool = False
    ) -> Float[Array, "B R D"]:
        """The image's side of a match before it meets a video: the first self-attention block.

        Args:
            image_tokens: of the encoder.
            title: of the images; None = all are missing.
            with_attention: whether attention maps are made of it.

        Returns:
            All tokens, and last the title's, which is zeros if it is missing; only the CLS token with one pair of
            blocks and without attention maps.
        """
        tokens, mask = self.text.with_title(image_tokens, title) if hasattr(self, "text") else (image_tokens, None)
        only_cls = self.config.num_pairs == 1 and not with_attention
        queries = unstack(self.self_blocks, 0)(tokens, mask, num_updated=1 if only_cls else None)
        return queries if mask is None or only_cls else jnp.where(mask[..., None], queries, 0)

    def video_side(
        self,
        video_tokens: Float[Array, "B T L D"],
        frame_mask: Bool[Array, "B T"],
        patch_mask: Bool[Array, "B T N"] | None,
        speech: EmbeddedTexts | None,
    ) -> tuple[KeysValues, Bool[Array, "B M"]]:
        """The video's side of a match before it meets an image, and which tokens to attend to; see `__call__`."""
        token_mask = video_token_mask(frame_mask, patch_mask, video_tokens.shape[2])
        tokens = video_tokens.reshape(*token_mask.shape, -1)
        if hasattr(self, "text"):
            tokens, token_mask = self.text.with_speech(tokens, token_mask, speech)
        return self.keys_values(tokens), token_mask

    def keys_values(self, video_tokens: Float[Array, "B M D"]) -> KeysValues:
        """Keys and values of a video's tokens."""
        pairs = range(self.config.num_pairs)
        return [unstack(self.cross_blocks, pair).keys_values(video_tokens) for pair in pairs]

    def decode(
        self, queries: Float[Array, "B R D"], video: KeysValues, token_mask: Bool[Array, "B M"]
    ) -> Float[Array, "B D"]:
        """The CLS token's last hidden state of image i matched with video i, without dropout.

        Args:
            queries, video, token_mask: see `attend`.
        """
        return self.finish(*self.attend(queries, video, token_mask)[0])

    def attend(
        self,
        queries: Float[Array, "B R D"],
        video: KeysValues,
        token_mask: Bool[Array, "B M"],
        *,
        with_attention: bool = False,
        dropout_key: Array | None = None,
    ) -> tuple[Attended, Float[Array, "B C R M"] | None]:
        """Lets image i attend to video i, up to the last block's attention.

        Args:
            queries: output of `image_queries`.
            video: output of `keys_values`.
            token_mask: True = a token to attend to (`video_token_mask`).
            with_attention: also return the maps of every pair and head; C = pairs · heads.
            dropout_key: see `__call__`.

        Returns:
            The input of `finish`, and the attention probabilities before dropout, float32, or None.
        """
        x, maps = queries, []
        # Zeros are a missing title, which no later block attends to; every block would change them.
        query_mask = (queries != 0).any(axis=-1) if hasattr(self, "text") and len(video) > 1 else None
        for pair, (keys, values) in enumerate(video):
            last = pair == len(video) - 1
            if pair:
                self_block = unstack(self.self_blocks, pair)
                x = self_block(x, query_mask, num_updated=1 if last and not with_attention else None)
            cross_block = unstack(self.cross_blocks, pair)
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, pair)
            options = {"dropout": self.config.attention_dropout, "dropout_key": key}
            if last:
                output, attention = cross_block.attend(x, keys, values, token_mask, num_updated=1, **options)
            else:
                x, attention = cross_block(x, keys, values, token_mask, **options)
            maps.append(attention)
        return (x[:, :1], output), jnp.concatenate(maps, axis=1) if with_attention else None

    def finish(self, x: Float[Array, "B 1 D"], attended: Float[Array, "B 1 H C"]) -> Float[Array, "B D"]:
        """The CLS token's last hidden state: what follows the last block's attention."""
        return unstack(self.cross_blocks, self.config.num_pairs - 1).residuals(x, attended)[:, 0]

    def pooled(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """The vector whose direction is compared with the match vector; float32."""
        return jax.nn.relu(self.pool(self.ln_pool(hidden))).astype(jnp.float32)

    def cosine(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
        """How well image and video match, -1 to 1, from the CLS token's last hidden state; float32."""
        pooled, direction = self.pooled(hidden), self.match_vector[...]
        length = jnp.sqrt(jnp.maximum((pooled**2).sum(axis=-1), 1e-24))  # ReLU may leave only zeros
        # By default a TPU rounds both to bfloat16 first.
        products = jnp.matmul(pooled, direction, precision=jax.lax.Precision.HIGHEST)
        return products / (length * jnp.linalg.norm(direction))


class SelfBlock(BlockLayers):
    """The encoder's block, which can leave out tokens that are not needed afterwards."""

    def __call__(
        self, x: Float[Array, "B L D"], token_mask: Bool[Array, "B L"] | None = None, num_updated: int | None = None
    ) -> Float[Array, "B U D"]:
        """Updates and returns the first `num_updated` tokens (None = all), which attend to all or those of a mask."""
        normed = self.ln_1(x)
        queries = self.split_heads(self.project(normed[:, :num_updated], 0))
        keys, values = (self.split_heads(self.project(normed, part)) for part in (1, 2))
        mask = None if token_mask is None else token_mask[:, None, None]
        return self.residuals(x[:, :num_updated], jax.nn.dot_product_attention(queries, keys, values, mask=mask))


class CrossBlock(BlockLayers):
    """The same parameters, but keys and values come from other tokens, which are not normalized."""

    def queries(self, x: Float[Array, "B L D"]) -> Float[Array, "B L H C"]:
        return self.split_heads(self.project(self.ln_1(x), 0))

    def keys_values(self, tokens: Float[Array, "B M D"]) -> tuple[Float[Array, "B M H C"], Float[Array, "B M H C"]]:
        keys, values = (self.split_heads(self.project(tokens, part)) for part in (1, 2))
        return keys, values

    def __call__(
        self, x: Float[Array, "B L D"], *others: Array, dropout: float = 0.0, dropout_key: Array | None = None
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B H L M"]]:
        """The tokens after the block, and the attention probabilities; arguments as in `attend`."""
        attended, attention = self.attend(x, *others, dropout=dropout, dropout_key=dropout_key)
        return self.residuals(x, attended), attention

    def attend(
        self,
        x: Float[Array, "B L D"],
        keys: Float[Array, "B M H C"],
        values: Float[Array, "B M H C"],
        token_mask: Bool[Array, "B M"],
        *,
        num_updated: int | None = None,
        dropout: float = 0.0,
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "B U H C"], Float[Array, "B H L M"]]:
        """Lets tokens attend to others; `residuals` is the rest of the block.

        Returns:
            The output of the first `num_updated` tokens (None = all), and the attention probabilities of all tokens,
            before dropout, float32.
        """
        queries = self.queries(x)
        scores = jnp.einsum("blhc,bmhc->bhlm", queries, keys, preferred_element_type=jnp.float32)
        scores = jnp.where(token_mask[:, None, None], scores * keys.shape[-1] ** -0.5, MASKED_SCORE)
        attention = jax.nn.softmax(scores)
        weights = attention[:, :, :num_updated]
        if dropout and dropout_key is not None:
            weights = nnx.Dropout(dropout, deterministic=False)(weights, rngs=dropout_key)
        return jnp.einsum("bhlm,bmhc->blhc", weights.astype(values.dtype), values), attention


def between_patches(
    attention: Float[Array, "B C R M"], image_tokens: Float[Array, "B L D"], video_tokens: Float[Array, "B T P D"]
) -> Float[Array, "B C L K"]:
    """Attention maps without the rows and columns of texts, which are the last ones."""
    return attention[:, :, : image_tokens.shape[1], : video_tokens.shape[1] * video_tokens.shape[2]]


def take_local(x: Array, index: Int[Array, " B"], num_shards: int) -> Array:
    """Rows of x by their numbers in the whole batch, where `index[i]` is in the same of `num_shards` parts as i."""
    size = x.shape[0] // num_shards
    parts = jax.vmap(lambda part, local: part[local])(
        x.reshape(num_shards, size, *x.shape[1:]), (index % size).reshape(num_shards, size)
    )
    return parts.reshape(x.shape)

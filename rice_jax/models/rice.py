"""RICE: one encoder for shop images and livestream videos, and the decoder and head that train it further."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from rice_jax.config import PfrConfig, PmdConfig, VitConfig
from rice_jax.models.encoders.vit import Vit
from rice_jax.models.pfr import Pfr
from rice_jax.models.pmd import Pmd
from rice_jax.parallel.mesh import ONE_PLACE, Placement
from rice_jax.types import Embeddings, Matches, Tokens

# CLIP's statistics of RGB values in 0..1.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class RiceConfig:
    """The parts of a RICE model.

    Attributes:
        encoder: of images and frames.
        logit_scale: initial value.
        pmd: the decoder; None = there is none.
        pfr: the reconstruction head, which needs the decoder; None = there is none.
    """

    encoder: VitConfig
    logit_scale: float = 4.0
    pmd: PmdConfig | None = None
    pfr: PfrConfig | None = None


class Rice(nnx.Module):
    def __init__(self, config: RiceConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Builds the model with fresh weights."""
        self.encoder = Vit(config.encoder, placement=placement, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale, jnp.float32))
        if config.pmd:
            self.pmd = Pmd(config.encoder, config.pmd, placement=placement, rngs=rngs)
        if config.pmd and config.pfr:
            self.pfr = Pfr(config.encoder.width, config.pmd, config.pfr, rngs=rngs)

    def __call__(
        self,
        image: UInt8[Array, "B S S 3"],
        video: UInt8[Array, "B T S S 3"],
        frame_mask: Bool[Array, "B T"],
        patch_mask: Bool[Array, "B T N"] | None = None,
    ) -> tuple[Embeddings, Tokens]:
        """Encodes pairs in a single pass of the encoder over images and frames together.

        Args:
            image, video: RGB, 0 to 255.
            frame_mask: True = a real frame.
            patch_mask: True = a patch of a frame to look at (`input.transforms.patch_mask`); None = all.
        """
        pictures = jnp.concatenate([image[:, None], video], axis=1)  # [B, 1 + T, S, S, 3]
        if patch_mask is not None:  # an image is looked at as a whole
            patch_mask = jnp.concatenate([jnp.ones_like(patch_mask[:, :1]), patch_mask], axis=1)
        tokens, features = self.encode(pictures, patch_mask)
        embeddings = Embeddings(embed(features[:, 0]), embed_frames(features[:, 1:], frame_mask))
        return embeddings, Tokens(tokens[:, 0], tokens[:, 1:])

    def match(
        self,
        tokens: Tokens,
        frame_mask: Bool[Array, "B T"],
        negatives: Int[Array, "B K"],
        *,
        patch_mask: Bool[Array, "B T N"] | None = None,
        num_shards: int = 1,
        dropout_key: Array | None = None,
    ) -> Matches:
        """Matches images with their own and other videos; see `Pmd`."""
        return self.pmd(
            tokens.image,
            tokens.video,
            frame_mask,
            negatives,
            patch_mask=patch_mask,
            with_attention=hasattr(self, "pfr"),
            num_shards=num_shards,
            dropout_key=dropout_key,
        )

    def embed_image(self, image: UInt8[Array, "B S S 3"]) -> Float[Array, "B E"]:
        """Embeds shop images; unit length, float32."""
        return embed(self.encoder(normalize(image))[1])

    def embed_video(
        self,
        video: UInt8[Array, "B T S S 3"],
        frame_mask: Bool[Array, "B T"],
        patch_mask: Bool[Array, "B T N"] | None = None,
    ) -> Float[Array, "B E"]:
        """Embeds videos by the mean of their real frames' features; unit length, float32."""
        return embed_frames(self.encode(video, patch_mask)[1], frame_mask)

    def encode(
        self, video: UInt8[Array, "B T S S 3"], patch_mask: Bool[Array, "B T N"] | None = None
    ) -> tuple[Float[Array, "B T L D"], Float[Array, "B T E"]]:
        """Tokens and features of every frame, as `Vit` gives them of a picture."""
        shape = video.shape[:2]
        flat_mask = None if patch_mask is None else patch_mask.reshape(-1, patch_mask.shape[-1])
        tokens, features = self.encoder(normalize(video.reshape(-1, *video.shape[2:])), flat_mask)
        return tokens.reshape(*shape, *tokens.shape[1:]), features.reshape(*shape, -1)


def normalize(pictures: UInt8[Array, "*B S S 3"]) -> Float[Array, "*B S S 3"]:
    """Bytes to CLIP's input: scaled to 0..1, then by CLIP's mean and standard deviation; float32."""
    return (pictures.astype(jnp.float32) / 255 - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)


def embed(feature: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """L2-normalises in float32."""
    feature = feature.astype(jnp.float32)
    return feature / jnp.linalg.norm(feature, axis=-1, keepdims=True)


def embed_frames(features: Float[Array, "B T E"], frame_mask: Bool[Array, "B T"]) -> Float[Array, "B E"]:
    """L2-normalises the mean of the real frames' un-normalised features. Source: RICE.md §2."""
    weights = frame_mask.astype(jnp.float32)[..., None]
    return embed((features.astype(jnp.float32) * weights).sum(axis=1) / weights.sum(axis=1))

"""COPE: one representation of a product over its pages, short videos and live clips.

The domains share the encoders of pictures and of text. Each has a head of its own, whose output is the embedding.

Source: Bai et al. 2023, "Cross-view Semantic Alignment for Livestreaming Product Recognition", whose code this follows.
Differs: padding frames are masked; a text that is missing is left out of the sum, and not encoded as a word.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rice_jax.config import ConfigError, ModelConfig, TextTowerConfig, VitConfig
from rice_jax.config.cope import DOMAINS, LIVE, PAGE, VIDEO
from rice_jax.models.aggregation.mean import embed
from rice_jax.models.contract import SupportsDomains, SupportsEmbedding
from rice_jax.models.encoders import VIDEO_ENCODERS
from rice_jax.models.rice import normalize
from rice_jax.models.text import TEXT_TOWERS
from rice_jax.models.together import together, videos_together
from rice_jax.parallel.mesh import ONE_PLACE, Placement

CLASSES = "classes"  # the part that holds the centers of products
SCALE = 20.0  # the inverse of the loss's temperature


@dataclasses.dataclass(frozen=True)
class CopeConfig:
    """The parts of a COPE model.

    Attributes:
        encoder: of pages, short videos and live clips; one that encodes a video as a whole.
        text: the text tower; None = there is none.
        text_domains: domains whose items may have a text.
        embed_dim: size of an embedding.
        num_classes: rows of the matrix of the products' centers, with those that pad it; 0 = there is none.
    """

    encoder: VitConfig
    text: TextTowerConfig | None = None
    text_domains: tuple[str, ...] = (PAGE,)
    embed_dim: int = 128
    num_classes: int = 0
    pmd: ClassVar[None] = None  # there is no decoder

    @classmethod
    def of(cls, model: ModelConfig, num_classes: int = 0) -> "CopeConfig":
        """The parts that `config.model` describes."""
        encoder, tower = model.encoder, model.texts.tower if model.texts else None
        assert isinstance(encoder, VitConfig)
        domains = model.cope.text_domain_names if tower else ()
        return cls(encoder, tower, domains, model.cope.embed_dim, num_classes)


class Fused(NamedTuple):
    """An item's features, not normalized; float32."""

    fused: Float[Array, "B E"]  # becomes the embedding
    visual: Float[Array, "B E"]
    text: Float[Array, "B E"] | None  # None in a domain without text
    has_text: Bool[Array, " B"] | None  # False: the row in `text` is zeros

    def views(self, domain: str) -> tuple[dict[str, Array], dict[str, Array]]:
        """Embeddings by the names of `losses.cope`, and which rows of the text's have one."""
        found = {domain: embed(self.fused)}
        if self.text is None or self.has_text is None:
            return found, {}
        # A row of zeros has no direction, and the gradient of its length is not a number.
        text = jnp.where(self.has_text[:, None], self.text, 1.0)
        found |= {f"{domain}_visual": embed(self.visual), f"{domain}_text": embed(text)}
        return found, {f"{domain}_text": self.has_text}


class Cope(nnx.Module):
    """The encoders, a head for each domain, and the centers of the products; see `models.contract`.

    Of a shop, images are pages and videos are live clips; `embed_domain` takes items of any domain.
    """

    PRETRAINED = ("encoder", "text")
    TRAINING_ONLY = (CLASSES,)
    MATCH_ONLY = ()

    def __init__(self, config: CopeConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Builds the model with fresh weights.

        Raises:
            ConfigError: the encoder is one of single frames, or the domains with text and the tower do not fit.
        """
        if config.encoder.architecture not in VIDEO_ENCODERS:
            known = ", ".join(map(repr, VIDEO_ENCODERS))
            raise ConfigError(
                f"config.model.architecture: found {config.encoder.architecture!r}, expected one of {known} with COPE, "
                "which encodes a video as a whole"
            )
        if set(config.text_domains) - set(DOMAINS) or (config.text_domains and config.text is None):
            raise ConfigError(
                f"text_domains: found {', '.join(config.text_domains)} "
                f"{'without' if config.text is None else 'with'} a text tower, expected some of {', '.join(DOMAINS)} "
                "with one, or none"
            )
        self.pixels = config.encoder.pixels
        self.text_domains = config.text_domains
        self.encoder = VIDEO_ENCODERS[config.encoder.architecture](config.encoder, placement=placement, rngs=rngs)
        if config.text and config.text_domains:
            self.text = TEXT_TOWERS[config.text.kind](config.text, placement=placement, rngs=rngs)
        widths = {name: config.text.embed_dim for name in config.text_domains if config.text}
        shape = config.encoder.embed_dim, config.embed_dim
        start = nnx.initializers.orthogonal()(rngs.params(), shape)
        self.page, self.video, self.live = (Head(start, widths.get(name), rngs) for name in DOMAINS)
        if config.num_classes:
            normal = nnx.initializers.normal(0.01)
            self.classes = nnx.Embed(config.num_classes, config.embed_dim, embedding_init=normal, rngs=rngs)

    @property
    def capabilities(self) -> frozenset[type]:
        return frozenset({SupportsEmbedding, SupportsDomains})

    def __call__(self, batch: Mapping[str, Mapping[str, Any]]) -> dict[str, Fused]:
        """Encodes items of some domains or all, for training.

        Args:
            batch: {domain: items}; the items and the errors are those of `SupportsDomains.embed_domain`.
        """
        for domain, items in batch.items():
            self._check(items, domain)
        videos = {name: (normalize(x["video"], self.pixels), x["frame_mask"]) for name, x in batch.items()}
        visual = {name: x.astype(jnp.float32) for name, x in videos_together(self.encoder, videos).items()}
        with_text = {name: (x["text_ids"], x["text_token_mask"]) for name, x in batch.items() if "text_ids" in x}
        text = together(self._text, with_text)
        heads: dict[str, Head] = {PAGE: self.page, VIDEO: self.video, LIVE: self.live}
        return {name: heads[name](visual[name], text.get(name), batch[name].get("text_token_mask")) for name in batch}

    def embed_image(self, batch: Mapping[str, Any]) -> Float[Array, "B E"]:
        pages = {"video": batch["image"][:, None], "frame_mask": jnp.ones((len(batch["image"]), 1), bool)}
        texts = {name: batch[name] for name in ("text_ids", "text_token_mask") if name in batch}
        return self.embed_domain(pages | texts, PAGE)

    def embed_video(self, batch: Mapping[str, Any]) -> Float[Array, "B E"]:
        return self.embed_domain(batch, LIVE)

    def embed_domain(self, batch: Mapping[str, Any], domain: str) -> Float[Array, "B E"]:
        return embed(self({domain: batch})[domain].fused)

    def similarity_scale(self) -> Float[Array, ""]:
        return jnp.float32(SCALE)

    def _text(self, ids: Int[Array, "B L"], token_mask: Bool[Array, "B L"]) -> Float[Array, "B W"]:
        return self.text(ids, token_mask).features.astype(jnp.float32)

    def _check(self, items: Mapping[str, Any], domain: str) -> None:
        """Refuses what cannot be embedded."""
        if domain not in DOMAINS:
            raise ConfigError(f"domain: found {domain!r}, expected one of {', '.join(map(repr, DOMAINS))}")
        if "patch_mask" in items:
            raise ConfigError("Cope cannot leave out patches; set config.model.ipd_use='crop'")
        if "text_ids" in items and domain not in self.text_domains:
            raise ConfigError(
                f"text_ids: found texts of domain {domain!r} for a model that reads those of "
                f"{', '.join(map(repr, self.text_domains)) or 'none'}; leave them out of the batch"
            )


class Head(nnx.Module):
    """Projects the features of a domain's items, and fuses those of picture and text, if the domain has text."""

    def __init__(self, visual: Float[Array, "V E"], text_dim: int | None, rngs: nnx.Rngs):
        """Fresh weights, with which pictures resemble each other across domains as by the encoder.

        Args:
            visual: the projection of the visual feature to start from, orthogonal, and the same for all domains.
            text_dim: size of the text's feature, which has no part in what is fused at the start; None = the domain has
                no text.
            rngs: key stream `params`.
        """
        embed_dim = visual.shape[1]
        self.visual = nnx.Linear(*visual.shape, kernel_init=lambda *_: visual, rngs=rngs)
        if text_dim is not None:
            self.text = nnx.Linear(text_dim, embed_dim, rngs=rngs)
            only = jnp.eye(2 * embed_dim, embed_dim, -embed_dim)  # zeros for the text, and the picture as it is
            self.fusion = nnx.Linear(2 * embed_dim, embed_dim, kernel_init=lambda *_: only, rngs=rngs)

    def __call__(
        self,
        visual: Float[Array, "B V"],
        text: Float[Array, "B W"] | None = None,
        token_mask: Bool[Array, "B L"] | None = None,
    ) -> Fused:
        """The features of items; without a text, its half of what is fused is zeros."""
        projected = self.visual(visual)
        if not hasattr(self, "fusion"):
            return Fused(projected, projected, None, None)
        words, has_text = jnp.zeros_like(projected), jnp.zeros(len(projected), bool)
        if text is not None and token_mask is not None:
            has_text = token_mask.any(axis=1)
            words = jnp.where(has_text[:, None], self.text(text), 0)
        return Fused(self.fusion(jnp.concatenate([words, projected], axis=1)), projected, words, has_text)

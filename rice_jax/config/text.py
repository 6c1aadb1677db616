"""Settings of text towers."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rice_jax.config.fields import setting

TEXT_MODEL = "model of config.data.texts"  # its fingerprint's name among the digests of a run's data
TOKENIZER_FOLDER = "tokenizer"  # beside the weights of a converted tower
# Files of a tokenizer, as the folders of Hugging Face's and OpenAI's models have them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "merges.txt",
    "bpe_simple_vocab_16e6.txt.gz",
    "vocab.json",
    "tokenizer_config.json",
)


@dataclasses.dataclass(frozen=True)
class TextTowerSettings:
    """Settings of a text tower; the defaults are those of Chinese-CLIP ViT-B/16."""

    kind: str = setting(
        "bert",
        '"bert": BERT; a text\'s feature is made of its first token. "clip": CLIP\'s text transformer, whose tokens '
        "attend to those before them; the feature is made of the last token.",
        choices=("bert", "clip"),
    )
    vocab_size: int = setting(21_128, "Tokens of the vocabulary.", minimum=1)
    positions: int = setting(512, "Tokens of a text that have a learned position.", minimum=1)
    context: int = setting(
        52, "Longest text, with its two special tokens; longer ones are cut.", unit="tokens", minimum=3
    )
    token_types: int = setting(2, 'Kinds of tokens that `kind` "bert" has; texts use the first one.', minimum=1)
    width: int = setting(768, "Width of the tokens.", minimum=1)
    layers: int = setting(12, "Blocks.", minimum=1)
    heads: int = setting(12, "Attention heads of a block.", minimum=1)
    mlp_width: int = setting(3072, "Width of an MLP's hidden layer.", minimum=1)
    activation: str = setting(
        "gelu", "Activation of the MLPs, as in `config.model`.", choices=("quick_gelu", "gelu", "gelu_tanh", "silu")
    )
    epsilon: float = setting(1e-12, "Epsilon of the layer norms.", above=0)
    head: str = setting(
        "projection",
        'What makes the feature. "projection": a linear map to `embed_dim` without bias. "pooler": BERT\'s, a linear '
        "map and a hyperbolic tangent.",
        choices=("projection", "pooler"),
    )
    embed_dim: int = setting(512, "Size of a text's feature.", minimum=1)


@dataclasses.dataclass(frozen=True)
class TextTowerConfig(TextTowerSettings):
    """A text tower: its own settings, and how it computes."""

    dtype: str = "float32"
    remat: str = "none"
    unroll: bool = False

    @property
    def own(self) -> dict[str, str | int | float]:
        """What is saved with its weights."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(TextTowerSettings)}

    def problems(self) -> Iterator[str]:
        """Settings that exclude each other, by their names."""
        if self.width % self.heads:
            yield f"heads: found {self.heads}, expected a divisor of the width ({self.width})"
        if self.context > self.positions:
            yield f"context: found {self.context}, expected at most the number of positions ({self.positions})"
        if self.head == "pooler" and self.embed_dim != self.width:
            yield f"embed_dim: found {self.embed_dim} with head='pooler', expected the width ({self.width})"
        if self.head == "pooler" and self.kind == "clip":
            yield "head: found 'pooler' with kind='clip', expected 'projection'"


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The texts that a model reads.

    Attributes:
        embed_dim: size of their embeddings.
        tower: the part that embeds them; None = their embeddings are given.
    """

    embed_dim: int
    tower: TextTowerConfig | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "TextConfig | None":
        """The inverse of `dataclasses.asdict`; None stays None."""
        if values is None:
            return None
        return cls(values["embed_dim"], values["tower"] and TextTowerConfig(**values["tower"]))


@dataclasses.dataclass(frozen=True)
class TextLossSettings:
    """The settings of `config.loss` that contrast texts."""

    image_title_weight: float = setting(
        0.0, "Weight of the contrast of images and their titles, of the same size. 0: off.", minimum=0
    )
    video_speech_weight: float = setting(
        0.0, "Weight of the contrast of videos and what is said in them, of the same size. 0: off.", minimum=0
    )
    title_speech_weight: float = setting(
        0.0, 'Weight of the contrast of titles and speech, with `model.text` "tower". 0: off.', minimum=0
    )

    @property
    def contrasts_texts(self) -> bool:
        """Whether any text is contrasted."""
        return bool(self.image_title_weight or self.video_speech_weight or self.title_speech_weight)

    def text_loss_problems(self, kind: str, text: str, embed_dim: int, texts: TextConfig | None) -> Iterator[str]:
        """Settings that exclude each other.

        Args:
            kind: `config.loss.kind`.
            text: `config.model.text`.
            embed_dim: size of the embeddings of images and videos.
            texts: that the model reads.
        """
        for name in ("image_title_weight", "video_speech_weight"):
            if getattr(self, name) and texts is None:
                yield f"config.loss.{name}: found {getattr(self, name)} with config.model.text='off', expected 0"
            elif getattr(self, name) and texts and embed_dim != texts.embed_dim:
                yield (
                    f"config.loss.{name}: found {getattr(self, name)} with texts of {texts.embed_dim} numbers and "
                    f"pictures of {embed_dim}, expected 0, or config.model.embed_dim={texts.embed_dim}"
                )
        if self.contrasts_texts and kind not in ("softmax", "sigmoid"):
            yield (
                f"config.loss.kind: found {kind!r}, expected 'softmax' or 'sigmoid' with image_title_weight, "
                "video_speech_weight, or title_speech_weight, which need its scale"
            )
        if self.title_speech_weight and text != "tower":
            yield (
                f"config.loss.title_speech_weight: found {self.title_speech_weight} with config.model.text={text!r}, "
                "expected 0: nothing but a text tower is trained by it"
            )


@dataclasses.dataclass(frozen=True)
class TextEvalSettings:
    """The settings of `config.eval` that concern texts."""

    text_weight: str = setting(
        "off",
        "Weight of the cosine of title and speech in the score, beside 1 of the pictures', for a further row of the "
        'results: a number; "fit": each half of the products is ranked with the weight that is fitted on the other; '
        '"off" or 0: there is no such row.',
    )

    @property
    def fuses(self) -> bool:
        """Whether images are ranked by picture and text, too."""
        return self.text_weight == "fit" or self.fixed_text_weight > 0

    @property
    def fixed_text_weight(self) -> float:
        """The weight; 0 if it is fitted or off, NaN if it is no number."""
        if self.text_weight in ("off", "fit"):
            return 0.0
        try:
            return float(self.text_weight)
        except ValueError:
            return math.nan

    def text_weight_problems(self, text: str, task: str) -> Iterator[str]:
        """Settings that exclude each other.

        Args:
            text: `config.model.text`.
            task: `config.task`.
        """
        if not 0 <= self.fixed_text_weight < math.inf:
            yield f"config.eval.text_weight: found {self.text_weight!r}, expected 'off', 'fit', or at least 0"
        elif self.fuses and (text == "off" or task != "retrieval"):
            yield (
                f"config.eval.text_weight: found {self.text_weight!r} with config.model.text={text!r} and config.task="
                f"{task!r}, expected 'off': only task 'retrieval' compares texts, and only with config.model.text"
            )

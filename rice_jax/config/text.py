"""Settings of text towers."""

import dataclasses
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
    activation: str = setting("gelu", "Activation of the MLPs.", choices=("quick_gelu", "gelu", "gelu_tanh", "silu"))
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

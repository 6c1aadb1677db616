"""What an index says about the model that made it."""

import dataclasses
from typing import Any

from rice_jax.config import (
    AggregationConfig,
    EncoderConfig,
    PmdConfig,
    SwinConfig,
    TextConfig,
    TextTowerConfig,
    VitConfig,
)
from rice_jax.config.fields import build
from rice_jax.eval.calibration import Calibration
from rice_jax.models.cope import CopeConfig
from rice_jax.models.rice import RiceConfig


@dataclasses.dataclass(frozen=True)
class About:
    """The model that made an index, and how pictures are shown to it.

    Attributes:
        model: the model's parts; `pmd` is None if there is no trained decoder.
        resize: side to which a picture is squashed before the crop, pixels.
        num_frames: largest number of frames in a clip, as in the run's evaluation.
        fingerprint: tells models apart (`models.weights.embedding_fingerprint`).
        checkpoint: the run's workdir or the converted model that held the weights.
        calibration: turns cosines into probabilities; None = the run has none.
        ipd: `config.model.ipd` in training.
        match_fingerprint: tells decoders apart (`models.weights.match_fingerprint`); None if there is none, and in
            indexes of version 0.1, which do not say.
        tokenizer: folder of the tokenizer by which the model reads an image's title; "" = it reads none.
        text_context: tokens of the longest title.
        text_model: what embeds the texts that the decoder reads, a converted tower or the run itself
            (`decoder_texts`); "" = it reads none.
        text_fingerprint: tells such towers apart (`models.text_weights.text_fingerprint`); "" = the decoder reads none.
    """

    model: RiceConfig | CopeConfig
    resize: int
    num_frames: int
    fingerprint: str
    checkpoint: str
    calibration: Calibration | None
    ipd: str = "off"
    match_fingerprint: str | None = None
    tokenizer: str = ""
    text_context: int = 0
    text_model: str = ""
    text_fingerprint: str = ""

    @property
    def decoder_text(self) -> TextConfig | None:
        """The texts that the decoder was trained with; None = none, or there is no decoder."""
        return self.model.text if isinstance(self.model, RiceConfig) and self.model.pmd else None

    @property
    def fingerprints(self) -> tuple[str, str | None, str]:
        """Of all that embeds and matches: rows with the same ones can be in one index."""
        return self.fingerprint, self.match_fingerprint, self.text_fingerprint

    @property
    def reads_titles(self) -> bool:
        """Whether what an index keeps of a picture depends on its title."""
        return bool(self.tokenizer or self.text_fingerprint)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "About":
        """The inverse of `dataclasses.asdict`."""
        model, calibration = values["model"], values["calibration"]
        sizes = model.get("encoder", model)  # version 0.1 stored the encoder's settings beside the others
        kind = SwinConfig if sizes.get("architecture") == "swin" else VitConfig
        names = [field.name for field in dataclasses.fields(kind) if field.name in sizes]
        encoder: EncoderConfig = kind(**{name: sizes[name] for name in names})
        parts = _cope(model, encoder) if "text_domains" in model else _rice(model, encoder)
        return cls(
            **values
            | {
                "model": parts,
                "calibration": calibration and Calibration(**calibration),
                "ipd": values.get("ipd") or model.get("ipd", "off"),
            }
        )


def _rice(model: dict[str, Any], encoder: EncoderConfig) -> RiceConfig:
    return RiceConfig(
        encoder,
        model["logit_scale"],
        model["pmd"] and PmdConfig(**model["pmd"]),
        aggregation=build(AggregationConfig, model.get("aggregation", {})),  # version 0.2 knew only the default
        loss=model.get("loss", "softmax"),
        text=TextConfig.from_dict(model.get("text")),
    )


def _cope(model: dict[str, Any], encoder: EncoderConfig) -> CopeConfig:
    assert isinstance(encoder, VitConfig)
    text = model["text"] and TextTowerConfig(**model["text"])
    return CopeConfig(encoder, text, tuple(model["text_domains"]), model["embed_dim"])

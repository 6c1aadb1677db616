"""A run's settings of the encoder beside those that its weights were saved with."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rice_jax.config import ConfigError, EncoderConfig, ModelConfig, SwinConfig, SwinSettings, VitConfig
from rice_jax.config.model import INTEGRATION, SIZES, SWITCHES

SWIN = [field.name for field in dataclasses.fields(SwinSettings)]


def take_settings(model: ModelConfig, saved: Mapping[str, Any], source: str) -> ModelConfig:
    """Gives settings at their default the weights' value.

    Args:
        model: as the user set it.
        saved: the weights' settings of the model.
        source: the weights' path, for errors.

    Raises:
        ConfigError: a setting is not at its default and contradicts the weights, in a way that no shape shows.
    """
    free = {name for name in SWITCHES if _is_free(name, saved, model.architecture)}
    strict = set(SWITCHES) - free
    taken = dict(_take(VitConfig, model, saved, (*SIZES, *SWITCHES), strict, source))
    swin = dict(_take(SwinSettings, model.swin, saved.get("swin", {}), SWIN, set(SWIN), source))
    return dataclasses.replace(model, **taken, swin=dataclasses.replace(model.swin, **swin))


def differences(saved: Mapping[str, Any], encoder: EncoderConfig) -> str:
    """The first difference between weights and an encoder that no parameter's shape shows, in words; "" if none."""
    facts = {name: saved.get(name, getattr(VitConfig, name)) for name in SWITCHES}
    if isinstance(encoder, SwinConfig) and facts["architecture"] == "swin":
        facts = {"pixels": facts["pixels"]} | {f"swin.{name}": value for name, value in saved["swin"].items()}
    for name, theirs in facts.items():
        ours = getattr(encoder, name.removeprefix("swin."), None)
        if theirs != ours and not _is_free(name, saved, encoder.architecture):
            return f"{name}={theirs!r}, expected {ours!r} (config.model.{name})"
    return ""


def _is_free(switch: str, saved: Mapping[str, Any], architecture: str) -> bool:
    """Whether an encoder may start from weights with another value of a switch.

    Another architecture has other parameters, which shapes show, or starts from these; none starts from a Swin
    transformer. Weights of pictures know no time, and X-CLIP's positions of frames are interpolated.
    """
    theirs = saved.get("architecture", "vit")
    if switch == "num_frames":
        return theirs in ("vit", "xclip")
    if switch in INTEGRATION:
        return theirs == "vit"
    return switch == "architecture" and "swin" not in (architecture, theirs)


def _take(
    cls: type, ours: object, saved: Mapping[str, Any], names: tuple[str, ...] | list[str], strict: set[str], source: str
) -> Iterator[tuple[str, Any]]:
    path = "config.model.swin" if cls is SwinSettings else "config.model"
    for name in names:
        default, found = getattr(cls, name), getattr(ours, name)
        expected = saved.get(name, default)
        if found == default:
            yield name, expected
        elif found != expected and name in strict:
            raise ConfigError(
                f"{path}.{name}: found {found!r}, expected {expected!r} as in the weights {source}; leave it at "
                f"its default ({default!r}) to take theirs"
            )

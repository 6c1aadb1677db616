"""Command lines with `--config`, which ml_collections reads."""

import copy
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from rice_jax.config.fields import ConfigError, list_settings
from rice_jax.config.files import find_config, load_config
from rice_jax.config.groups import Config

PARSERS: dict[type, Any] = {  # as in ml_collections
    bool: flags.BooleanParser(),
    float: flags.FloatParser(),
    int: flags.IntegerParser(),
    str: flags.ArgumentParser(),
}


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses flags as absl does, but finds configs by name and reports an unknown setting in one line."""
    try:
        _require_known(arguments)
        return app.parse_flags_with_usage(with_config_path(arguments))
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")


def override(values: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Settings as nested plain values, with those changed that flags `--config.GROUP.SETTING=VALUE` set.

    Raises:
        ConfigError: a setting is unknown, or its value has the wrong type.
    """
    _require_known(arguments)
    changed = copy.deepcopy(dict(values))
    for argument in arguments:
        name, equals, text = argument.lstrip("-").partition("=")
        _, *groups, setting = name.split(".")
        group = changed
        for each in groups:
            group = group[each]
        kind = type(group[setting])
        try:
            group[setting] = PARSERS[kind].parse(text if equals or kind is not bool else "true")
        except ValueError as error:
            raise ConfigError(f"{name}: found {text!r}, expected {kind.__name__} ({error})") from None
    return changed


def _require_known(arguments: Sequence[str]) -> None:
    settings = list_settings(Config)
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name.startswith("config.") and name not in settings:
            similar = difflib.get_close_matches(name, settings, n=1)
            raise ConfigError(
                f"{name}: unknown setting{f', did you mean {similar[0]}?' if similar else ''}; all settings: "
                "docs/settings.md"
            )


def with_config_path(arguments: list[str]) -> list[str]:
    """Replaces the name of a config that comes with rice_jax by its path.

    Raises:
        ConfigError: there is no such config, or it refuses its argument.
    """
    found = list(arguments)
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if not equals:
            i += 1
            flag, value = "", arguments[i] if i < len(arguments) else ""
        name, colon, rest = value.partition(":")
        if name:
            found[i] = f"{flag}{equals}{find_config(name)}{colon}{rest}"
            try:
                load_config(name, *([rest] if colon else []))
            except (ValueError, TypeError) as error:  # absl would show it with its traceback
                raise ConfigError(f"--config={value}: {error}") from error
    return found

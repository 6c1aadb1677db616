"""Command lines with `--config`, which ml_collections reads."""

import ast
import contextlib
import copy
import difflib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
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
        group[setting] = _parse(name, type(group[setting]), text if equals else None)
    return changed


def _require_known(arguments: Sequence[str]) -> None:
    """Refuses settings that do not exist, and values of other types."""
    settings = list_settings(Config)
    for argument in arguments:
        name, equals, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name.startswith("config."):
            continue
        if name in settings:
            if equals:
                _parse(name, type(settings[name].default), text)
            continue
        if own := [setting for setting in settings if setting.startswith(f"{name}.")]:
            raise ConfigError(f"{name}: found a group of settings, expected one of them, such as {own[0]}")
        similar = difflib.get_close_matches(name, settings, n=1)
        raise ConfigError(
            f"{name}: unknown setting{f', did you mean {similar[0]}?' if similar else ''}; all settings: "
            "docs/settings.md"
        )


def _parse(name: str, kind: type, text: str | None) -> Any:
    """The value of a flag; a flag without one, None, turns a setting on.

    Raises:
        ConfigError: it has another type.
    """
    try:
        return PARSERS[kind].parse("true" if text is None and kind is bool else text or "")
    except ValueError as error:
        found = "no value" if text is None else repr(text)
        raise ConfigError(f"{name}: found {found}, expected {kind.__name__} ({error})") from None


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
            except ConfigError:
                raise
            except (ValueError, TypeError, AttributeError, KeyError) as error:  # absl would show it with its traceback
                raise ConfigError(f"--config={value}: {_in_one_line(error, find_config(name))}") from error
    return found


def _in_one_line(error: Exception, path: Path) -> str:
    """What a config file has raised; in which of its lines, unless it refuses its argument."""
    text = str(error)
    with contextlib.suppress(ValueError, SyntaxError):  # that of an unknown setting is a string in quotation marks
        text = str(ast.literal_eval(text))
    text = ": ".join(text.splitlines())
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == os.path.abspath(path)]
    return f"line {lines[-1]}: {text}" if lines and not isinstance(error, ValueError) else text

"""Command lines with `--config`, which ml_collections reads."""

import difflib
import sys

from absl import app

from rice_jax.config.fields import ConfigError, list_settings
from rice_jax.config.files import find_config, load_config
from rice_jax.config.groups import Config


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses flags as absl does, but finds configs by name and reports an unknown setting in one line."""
    try:
        _require_known(arguments)
        return app.parse_flags_with_usage(with_config_path(arguments))
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")


def _require_known(arguments: list[str]) -> None:
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

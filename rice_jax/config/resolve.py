"""From a user's values to a checked configuration."""

from collections.abc import Callable, Mapping
from typing import Any

from rice_jax.config.fields import ConfigError, build
from rice_jax.config.groups import Config


def resolve(values: Mapping[str, Any], complete: Callable[[Config], Config] = lambda config: config) -> Config:
    """Checks settings and freezes them.

    Args:
        values: nested mapping of plain values, e.g. `to_dict()` of a config file's ConfigDict after the user's
            overrides. A setting that is not among them has its default.
        complete: fills in what follows from elsewhere, before settings are compared with each other.

    Raises:
        ConfigError: unknown names, wrong types or values, or settings that exclude each other.
    """
    config = complete(build(Config, values))
    for problem in config.problems():
        raise ConfigError(problem)
    return config

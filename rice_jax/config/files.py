"""Config files: Python files with a function `get_config` that returns the defaults with some of them changed."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from rice_jax.config.fields import ConfigError
from rice_jax.config.groups import Config

PACKAGE = Path(__file__).parents[1]


def default_config() -> ConfigDict:
    """All settings at their defaults, for a config file to change."""
    return ConfigDict(Config().to_dict())


def find_config(name: str) -> Path:
    """The file of a config.

    Args:
        name: a path that ends in .py, or the bare name of a config that comes with rice_jax, e.g. "lpr4m".

    Raises:
        ConfigError: there is none.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ConfigError(f"{name}: found no such file, expected a config file")
        return Path(name)
    directory = PACKAGE / "configs"
    if not directory.is_dir():  # a checkout has them beside the package
        directory = PACKAGE.parent / "configs"
    known = {path.stem: path for path in sorted(directory.glob("[!_]*.py"))}
    if name not in known:
        raise ConfigError(f"--config={name}: found no such config, expected a .py file or one of {', '.join(known)}")
    return known[name]


def load_config(name: str, *arguments: str) -> ConfigDict:
    """The settings of a config file (`find_config`); `arguments` go to its `get_config`.

    Raises:
        ConfigError: there is no such file, or it has no `get_config` that returns settings.
    """
    path = find_config(name)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(
            f"{path}: found no get_config, expected a function that returns default_config() with changes"
        )
    config = module.get_config(*arguments)
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{path}: get_config returns a {type(config).__name__}, expected the result of default_config()"
        )
    return config

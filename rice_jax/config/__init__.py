"""Settings: what a user overrides becomes frozen dataclasses, checked once.

`groups.py` holds every setting with its default and documentation. A config file starts from the defaults:

    from rice_jax.config import default_config

    def get_config():
        config = default_config()
        config.data.train = "lpr4m/train"
        return config
"""

from rice_jax.config.fields import ConfigError
from rice_jax.config.files import default_config, find_config, load_config
from rice_jax.config.groups import (
    Config,
    DataConfig,
    DetectionLossConfig,
    DetectorConfig,
    EvalConfig,
    IndexConfig,
    InputConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PfrConfig,
    PmdConfig,
    TrainConfig,
    VitConfig,
)
from rice_jax.config.resolve import resolve

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "DetectionLossConfig",
    "DetectorConfig",
    "EvalConfig",
    "IndexConfig",
    "InputConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PfrConfig",
    "PmdConfig",
    "TrainConfig",
    "VitConfig",
    "default_config",
    "find_config",
    "load_config",
    "resolve",
]

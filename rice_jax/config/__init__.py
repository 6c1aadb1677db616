"""Settings: what a user overrides becomes frozen dataclasses, checked once.

Each module holds the settings of a group or of a part of it, with their defaults and documentation; `Config` in
`groups.py` holds all groups. A config file starts from the defaults:

    from rice_jax.config import default_config

    def get_config():
        config = default_config()
        config.data.train = "lpr4m/train"
        return config
"""

from rice_jax.config.aggregation import AggregationConfig, AttentionConfig, FrameTransformerConfig
from rice_jax.config.cope import CopeLossConfig, CopeSettings
from rice_jax.config.data import DataConfig, InputConfig
from rice_jax.config.fields import ConfigError
from rice_jax.config.files import default_config, find_config, load_config
from rice_jax.config.groups import Config, EvalConfig, IndexConfig, MeshConfig
from rice_jax.config.loss import DetectionLossConfig, LossConfig
from rice_jax.config.model import (
    PIXEL_STATISTICS,
    DetectorConfig,
    EncoderConfig,
    ModelConfig,
    PfrConfig,
    PmdConfig,
    VitConfig,
)
from rice_jax.config.resolve import resolve
from rice_jax.config.swin import SwinConfig, SwinSettings
from rice_jax.config.text import (
    TEXT_MODEL,
    TOKENIZER_FILES,
    TOKENIZER_FOLDER,
    TextConfig,
    TextTowerConfig,
    TextTowerSettings,
)
from rice_jax.config.train import OptimizerConfig, TrainConfig

__all__ = [
    "PIXEL_STATISTICS",
    "TEXT_MODEL",
    "TOKENIZER_FILES",
    "TOKENIZER_FOLDER",
    "AggregationConfig",
    "AttentionConfig",
    "Config",
    "ConfigError",
    "CopeLossConfig",
    "CopeSettings",
    "DataConfig",
    "DetectionLossConfig",
    "DetectorConfig",
    "EncoderConfig",
    "EvalConfig",
    "FrameTransformerConfig",
    "IndexConfig",
    "InputConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PfrConfig",
    "PmdConfig",
    "SwinConfig",
    "SwinSettings",
    "TextConfig",
    "TextTowerConfig",
    "TextTowerSettings",
    "TrainConfig",
    "VitConfig",
    "default_config",
    "find_config",
    "load_config",
    "resolve",
]

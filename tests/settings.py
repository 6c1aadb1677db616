"""Small settings for tests."""

import functools

from rice_jax.config import Config, VitConfig
from rice_jax.models.create import AnyModelConfig
from rice_jax.tasks import TASKS, resolve


def small_config(**overrides) -> Config:
    """The defaults with a tiny model; `group__key=value` overrides one setting."""
    return resolve(small_values(**overrides))


def model_of(config: Config) -> AnyModelConfig:
    """The parts of the model that a run trains."""
    return TASKS[config.task].model(config)


def small_swin(**overrides) -> Config:
    """`small_config` with a Swin transformer of two stages, on grids of 8 and 4 with windows of 4."""
    vit = {f"model__{name}": getattr(VitConfig, name) for name in ("patch_size", "width", "layers", "heads")}
    sizes = dict(patch_size=2, width=8, depths="2,1", heads="2,4", window=4, mlp_ratio=2.0)
    swin = {f"model__swin__{name}": value for name, value in sizes.items()}
    return small_config(**{"model__architecture": "swin", "loss__pmd_weight": 0.0} | vit | swin | overrides)


def small_values(**overrides) -> dict:
    """What `small_config` resolves."""
    values = Config().to_dict()
    values["data"] |= dict(
        train="lpr4m/train", query="lpr4m/query", gallery="lpr4m/gallery", batch_size=8, num_frames=3, resize=20,
        num_workers=0, num_threads=1,
    )  # fmt: skip
    values["model"] |= dict(
        image_size=16, patch_size=8, width=32, layers=2, heads=2, embed_dim=16, dtype="float32"
    )  # fmt: skip
    values["model"]["pmd"]["num_heads"] = 2
    values["model"]["detector"] |= dict(width=32, layers=2, heads=2, num_queries=4, temporal_layers=1)
    values["optimizer"] |= dict(warmup_steps=2, encoder_learning_rate=1e-3)
    values["train"] |= dict(total_steps=6, log_interval_steps=2, checkpoint_interval_steps=2)
    values["eval"] |= dict(batch_size=8)
    for name, value in overrides.items():
        *groups, key = name.split("__")
        functools.reduce(dict.__getitem__, groups, values)[key] = value
    return values

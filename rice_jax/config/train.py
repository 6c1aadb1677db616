"""Settings of the optimizer and of the training loop."""

import dataclasses
from collections.abc import Iterator

from rice_jax.config.fields import setting

TRACKERS = ("tensorboard", "wandb", "mlflow")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    kind: str = setting(
        "reference",
        'Form of AdamW. "reference": epsilon before the bias correction, and biases do not decay. "adamw": as '
        "published, epsilon after the bias correction; everything decays.",
        choices=("reference", "adamw"),
    )
    encoder_learning_rate: float = setting(1e-6, "Peak learning rate of pretrained parts.", minimum=0)
    text_learning_rate: float = setting(
        0.0, "Peak learning rate of the text tower; 0: that of pretrained parts.", minimum=0
    )
    new_learning_rate: float = setting(1e-4, "Peak learning rate of parts that start from random weights.", minimum=0)
    between_frames: str = setting(
        "encoder",
        'Peak learning rate of an encoder\'s layers between frames (`config.model.architecture` "timesformer" or '
        '"xclip"). "encoder": that of pretrained parts, for weights that include these layers. "new": that of new '
        "parts, for weights of a picture encoder, which lack them.",
        choices=("encoder", "new"),
    )
    beta1: float = setting(0.9, "Decay of Adam's first moment.", minimum=0, below=1)
    beta2: float = setting(0.999, "Decay of Adam's second moment.", minimum=0, below=1)
    epsilon: float = setting(1e-6, "Adam's epsilon.", above=0)
    weight_decay: float = setting(0.2, "Decoupled weight decay.", minimum=0)
    clip_norm: float = setting(0.0, "Largest global gradient norm; 0: no clipping.", minimum=0)
    warmup_steps: int = setting(500, "Linear warm-up from 0; a cosine to 0 follows.", unit="steps", minimum=0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    total_steps: int = setting(
        5_000,
        "Length of the training. A run may be continued with more steps; its learning rates then follow the longer "
        "schedule from there on.",
        unit="steps",
        minimum=1,
    )
    log_interval_steps: int = setting(50, "Interval between log lines.", unit="steps", minimum=1, free=True)
    trackers: str = setting(
        "tensorboard",
        'Where metrics are shown, separated by commas: "tensorboard", "wandb", "mlflow"; "": only in `metrics.jsonl`.',
        free=True,
    )
    checkpoint_interval_steps: int = setting(500, "Interval between checkpoints.", unit="steps", minimum=1, free=True)
    eval_interval_steps: int = setting(
        0,
        "Interval between evaluations; 0: only before the first and after the last step.",
        unit="steps",
        minimum=0,
        free=True,
    )
    keep_checkpoints: int = setting(2, "Newest checkpoints to keep.", minimum=1, free=True)
    grad_cache_chunks: int = setting(
        1,
        "Encode a batch in this many chunks, and each chunk again for its gradients: the same losses and gradients "
        "with less memory and about a third more compute.",
        unit="chunks",
        minimum=1,
        free=True,
    )

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The names in `trackers`."""
        return tuple(name.strip() for name in self.trackers.split(",")) if self.trackers else ()

    def problems(self) -> Iterator[str]:
        """A line for what is wrong with the names of trackers."""
        names = self.tracker_names
        if not set(names) <= set(TRACKERS) or len(set(names)) < len(names):
            yield (
                f"config.train.trackers: found {self.trackers!r}, expected some of {', '.join(TRACKERS)}, each once, "
                "separated by commas"
            )

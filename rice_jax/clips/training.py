"""What a run on labeled clips trains: which clips are held out, and its settings."""

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rice_jax.clips.dataset import GALLERY, QUERY, TRAIN
from rice_jax.clips.evaluation import MIN_CLIPS
from rice_jax.clips.labels import Clip
from rice_jax.config import Config, ConfigError
from rice_jax.config.fields import build
from rice_jax.index.model import saved_settings
from rice_jax.index.store import About
from rice_jax.models.encoders import VIDEO_ENCODERS
from rice_jax.models.weights import parameter_names
from rice_jax.types import DataError

SHARE, MOST = 0.2, 1 / 3  # of the clips that are held out, at least and at most
EPOCHS, MIN_STEPS = 20, 100
BATCH_SIZE = 32  # unless the model was trained with another
NUM_FRAMES = 4  # likewise
NO_TEACHER = {"distill_weight": 0.0, "distill_direct_weight": 0.0}  # whose embeddings are those of other pictures

# Clips are few, so pictures vary more than in a large data set, and rates are those of fine-tuning.
RECIPE: dict[str, dict[str, Any]] = {
    "data": {
        "image_crop_min_area": 0.5,
        "frame_crop_min_area": 0.6,
        "color_jitter": 0.2,
        "random_frames": True,
        "cut_tail": False,
    },
    "optimizer": {
        "encoder_learning_rate": 1e-5,
        "new_learning_rate": 1e-4,
        "beta2": 0.98,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    },
}


def hold_out(clips: Sequence[Clip], share: float | None = None) -> tuple[list[Clip], list[Clip]]:
    """Divides clips by their films.

    Films are taken in an order that follows from their names alone, so that more clips of the same films change nothing
    about which are held out.

    Args:
        clips: at least one.
        share: of the clips, at least, that are held out, above 0 and below 1; but one film is left to train on, and if
            possible both parts show products. None = `SHARE`, or as many films more as hold enough clips for a
            calibration, if these are at most `MOST`, also of the clips that show a product.

    Returns:
        The clips to train on, and those held out, in their order.

    Raises:
        DataError: all are of one film.
    """
    films = sorted({clip.film for clip in clips}, key=lambda film: hashlib.sha256(film.encode()).digest())
    if len(films) < 2:
        raise DataError(
            f"found clips of one film, {films[0]}, expected at least two, since whole films are held out to evaluate "
            "on; label another film"
        )
    # With the first 1, 2, … films held out: how many clips, and how many of a product.
    num_held, num_shown = (
        list(itertools.accumulate(counts[film] for film in films[:-1]))
        for counts in (Counter(clip.film for clip in clips), Counter(clip.film for clip in clips if clip.product))
    )
    all_shown = sum(bool(clip.product) for clip in clips)
    last = len(films) - 2
    enough = [n for n, count in enumerate(num_held) if count / len(clips) >= (share or SHARE)] or [last]
    both = [n for n, count in enumerate(num_shown) if 0 < count < all_shown]
    chosen = next((n for n in both if n >= enough[0]), both[-1] if both else enough[0])
    if share is None:
        for n in range(chosen, last + 1):
            few = num_held[n] / len(clips) <= MOST and num_shown[n] <= MOST * all_shown
            if few and num_shown[n] >= MIN_CLIPS:
                chosen = n
                break
    held = set(films[: chosen + 1])
    return [clip for clip in clips if clip.film not in held], [clip for clip in clips if clip.film in held]


def run_settings(about: About, data_dir: Path, num_pairs: int, num_devices: int) -> Config:
    """The settings of a run on clips that starts from the model of an index.

    Args:
        about: the model; the settings that were saved with it are kept where clips allow it.
        data_dir: of the data sets.
        num_pairs: of the training set.
        num_devices: that share a batch.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
        ConfigError: there are too few pairs for the devices, or the model needs boxes or encodes videos as a whole.
    """
    source = Path(about.checkpoint)
    saved = saved_settings(source)
    data, model, loss = saved.get("data", {}), dict(saved["model"]), dict(saved.get("loss", {})) | NO_TEACHER
    if about.ipd != "off":
        raise ConfigError(
            f"{source}: was trained with config.model.ipd={about.ipd!r}, which needs boxes; clips have none"
        )
    if model.get("text", "off") != "off":
        raise ConfigError(
            f"{source}: its decoder reads texts (config.model.text={model['text']!r}), which labeled clips do not have"
        )
    if model.get("architecture") in VIDEO_ENCODERS:
        raise ConfigError(f"{source}: encodes a video as a whole, expected a model that recognition can use")
    if not any(name.startswith("pmd/") for name in parameter_names(source)):
        loss["pmd_weight"] = 0.0
    batch_size = min(data.get("batch_size", BATCH_SIZE), num_pairs) // num_devices * num_devices
    if batch_size < 2:
        raise ConfigError(
            f"found too few pairs of a clip and a picture ({num_pairs}) for the devices ({num_devices}); label more "
            "clips"
        )
    steps = max(MIN_STEPS, -(-EPOCHS * num_pairs // batch_size))
    values = {
        "data": RECIPE["data"]
        | {
            "data_dir": str(data_dir),
            "train": TRAIN,
            "query": QUERY,
            "gallery": GALLERY,
            "batch_size": batch_size,
            "num_frames": data.get("num_frames", min(NUM_FRAMES, about.num_frames)),
            "resize": about.resize,
            "num_threads": min(Config().data.num_threads, os.cpu_count() or 1),  # clips are small data on any machine
        },
        "model": model | {"init_from": str(source)},
        "loss": loss,
        "optimizer": RECIPE["optimizer"] | {"warmup_steps": steps // 10},
        "train": {"total_steps": steps, "log_interval_steps": 10, "checkpoint_interval_steps": max(10, steps // 10)},
        "eval": {"num_frames": about.num_frames},
    }
    return build(Config, values)


def config_file(config: Config) -> Iterator[str]:
    """The lines of a config file that sets what differs from the defaults."""
    yield '"""Settings of a run on labeled clips, written by `rice train CLIPS.csv`."""\n'
    yield "from rice_jax.config import default_config\n\n"
    yield "def get_config():"
    yield "    config = default_config()"
    yield from (f"    config.{name} = {value!r}" for name, value in _changes(config.to_dict(), Config().to_dict()))
    yield "    return config"


def _changes(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _changes(value, defaults[name], f"{prefix}{name}.")
        elif value != defaults[name]:
            yield f"{prefix}{name}", value

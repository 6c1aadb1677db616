"""The speed of training RICE, and of a step that matches as the reference does (`python scripts/benchmark.py step`)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from rice_jax.config import Config
from rice_jax.models.create import create_params
from rice_jax.parallel.mesh import BATCH
from rice_jax.tasks import TASKS
from rice_jax.tasks.start import run_optimizer
from rice_jax.train.state import create_state
from rice_jax.types import Batch
from scripts.benchmarks.compiled_step import abstract_rows, compiled_step, one_device
from scripts.benchmarks.least import least_operations
from scripts.benchmarks.naive import NaiveRice, PairwiseRice
from scripts.benchmarks.peaks import peak_operations
from scripts.benchmarks.timing import median, ratio, skip_too_large, take_turns

COLUMNS = {
    "pairs": "",
    "frames": "",
    "by": "",
    "pairs_per_second": ".2f",
    "per_core_second": ".2f",
    "of_naive": ".2f",
    "GFLOP_per_pair": ".1f",
    "TFLOP_per_second": ".3f",
    "utilization": ".1%",
}


def measure(
    configs: list[Config], rounds: int, seconds: float, profile: Path | None = None, alone: bool = False
) -> Iterator[dict]:
    """Trains on random pictures with our step and with the naive ones, in turns, on the first device.

    Args:
        configs: one for each batch size.
        rounds: number of measurements of each step.
        seconds: duration of a measurement.
        profile: directory for a trace of our step at each size; None = no trace.
        alone: measures our step only.

    Yields:
        The rows of the table.
    """
    for config in configs:
        with skip_too_large(f"{config.data.batch_size} pairs"):
            yield from _rows(config, rounds, seconds, profile, alone)


def _rows(config: Config, rounds: int, seconds: float, profile: Path | None, alone: bool) -> Iterator[dict]:
    """The rows of one batch size; frees the device's memory afterwards."""
    device, pairs = jax.devices()[0], config.data.batch_size
    peak, operations = peak_operations(device, config.model.dtype), None
    if config.model.architecture == "vit":
        operations = sum(least_operations(config).values()) / pairs
    tasks = training_tasks(config, alone)
    results = take_turns(tasks, pairs, rounds, seconds)
    if profile:
        with jax.profiler.trace(str(profile / f"batch{pairs}")):
            tasks["ours"](3)
    for name, speeds in results.items():
        rate = median(speeds).per_second * operations if operations else None
        yield {
            "pairs": pairs,
            "frames": config.data.num_frames,
            "by": name,
            "pairs_per_second": median(speeds).per_second,
            "per_core_second": median(speeds).per_core_second if device.platform == "cpu" else None,
            "of_naive": ratio(speeds, results["naive"]).per_second if "naive" in results else None,
            "GFLOP_per_pair": operations / 1e9 if operations else None,
            "TFLOP_per_second": rate / 1e12 if rate else None,
            "utilization": rate / peak if rate and peak else None,
        }


def training_tasks(config: Config, alone: bool) -> dict[str, Callable[[int], None]]:
    """The steps; they train the same state in turns, which saves the memory of a second one."""
    mesh, parts = one_device(), TASKS[config.task].model(config)
    optimizer = run_optimizer(config, parts, mesh)
    models = {"ours": None} if alone else {"ours": None, "naive": NaiveRice, "pairwise": PairwiseRice}
    steps = {name: compiled_step(config, model) for name, model in models.items()}
    state = create_state(create_params(parts, mesh, config.seed), optimizer, mesh)
    batch = jax.device_put(random_batch(config), NamedSharding(mesh, BATCH))

    def task(step: jax.stages.Compiled) -> Callable[[int], None]:
        def repeat_step(times: int) -> None:
            nonlocal state
            for _ in range(times):
                state, _ = step(state, batch)
            jax.block_until_ready(state)

        return repeat_step

    return {name: task(step) for name, step in steps.items()}


def random_batch(config: Config) -> Batch | dict[str, Any]:
    """A full batch of noise, of different products."""
    rng, shapes = np.random.default_rng(0), abstract_rows(config)

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.dtype == jnp.uint8:
            return rng.integers(0, 256, leaf.shape, np.uint8)
        return np.ones(leaf.shape, leaf.dtype)

    numbers = np.arange(config.data.batch_size, dtype=np.int32)
    names = {"image_key", "product", "index"} & shapes.keys()
    return jax.tree.map(fill, shapes) | dict.fromkeys(names, numbers)

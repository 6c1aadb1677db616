"""The speed of encoding pictures, here and in PyTorch (`python scripts/benchmark.py encode`)."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rice_jax.config import VitConfig
from rice_jax.models.encoders.vit import Vit
from scripts.benchmarks.peaks import peak_operations
from scripts.benchmarks.timing import Speed, median, ratio, repeat, skip_too_large, take_turns

COLUMNS = {
    "batch": "",
    "work": "18",
    "by": "14",
    "pictures_per_second": ".1f",
    "per_core_second": ".1f",
    "of_torch_float32": ".2f",
    "of_torch_bfloat16": ".2f",
    "GFLOP_per_picture": ".2f",
    "TFLOP_per_second": ".3f",
    "utilization": ".1%",
}
WORKS = ("forward", "forward + backward")
TORCH_DTYPES = ("float32", "bfloat16")


def measure(
    config: VitConfig,
    batches: list[int],
    operations: Mapping[str, float],
    cores: int,
    rounds: int,
    seconds: float,
    profile: Path | None = None,
) -> Iterator[dict]:
    """Encodes random pictures with our encoder and, if PyTorch is installed, with transformers'; they take turns.

    Args:
        config: of the encoder.
        batches: batch sizes.
        operations: fewest operations in matrix products per picture, for each of `WORKS`.
        cores: threads that PyTorch may use.
        rounds: number of measurements of each.
        seconds: duration of a measurement.
        profile: directory for a trace of our encoder at each size; None = no trace.

    Yields:
        The rows of the table.
    """
    encoders = {f"ours {config.dtype}": our_encoder(config)}
    if missing_torch(jax.devices()[0]) is None:
        encoders |= {f"torch {dtype}": torch_encoder(config, dtype, cores) for dtype in torch_dtypes()}
    for batch in batches:
        shape = (batch, config.image_size, config.image_size, 3)
        pictures = np.random.default_rng(0).standard_normal(shape, np.float32)
        for work in WORKS:
            with skip_too_large(f"{batch} pictures, {work}"):
                tasks = {name: encoder(pictures, work) for name, encoder in encoders.items()}
                results = take_turns(tasks, batch, rounds, seconds)
                if profile:
                    with jax.profiler.trace(str(profile / f"batch{batch}-{work.replace(' + ', '-')}")):
                        tasks[f"ours {config.dtype}"](3)
                for name in results:
                    yield {"batch": batch, "work": work, "by": name, **_figures(name, results, operations[work])}


def _figures(name: str, results: dict[str, list[Speed]], operations: float) -> dict:
    """The row of an encoder.

    Args:
        name: of the encoder, which ends in its dtype.
        results: of all encoders.
        operations: per picture.
    """
    device, speed = jax.devices()[0], median(results[name])
    peak, rate = peak_operations(device, name.split()[-1]), speed.per_second * operations
    of_torch = {
        f"of_torch_{dtype}": ratio(results[name], results[other]).per_second if other in results else None
        for dtype, other in ((dtype, f"torch {dtype}") for dtype in TORCH_DTYPES)
    }
    return {
        "pictures_per_second": speed.per_second,
        "per_core_second": speed.per_core_second if device.platform == "cpu" else None,
        **of_torch,
        "GFLOP_per_picture": operations / 1e9,
        "TFLOP_per_second": rate / 1e12,
        "utilization": rate / peak if peak else None,
    }


def missing_torch(device: jax.Device) -> str | None:
    """Why PyTorch cannot be compared; None = it can."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return "PyTorch or transformers is not installed"
    import torch

    if device.platform != "cpu" and not torch.cuda.is_available():
        return f"PyTorch finds no device like {device.device_kind}"
    return None


def torch_dtypes() -> tuple[str, ...]:
    """The dtypes in which PyTorch is measured: without AVX-512, a CPU takes minutes for a batch in bfloat16."""
    import torch

    slow = not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return TORCH_DTYPES[:1] if slow else TORCH_DTYPES


def our_encoder(config: VitConfig) -> Callable[[np.ndarray, str], Callable[[int], None]]:
    """Makes tasks with our encoder, with random weights, on the first device."""
    create = lambda: Vit(config, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef = nnx.split(nnx.eval_shape(create))[0]
    params = jax.jit(lambda: nnx.split(create())[1])()
    forward = jax.jit(lambda params, pictures: nnx.merge(graphdef, params)(pictures)[1])
    backward = jax.jit(
        jax.grad(lambda params, pictures: jnp.square(forward(params, pictures).astype(jnp.float32)).sum())
    )

    def task(pictures: np.ndarray, work: str) -> Callable[[int], None]:
        placed = jax.device_put(pictures)
        return repeat(lambda: (forward if work == "forward" else backward)(params, placed))

    return task


def torch_encoder(config: VitConfig, dtype: str, cores: int) -> Callable[[np.ndarray, str], Callable[[int], None]]:
    """Makes tasks with transformers' encoder of the same sizes, with random weights, on a GPU if there is one."""
    import torch
    from transformers import CLIPVisionModelWithProjection

    torch.set_num_threads(cores)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CLIPVisionModelWithProjection(vision_config(config)).to(device, getattr(torch, dtype))

    def task(pictures: np.ndarray, work: str) -> Callable[[int], None]:
        placed = torch.from_numpy(pictures).movedim(-1, 1).contiguous().to(device, model.dtype)

        def repeat_work(times: int) -> None:
            with torch.inference_mode() if work == "forward" else contextlib.nullcontext():
                for _ in range(times):
                    features = model(placed).image_embeds
                    if work != "forward":
                        model.zero_grad()
                        features.float().square().sum().backward()
            if device == "cuda":
                torch.cuda.synchronize()

        return repeat_work

    return task


def vision_config(config: VitConfig):
    """The sizes as a configuration of transformers."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        projection_dim=config.embed_dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )

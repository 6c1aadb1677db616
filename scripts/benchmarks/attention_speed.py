"""The speed of an encoder's attention by the compiler and by cuDNN (`python scripts/benchmark.py attention`)."""

import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from rice_jax.config import VitConfig
from scripts.benchmarks.encode_speed import WORKS
from scripts.benchmarks.timing import median, ratio, repeat, skip_too_large, take_turns

COLUMNS = {
    "batch": "",
    "tokens": "",
    "work": "18",
    "by": "",
    "pictures_per_second": ".0f",
    "of_xla": ".2f",
}
IMPLEMENTATIONS = ("xla", "cudnn")  # as `jax.nn.dot_product_attention` calls them; ours is the first


def measure(config: VitConfig, batches: list[int], rounds: int, seconds: float) -> Iterator[dict]:
    """Computes the attention of one block on random tokens with each implementation, in turns, on the first device.

    Args:
        config: of the encoder.
        batches: numbers of pictures.
        rounds: number of measurements of each.
        seconds: duration of a measurement.

    Yields:
        The rows of the table.
    """
    tokens = config.num_patches + config.class_token + config.registers
    for batch in batches:
        shape = batch, tokens, config.heads, config.width // config.heads
        for work in WORKS:
            with skip_too_large(f"{batch} pictures, {work}"):
                tasks = {name: task for name in IMPLEMENTATIONS if (task := _task(name, shape, config.dtype, work))}
                results = take_turns(tasks, batch, rounds, seconds)
                for name, speeds in results.items():
                    yield {
                        "batch": batch,
                        "tokens": tokens,
                        "work": work,
                        "by": name,
                        "pictures_per_second": median(speeds).per_second,
                        "of_xla": ratio(speeds, results["xla"]).per_second,
                    }


def _task(name: str, shape: tuple[int, ...], dtype: str, work: str) -> Callable[[int], None] | None:
    """Repeats the attention; None = there is no such implementation for this device and these shapes."""
    queries, keys, values = jax.random.normal(jax.random.key(0), (3, *shape), jnp.dtype(dtype))
    forward = lambda *inputs: jax.nn.dot_product_attention(*inputs, implementation=name)  # noqa: E731
    backward = jax.grad(lambda *inputs: forward(*inputs).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    compute = jax.jit(forward if work == "forward" else backward)
    try:
        jax.block_until_ready(compute(queries, keys, values))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if name == "xla":
            raise
        print(f"{name}, {work}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return repeat(lambda: compute(queries, keys, values))

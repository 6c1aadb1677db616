"""Tells how many live streams a machine like this one can follow, and how many machines a given number needs.

    python scripts/benchmarks/stream_capacity.py --index=DIR [--streams=1000] [--seconds=20]

Measures what a frame costs the engine of an index: decoding a JPEG of 720 × 1280, encoding it in batches, and ranking
its stream's last frames. Then it simulates streams that send a frame every second, each at a moment of its own. As in
the server, frames that have come while a batch was encoded are encoded in the next one (`rice_jax.serving.batching`).
For several limits of the 99th percentile of the latency, from sending a frame to its ranking, it prints the largest
number of streams, and the latencies. The last columns show how far the simulation holds: they are of following as many
streams, but at most 500, for some seconds, with a thread for each and the server's own batches. HTTP, and decoding
video files, come on top.

On an accelerator, decoding and ranking take place on the cores while the accelerator encodes the next batch.
"""

import argparse
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from rice_jax.models.weights import CheckpointError
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.stream import Stream
from rice_jax.serving.batching import Batcher
from rice_jax.types import DataError
from scripts.benchmarks.live_speed import NUM_PICTURES, TOP, jpeg
from scripts.benchmarks.timing import print_rows

SIZES = 1, 2, 4, 8, 16  # of batches: those of `rice serve`
LIMITS = 0.05, 0.1, 1.0  # seconds, for the 99th percentile
SIMULATED, IGNORED = 20, 5  # seconds; queues are empty at first
THREADS = 500  # streams that are followed at most, with a thread each
COLUMNS = {
    "p99_limit_ms": ".0f",
    "streams": "",
    "machines": "",
    "busy": ".0%",
    "frames_a_batch": ".1f",
    "median_ms": ".0f",
    "p99_ms": ".0f",
    "measured_median_ms": ".0f",
    "measured_p99_ms": ".0f",
}


class Costs(NamedTuple):
    """Seconds that a machine takes with all its cores, or with its accelerator.

    Attributes:
        frame: to decode a frame and rank its stream, on the cores.
        encode: to encode a batch, by its size.
        accelerated: whether an accelerator encodes while the cores do the rest.
    """

    frame: float
    encode: Mapping[int, float]
    accelerated: bool

    def batch(self, size: int) -> float:
        """Seconds from one batch to the next."""
        frames = size * self.frame
        return max(self.encode[size], frames) if self.accelerated else self.encode[size] + frames


class Load(NamedTuple):
    """How a machine follows some streams."""

    latencies: Float[np.ndarray, " n"]  # seconds, of each frame
    busy: float  # share of the time
    frames_a_batch: float

    @property
    def p99(self) -> float:
        """The 99th percentile of the latency, in seconds."""
        return float(np.percentile(self.latencies, 99))


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=1000, help="streams to follow in all (default: 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement, for medians (default: 5)")
    parser.add_argument("--seconds", type=float, default=20, help="time for which streams are followed (default: 20)")
    options = parser.parse_args(arguments)
    if options.streams < 1 or options.rounds < 1 or not options.seconds > 0:
        parser.error("expected --streams and --rounds of 1 or more, and --seconds above 0")
    try:
        engine = Engine(options.index, batch_sizes=SIZES)
    except (CheckpointError, DataError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    pictures = [jpeg(seed) for seed in range(NUM_PICTURES)]
    costs = measure(engine, pictures, options.rounds)
    encode = ", ".join(f"{1000 * seconds:.1f} ms for {size}" for size, seconds in costs.encode.items())
    print(f"a frame takes {1000 * costs.frame:.1f} ms beside its encoding, and the encoding of a batch {encode}")
    about = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "images": len(engine.index.vectors)}
    print_rows(COLUMNS, rows(engine, pictures, costs, options.streams, options.seconds), **about)


def rows(engine: Engine, pictures: list[bytes], costs: Costs, streams: int, seconds: float) -> Iterator[dict]:
    """The rows of the table; most cells of a limit that even one stream exceeds are empty."""
    for limit in LIMITS:
        row = dict.fromkeys(COLUMNS) | {"p99_limit_ms": 1000 * limit, "streams": largest(costs, limit)}
        if most := row["streams"]:
            load, measured = simulate(costs, most), follow(engine, pictures, min(most, THREADS), seconds)
            row |= {
                "machines": math.ceil(streams / most),
                "busy": load.busy,
                "frames_a_batch": load.frames_a_batch,
                "median_ms": 1000 * float(np.median(load.latencies)),
                "p99_ms": 1000 * load.p99,
                "measured_median_ms": 1000 * float(np.median(measured)),
                "measured_p99_ms": 1000 * float(np.percentile(measured, 99)),
            }
        yield row


def measure(engine: Engine, pictures: list[bytes], rounds: int, frames: int = 64) -> Costs:
    """Measures the costs of frames, on all cores at once."""
    cores = os.cpu_count() or 1
    prepared = [engine.prepare(picture) for picture in pictures]
    encoded = engine.encode(np.stack((prepared * engine.num_frames)[: engine.num_frames]))

    def decode_and_rank(place: int) -> None:
        engine.prepare(pictures[place % len(pictures)])
        engine.rank(encoded, None, TOP)

    def seconds(call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def encode(size: int) -> float:
        batch = np.stack([prepared[place % len(prepared)] for place in range(size)])
        return statistics.median(seconds(lambda: jax.device_get(engine.encode(batch))) for _ in range(rounds))

    with ThreadPoolExecutor(cores) as pool:
        taken = [seconds(lambda: list(pool.map(decode_and_rank, range(frames)))) for _ in range(rounds)]
    on_cores = jax.devices()[0].platform == "cpu"
    return Costs(statistics.median(taken) / frames, {size: encode(size) for size in SIZES}, accelerated=not on_cores)


def simulate(costs: Costs, streams: int, seed: int = 0) -> Load:
    """Simulates a machine that follows streams of one frame a second."""
    moments = np.random.default_rng(seed).random(streams)
    sent = np.sort((moments + np.arange(SIMULATED)[:, None]).ravel())
    latencies, taken, batches, busy, now = np.empty(len(sent)), 0, 0, 0.0, 0.0
    while taken < len(sent):
        now = max(now, sent[taken])
        waiting = int(np.searchsorted(sent, now, side="right")) - taken
        size = max(size for size in costs.encode if size <= waiting)
        latencies[taken : taken + size] = now + costs.encode[size] + size * costs.frame - sent[taken : taken + size]
        busy, now = busy + costs.batch(size), now + costs.batch(size)
        taken, batches = taken + size, batches + 1
    return Load(latencies[sent >= IGNORED], busy / max(now, SIMULATED), len(sent) / batches)


def largest(costs: Costs, limit: float) -> int:
    """The largest number of streams, at most 100,000, whose latency stays within a limit in seconds."""
    fewest, most = 0, min(100_000, math.ceil(max(size / costs.batch(size) for size in costs.encode)))
    while fewest < most:
        middle = (fewest + most + 1) // 2
        fewest, most = (middle, most) if simulate(costs, middle).p99 <= limit else (fewest, middle - 1)
    return fewest


def follow(
    engine: Engine, pictures: list[bytes], streams: int, seconds: float, seed: int = 0
) -> Float[np.ndarray, " n"]:
    """Follows streams by a thread for each, whose frames are encoded together; returns the frames' latencies."""
    moments = np.random.default_rng(seed).random(streams)
    batcher, lock, latencies = Batcher(SIZES), threading.Lock(), []
    begin = time.perf_counter() + 1

    def run(number: int) -> None:
        stream = Stream(engine.num_frames)
        for second in range(math.ceil(seconds)):
            sent = begin + moments[number] + second
            time.sleep(max(0.0, sent - time.perf_counter()))
            window, _ = stream.window(float(second))
            picture = engine.prepare(pictures[(number + second) % len(pictures)])
            window.put(float(second), batcher.encode_and_wait(engine, [picture]))
            kept = window.frames()
            assert kept is not None
            engine.rank(kept[1], None, TOP, kept[0])
            with lock:
                latencies.append(time.perf_counter() - sent)

    try:
        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(run, range(streams)))
    finally:
        batcher.close()
    return np.array(latencies)


if __name__ == "__main__":
    main()

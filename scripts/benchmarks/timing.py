"""Measures tasks in turns, so that the ratios of their speeds are robust to other load on the machine."""

import collections
import contextlib
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax


class Speed(NamedTuple):
    """Units per second, and per second of a core's time, which other programs hardly affect."""

    per_second: float
    per_core_second: float


def take_turns(
    tasks: Mapping[str, Callable[[int], None]], units: int, rounds: int, seconds: float
) -> dict[str, list[Speed]]:
    """Measures each task once a round, each time after a repetition that is not measured.

    Memory that a task has freed goes back to the system during the turns of others, and from a virtual machine to its
    host, so that the first repetition of a turn takes longer than those of a program that runs alone.

    Args:
        tasks: functions of a number of repetitions, which return when the work is done.
        units: number of units per repetition, for example of pictures.
        rounds: number of measurements of each.
        seconds: duration of a measurement; a single repetition may take longer.

    Returns:
        The speeds of each task, one for each round.
    """
    times = {}
    for name, task in tasks.items():
        task(1)  # compiles, allocates, or wakes the threads
        start = time.perf_counter()
        task(1)
        times[name] = max(1, round(seconds / (time.perf_counter() - start)))
    results = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            task(1)
            start, core_start = time.perf_counter(), time.process_time()
            task(times[name])
            count = units * times[name]
            results[name].append(
                Speed(count / (time.perf_counter() - start), count / (time.process_time() - core_start))
            )
    return results


def repeat(call: Callable[[], jax.Array | dict]) -> Callable[[int], None]:
    """A task that repeats a call; an accelerator has at most one further call queued.

    A CPU would compute a queued call at the same time, and both would take longer. Steps of training do not overlap,
    since each needs the result of the one before. Nor is a result kept during the next call: a step frees its state.
    """
    num_queued = 0 if jax.default_backend() == "cpu" else 1

    def task(times: int) -> None:
        running = collections.deque()
        for _ in range(times):
            running.append(call())
            if len(running) > num_queued:
                jax.block_until_ready(running.popleft())
        jax.block_until_ready(list(running))

    return task


def median(results: list[Speed]) -> Speed:
    """The medians over the rounds."""
    return Speed(*map(statistics.median, zip(*results, strict=True)))


def ratio(results: list[Speed], others: list[Speed]) -> Speed:
    """The medians over the rounds of the ratios, by wall-clock time and by core-seconds."""
    return median([Speed(*(a / b for a, b in zip(*pair, strict=True))) for pair in zip(results, others, strict=True)])


@contextlib.contextmanager
def skip_too_large(what: str) -> Iterator[None]:
    """Reports what does not fit on the device, and continues."""
    try:
        yield
    except RuntimeError as error:  # JAX's and PyTorch's are
        if not re.search("RESOURCE_EXHAUSTED|out of memory", str(error)):
            raise
        print(f"{what}: more memory than there is", file=sys.stderr)


@contextlib.contextmanager
def on_cores(number: int | None) -> Iterator[int]:
    """Restricts this process, and those that it starts, to a number of cores; the default is all.

    Yields:
        The number of cores. Libraries that start a thread per core then start no more than that.
    """
    own = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, own[:number])
    try:
        yield len(own[:number])
    finally:
        os.sched_setaffinity(0, own)


def print_rows(formats: Mapping[str, str], rows: Iterable[Mapping], **about) -> None:
    """Prints a table, each row as soon as it is available, and then a line of JSON with the same values.

    Args:
        formats: of the columns, by name; a number at the beginning is the minimum width.
        rows: values by the same names; None = unknown, the cell stays empty.
        about: facts about all rows, for the JSON.
    """
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    widths = {name: max(len(name), 8, *map(int, re.findall(r"^\d+", kind))) + 2 for name, kind in formats.items()}
    print("".join(f"{name.replace('_', ' '):>{width}}" for name, width in widths.items()), flush=True)
    done = []
    for row in rows:
        done.append({name: row[name] for name in formats})
        cells = {name: "" if row[name] is None else format(row[name], formats[name]) for name in formats}
        print("".join(f"{cells[name]:>{width}}" for name, width in widths.items()), flush=True)
    print(json.dumps(about | {"rows": done}))

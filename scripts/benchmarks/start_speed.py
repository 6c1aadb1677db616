"""Measures how long `rice recognize` takes from the command to its first line, and what the start takes of it.

    python scripts/benchmarks/start_speed.py VIDEO --index=DIR [--rounds=5]

In each round, in turns: importing the command; the command with an empty cache of compiled programs (`cold`); and the
command again, with the cache that it has filled (`warm`). Files are read from the page cache. Besides the time to the
first line, the table has the core-seconds of the whole command, which other programs on the machine hardly affect. The
lines are printed when the whole video is encoded, so the video should be short. Values are medians over the rounds. It
prints a table and the same numbers as a line of JSON, and needs Linux or macOS.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    imports = [sys.executable, "-c", "import rice_jax.recognize; print()"]
    command = [sys.executable, "-m", "rice_jax.recognize", str(options.video), f"--index={options.index}"]
    costs: dict[str, list[tuple[float, float]]] = {"imports": [], "cold": [], "warm": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name, own in (("imports", imports), ("cold", command), ("warm", command)):
                costs[name].append(measure(own, cache))
    rows = {
        name: {
            "seconds_to_first_line": statistics.median(seconds for seconds, _ in own),
            "core_seconds": statistics.median(cores for _, cores in own),
        }
        for name, own in costs.items()
    }
    print(f"{'':10}{'seconds to the first line':>28}{'core-seconds':>16}")
    for name, row in rows.items():
        print(f"{name:10}{row['seconds_to_first_line']:28.2f}{row['core_seconds']:16.2f}")
    print(json.dumps({"cores": os.cpu_count(), **rows}))


def measure(command: list[str], cache: str) -> tuple[float, float]:
    """Runs a command; returns the seconds to its first line, and the core-seconds of all of it."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": cache, "PYTHONPATH": str(ROOT)}  # the package need not be installed
    before, start = _core_seconds(), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        line, seconds = process.stdout.readline(), time.perf_counter() - start
        _, errors = process.communicate()
    if process.returncode or not line:
        sys.exit(errors.decode() or f"{command}: printed nothing")
    return seconds, _core_seconds() - before


def _core_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()

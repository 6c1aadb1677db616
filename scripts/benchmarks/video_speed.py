"""Measures how fast the frames of a video file are read, beside PyAV's bare decoding.

    python scripts/benchmarks/video_speed.py VIDEO [--interval_seconds=1] [--rounds=5]

In each round, in turns: PyAV decodes all frames, with as many threads as `read_video` gives the decoder, and nothing
else is done; `read_video` looks at a frame of each interval; and it looks at every frame. What is looked at becomes
upright RGB. Speeds are in frames of the file, medians over the rounds, and ratios are of the same round; the file is
read from the page cache. It prints a table and the same numbers as a line of JSON.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the package need not be installed

import av

from rice_jax.recognition.container import THREADS
from rice_jax.recognition.video import read_video
from rice_jax.types import DataError
from scripts.benchmarks.timing import median, on_cores, print_rows, ratio, take_turns

COLUMNS = {
    "by": "34",
    "frames_per_second": ",.0f",
    "per_core_second": ",.0f",
    "of_pyav": ".2f",
    "of_pyav_per_core_second": ".2f",
}


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--interval_seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: found {options.rounds}, expected 1 or more")
    try:
        about = describe(options.video)
    except (OSError, DataError) as error:
        sys.exit(f"error: {error}")
    ways = {
        "PyAV, every frame": lambda _: decode(options.video),
        f"read_video, every {options.interval_seconds:g} s": lambda _: read(options.video, options.interval_seconds),
        "read_video, every frame": lambda _: read(options.video, 1 / about["rate"]),
    }
    with on_cores(None) as cores:
        speeds = take_turns(ways, about["frames"], options.rounds, seconds=0)
    bare, rows = next(iter(speeds.values())), []
    for name, results in speeds.items():
        rows.append(dict(zip(COLUMNS, (name, *median(results), *ratio(results, bare)), strict=True)))
    print_rows(COLUMNS, rows, cores=cores, **about)


def describe(path: Path) -> dict:
    """What the video is.

    Raises:
        DataError: it cannot be decoded.
    """
    for _ in read_video(path):  # says what is wrong with it
        pass
    with av.open(path) as container:
        stream = container.streams.video[0]
        kinds = [frame.key_frame for frame in container.decode(stream)]
        return {
            "codec": stream.codec_context.name,
            "size": f"{stream.width} x {stream.height}",
            "rate": float(stream.average_rate or 25),
            "frames": len(kinds),
            "key_frames": sum(kinds),
        }


def decode(path: Path) -> None:
    """Decodes all frames of a video, and does nothing else."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", THREADS
        for _ in container.decode(stream):
            pass


def read(path: Path, interval_seconds: float) -> None:
    """Looks at a frame of each interval."""
    for _ in read_video(path, interval_seconds):
        pass


if __name__ == "__main__":
    main()

"""Says which of a shop's products a video shows, from when to when.

    python -m rice_jax.recognize VIDEO --index=DIR [--gallery=ID] [--top=5] [--rerank=50] [--report=out.html]

VIDEO is a video, a directory of frames, or a text file (.txt) with the path of a frame on each line. DIR is what
`python -m rice_jax.main --mode=index` wrote. For each part of the video stdout gets a line of JSON: `start` and `end`
in seconds; `product`, an image of the index, or null where none of them is shown; `confidence`, the probability of
that; and `products`, the images most similar to the frames of the part, each with its `score` and `confidence`.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rice_jax.models.weights import CheckpointError
from rice_jax.pages.album import thumbnail
from rice_jax.pages.timeline import Small, Video, write_timeline
from rice_jax.parallel.compilation import keep_compiled
from rice_jax.recognition.engine import Engine, Match
from rice_jax.recognition.recognizer import Shown, encode_video, products_over_time
from rice_jax.recognition.video import Frame, read_video
from rice_jax.types import DataError

BATCH_SIZE = 8  # frames that are encoded at once


def main(arguments: list[str] | None = None) -> None:
    """Prints the lines.

    Args:
        arguments: of the command line, `sys.argv[1:]` by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a video, a directory of frames, or a list of them")
    parser.add_argument("--index", required=True, type=Path, help="directory of the index")
    parser.add_argument("--checkpoint", type=Path, help="the run that made it (default: where it was then)")
    parser.add_argument("--gallery", help="only the images of this one may be shown (default: all)")
    parser.add_argument("--top", type=int, default=5, help="images to name for each part (default: 5)")
    parser.add_argument("--rerank", type=int, default=0, help="let the decoder re-order so many first images")
    parser.add_argument("--interval_seconds", type=float, default=1.0, help="between the frames (default: 1)")
    parser.add_argument("--report", type=Path, help="also write a page to this file")
    options = parser.parse_args(arguments)
    if options.top < 1 or options.rerank < 0 or not options.interval_seconds > 0:
        parser.error("expected --top of 1 or more, --rerank of 0 or more, and --interval_seconds above 0")
    keep_compiled()
    try:
        recognize(**vars(options))
    except (CheckpointError, DataError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def recognize(
    video: Path,
    *,
    index: Path,
    checkpoint: Path | None,
    gallery: str | None,
    top: int,
    rerank: int,
    interval_seconds: float,
    report: Path | None,
) -> None:
    """Prints a line for each part of a video, and writes the page if asked for."""
    engine = Engine(index, model=checkpoint, rerank=rerank, batch_sizes=(BATCH_SIZE,))
    engine.rows(gallery)  # is there
    small: list[Small] = []

    def frames() -> Iterator[Frame]:
        for frame in read_video(video, interval_seconds):
            if report:
                with contextlib.suppress(Exception):  # a broken one the engine refuses, and says which
                    small.append(thumbnail(frame.picture))
            yield frame

    times, encoded = encode_video(engine, frames(), BATCH_SIZE)
    shown = products_over_time(engine, times, encoded, gallery=gallery, top=top, interval_seconds=interval_seconds)
    for part in shown:
        print(json.dumps(as_json(part), ensure_ascii=False, allow_nan=False))
    if report:
        write_timeline(report, Video(video.name, shown, times, small), engine.index, gallery)
        print(report, file=sys.stderr)


def as_json(part: Shown) -> dict:
    """What a line says; four places of a score are enough."""

    def rounded(number: float | None) -> float | None:
        return None if number is None else round(number, 4)

    def named(match: Match) -> dict:
        return match._asdict() | {"score": rounded(match.score), "confidence": rounded(match.confidence)}

    return {
        "start": rounded(part.start),
        "end": rounded(part.end),
        "product": part.product and named(part.product),
        "confidence": rounded(part.confidence),
        "products": [named(match) for match in part.products],
    }


if __name__ == "__main__":
    main()

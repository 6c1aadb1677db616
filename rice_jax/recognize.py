"""Recognizes the products in a video.

    python -m rice_jax.recognize VIDEO --index=DIR [--gallery=ID] [--top=5] [--rerank=50] [--report=out.html]
    python -m rice_jax.recognize --follow=URL --index=DIR [--webhook=URL]

VIDEO is a video, a directory of frames, or a text file (.txt) with the path of one frame on each line. DIR is the index
of a shop. Each part of the video is printed as one line of JSON: `start` and `end` in seconds; `product`, the one that
is shown, or null if it is none of the index or too uncertain to be named; `confidence`, the probability that this is
right; and `products`, those most similar to the frames of the part, each with its `score`, `confidence`, most similar
image (`image_id`), and the further columns of the shop's CSV (`fields`). `--where=COLUMN=VALUE` searches only some of
the products. With `--subtitles=FILE`, a line also has `speech`, what is said meanwhile. With `--store=milvus --uri=URI`
in place of `--index`, the index is in Milvus; a live stream reads its gallery from there first.

With `--follow`, a live stream takes the place of the video, and a line is printed when a product is shown or gone.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rice_jax.commands.errors import errors_in_one_line
from rice_jax.commands.naming_flags import add_naming_flags, naming_of
from rice_jax.index.milvus import MAX_LIMIT, NAME, MilvusIndex
from rice_jax.index.store import Index
from rice_jax.logs import warnings_to_stderr
from rice_jax.parallel.compilation import keep_compiled
from rice_jax.recognition.candidates import LIMIT, find_candidates
from rice_jax.recognition.container import Reading
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.lines import segment_line
from rice_jax.recognition.products import parse_where
from rice_jax.recognition.recognizer import encode_video, products_over_time
from rice_jax.recognition.speech import said_around
from rice_jax.recognition.subtitles import Sentence, confident, read_subtitles
from rice_jax.recognition.video import Frame, read_video, require_video
from rice_jax.types import DataError

if TYPE_CHECKING:
    from rice_jax.pages.timeline import Small

BATCH_SIZE = 8  # frames encoded together
DESCRIPTION = """\
Finds which product of a shop a video shows, and from when to when.

Each part of the video is printed as one line of JSON: start and end in
seconds, the product (null = none of the shop's, or too uncertain to name), the
confidence that this is right, and the most similar products with their scores.
With --follow, a line is printed when a product is shown or gone.
"""


def main(arguments: list[str] | None = None, prog: str = "python -m rice_jax.recognize") -> None:
    """Runs the command.

    Args:
        arguments: the command line; None = `sys.argv[1:]`.
        prog: name of the command in its help text.
    """
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    if options.top < 1 or options.rerank < 0 or not 0 < options.interval_seconds < math.inf:
        parser.error("expected --top of 1 or more, --rerank of 0 or more, and a finite --interval_seconds above 0")
    try:
        options.where = parse_where(options.where)
    except DataError as error:
        parser.error(f"--{error}")
    if (options.index is None) == (options.store is None) or (options.store is None) != (options.uri is None):
        parser.error("expected --index, or --store=milvus and --uri")
    if options.store and options.rerank:
        parser.error("expected no --rerank with --store=milvus, which holds nothing to re-rank with; use --index")
    if not 1 <= options.candidates <= MAX_LIMIT:
        parser.error(f"expected --candidates of 1 to {MAX_LIMIT}")
    if options.follow is None and (options.webhook or options.listen):
        parser.error("expected --webhook and --listen only with --follow")
    if options.follow is not None and options.report:
        parser.error("expected no --report with --follow, since a live stream has no end")
    if options.follow is not None and options.subtitles:
        parser.error("expected no --subtitles with --follow, whose times are not known before it ends")
    if not 0 <= options.min_speech <= 1 or (options.min_speech and not options.subtitles):
        parser.error(f"--min_speech={options.min_speech:g}: expected 0 to 1, and only with --subtitles")
    if options.report and options.report.is_dir():
        parser.error(f"--report={options.report}: is a directory, expected a file")
    if options.report and options.video.exists() and options.report.exists() and options.report.samefile(options.video):
        parser.error(f"--report={options.report}: is the video, expected another file")
    keep_compiled()
    with errors_in_one_line():
        if options.follow is not None:
            from rice_jax.commands.follow import follow_live

            with warnings_to_stderr(timed=True):
                follow_live(options, lambda: _engine(options, (1, BATCH_SIZE), _stored_gallery(options)))
            return
        with warnings_to_stderr():
            recognize(options)


def recognize(options: argparse.Namespace) -> None:
    """Prints one line for each part of the video, and writes the page if `options.report` is set."""
    require_video(options.video)  # before the model is loaded
    speech = _speech(options.subtitles, options.min_speech) if options.subtitles else None
    stored = MilvusIndex(options.uri, options.collection) if options.store else None
    engine = _engine(options, (BATCH_SIZE,), stored.first() if stored else None)
    thumbnails: dict[float, Small] = {}  # by time
    if options.report:
        from rice_jax.pages.album import thumbnail
        from rice_jax.pages.timeline import Video, write_timeline

    reading = Reading()

    def frames() -> Iterator[Frame]:
        for frame in read_video(options.video, options.interval_seconds, reading):
            if options.report:
                with contextlib.suppress(OSError):  # the engine reports broken frames
                    thumbnails[frame.time] = thumbnail(frame.picture)
            yield frame

    times, encoded = encode_video(engine, frames(), BATCH_SIZE)
    for warning in reading.warnings:
        print(f"warning: {options.video}: {warning}", file=sys.stderr)
    if stored:
        end = times[-1] + options.interval_seconds if reading.end is None else reading.end
        said = said_around(times, speech, engine.num_frames, end) if speech else ()
        found = find_candidates(
            engine, encoded, stored, limit=options.candidates, gallery=options.gallery, where=options.where, said=said
        )
        engine = Engine(found, batch_sizes=(BATCH_SIZE,), naming=engine.naming, others=[engine])
    segments = products_over_time(
        engine,
        times,
        encoded,
        end=reading.end,
        gallery=options.gallery,
        top=options.top,
        where=options.where,
        speech=speech,
    )
    for segment in segments:
        print(json.dumps(segment_line(segment), ensure_ascii=False, allow_nan=False))
    if options.report:
        named_from = engine.naming.none_cosine(engine.calibration)
        video = Video(options.video.name, segments, times, [thumbnails[time] for time in times], named_from)
        write_timeline(options.report, video, engine.index, options.gallery)
        print(options.report, file=sys.stderr)


def _speech(path: Path, least: float) -> list[Sentence]:
    """What is said, without what is less likely than `least`."""
    found = read_subtitles(path)
    kept = confident(found, least)
    if len(kept) < len(found):
        text = f"{len(found) - len(kept)} of {len(found)} sentences are left out, whose confidence is below {least:g}"
        print(f"warning: {path}: {text}", file=sys.stderr)
    return kept


def _engine(options: argparse.Namespace, batch_sizes: tuple[int, ...], index: Index | None = None) -> Engine:
    """The engine of `--index`, or of an index that is read already."""
    engine = Engine(
        options.index if index is None else index,
        model=options.checkpoint,
        text_model=options.text_model,
        rerank=options.rerank,
        batch_sizes=batch_sizes,
        naming=naming_of(options),
    )
    if not options.store or options.follow is not None:
        engine.products(options.gallery, options.where)  # raises if there are none
    return engine


def _stored_gallery(options: argparse.Namespace) -> Index | None:
    """What a live stream searches in Milvus: all of it, read into memory, as a query for each frame would come late."""
    return MilvusIndex(options.uri, options.collection).read(options.gallery) if options.store else None


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} (VIDEO | --follow=URL) (--index=DIR | --store … --uri …) …",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shown = parser.add_mutually_exclusive_group(required=True)
    shown.add_argument(
        "video",
        type=Path,
        nargs="?",
        metavar="VIDEO",
        help="a video, a directory of frames, or their list (.txt)",
    )
    shown.add_argument(
        "--follow",
        metavar="URL",
        help="a live stream in place of VIDEO: an RTMP, RTSP, or HLS URL, a file that grows, or a camera (/dev/video0)",
    )
    search = parser.add_argument_group("search")
    search.add_argument("--index", type=Path, metavar="DIR", help="the index of the shop")
    search.add_argument("--store", choices=("milvus",), help="search a database in place of --index; needs --uri")
    search.add_argument("--uri", help="address of the database, as for rice index")
    search.add_argument(
        "--collection", default=NAME, metavar="NAME", help=f"collection in the database (default: {NAME})"
    )
    search.add_argument(
        "--candidates",
        type=int,
        default=LIMIT,
        metavar="N",
        help=f"pictures fetched for each frame (default: {LIMIT})",
    )
    search.add_argument("--checkpoint", type=Path, metavar="RUN", help="new location of the model, if it has moved")
    search.add_argument(
        "--text_model", type=Path, metavar="DIR", help="new location of the text tower, if it has moved"
    )
    search.add_argument("--gallery", metavar="ID", help="search only this gallery (default: all products)")
    search.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only products with this value in the CSV; repeatable",
    )
    search.add_argument(
        "--rerank", type=int, default=0, metavar="N", help="re-rank the first N by score and decoder (default: 0)"
    )
    search.add_argument(
        "--interval_seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="look at one frame every S seconds (default: 1)",
    )
    search.add_argument(
        "--subtitles",
        type=Path,
        metavar="FILE",
        help="what is said: .srt, .vtt, or .json, such as Whisper's",
    )
    search.add_argument(
        "--min_speech", type=float, default=0.0, metavar="P", help="leave out speech less likely than this, 0 to 1"
    )
    add_naming_flags(search)
    live = parser.add_argument_group("live")
    live.add_argument("--listen", action="store_true", help="wait at the RTMP or RTSP URL for a sender, such as OBS")
    live.add_argument(
        "--max_delay",
        type=float,
        default=5.0,
        metavar="S",
        help="drop frames later than S seconds (default: 5)",
    )
    live.add_argument("--webhook", metavar="URL", help="also post each event to this http or https URL")
    output = parser.add_argument_group("output")
    output.add_argument("--top", type=int, default=5, metavar="N", help="list N similar products per part (default: 5)")
    output.add_argument("--report", type=Path, metavar="FILE", help="also write an HTML page with a timeline")
    return parser


if __name__ == "__main__":
    main()

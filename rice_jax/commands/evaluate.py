"""Evaluates recognition on a shop's own labeled clips.

    rice eval CLIPS.csv --index=DIR [--max_wrong=0.1] [--report=out.html] [--json=out.json]

Prints rank-k by product, what is named rightly, wrongly, or not at all, and the least confidence that keeps the share
of wrong names below --max_wrong. The index gets a calibration of these clips, which `rice recognize` and `rice serve`
use.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rice_jax.clips.evaluation import MIN_CLIPS, calibrate, document, judge, measure, require_shown
from rice_jax.clips.frames import BATCH_SIZE, encode_clips
from rice_jax.clips.labels import read_clips, refuse
from rice_jax.commands.errors import errors_in_one_line
from rice_jax.commands.naming_flags import add_interval, add_max_wrong, add_naming_flags, naming_of
from rice_jax.files import write_lines
from rice_jax.index.calibrate import calibrate_index
from rice_jax.index.store import Index, read_index, require_one_file
from rice_jax.logs import log_to_stderr
from rice_jax.pages.clips import clip_tables, write_clips_page
from rice_jax.parallel.compilation import keep_compiled
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.words import choose_products
from rice_jax.types import counted

DESCRIPTION = """\
Evaluates recognition on labeled clips: ranks by product, what is named
rightly, wrongly, or not at all, and which --min_confidence keeps the share of
wrong names below --max_wrong. The index gets a calibration of these clips,
which rice recognize and rice serve use.

CLIPS.csv has the columns clip (a video, or a directory of frames), product
(its id; empty if none of the shop's is shown), and optionally start and end
(seconds, m:ss, or h:mm:ss) and film (what the clip was cut from).
"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m rice_jax.commands.evaluate") -> None:
    """Runs the command.

    Args:
        arguments: the command line; None = `sys.argv[1:]`.
        prog: name of the command in its help text.
    """
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    if not 0 < options.interval_seconds < math.inf:
        parser.error("expected a finite --interval_seconds above 0")
    for flag, file in (("report", options.report), ("json", options.json)):
        if file and file.is_dir():
            parser.error(f"--{flag}={file}: is a directory, expected a file")
        if file and file.exists() and options.clips.exists() and file.samefile(options.clips):
            parser.error(f"--{flag}={file}: holds the labels, expected another file")
    if options.report and options.json and options.report.absolute() == options.json.absolute():
        parser.error(f"--report and --json: found {options.report} twice, expected two files")
    log_to_stderr()
    keep_compiled()
    with errors_in_one_line():
        evaluate(options)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluates, prints the tables, writes what was asked for, and calibrates the index.

    Raises:
        DataError: labels are wrong, or some clips cannot be used; the latter after all others have been evaluated.
    """
    index = read_index(options.index)
    products = {index.product_ids[row] for row in choose_products(index, options.gallery).rows}
    clips = read_clips(options.clips, products, options.index)
    require_shown(clips)
    naming = naming_of(options)
    if not options.keep_calibration:
        require_one_file(options.index)
    places = {"model": options.checkpoint, "text_model": options.text_model}
    engine = Engine(options.index, **places, batch_sizes=(BATCH_SIZE,), naming=naming)
    encoded, unusable = encode_clips(engine, clips, options.interval_seconds)
    title = f"{len(unusable)} of {len(clips)} clips cannot be used:"
    if not encoded:
        refuse([str(entry) for entry in unusable], title)
    measured = measure(engine, encoded, options.gallery)
    judged = {"present": judge(measured, engine.calibration, naming)}
    own = None if options.keep_calibration else calibrate(measured, engine, str(options.clips.absolute()))
    if own:
        judged["calibrated"] = judge(measured, own, naming)
    about = {
        "clips": str(options.clips),
        "index": str(options.index),
        "gallery": options.gallery,
        "interval_seconds": options.interval_seconds,
        "fingerprint": engine.index.about.fingerprint,
        "num_unusable": len(unusable),
    }
    found = document(measured, judged, about, options.max_wrong)
    print(clip_tables(found))
    found["unusable"] = [str(entry) for entry in unusable]
    try:
        if own:
            calibrate_index(options.index, own)
            print(f"{options.index}: calibrated on {own.num_clips:,} clips that show a product")
        elif not options.keep_calibration:
            num = int(measured.shows.sum())
            show = "shows" if num == 1 else "show"
            print(
                f"{options.index}: keeps its calibration, as only {counted(num, 'clip')} {show} a product; {MIN_CLIPS} "
                "or more are needed for another"
            )
    finally:  # an index that cannot be written costs no results
        if options.json:
            write_lines(options.json, [json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)])
        if options.report:
            write_clips_page(options.report, found, pictures_of(engine.index))
    refuse([str(entry) for entry in unusable], f"{title[:-1]}; all others have been evaluated:")


def pictures_of(index: Index) -> dict[tuple[str, str], str]:
    """The path of each product's first picture, by its gallery and id."""
    products = list(zip(index.gallery_ids, index.product_ids, strict=True))
    return dict(reversed(list(zip(products, index.paths, strict=True))))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} CLIPS.csv --index=DIR [options]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("clips", type=Path, metavar="CLIPS.csv", help="labels of the clips")
    add("--index", required=True, type=Path, metavar="DIR", help="the index of the shop")
    add("--checkpoint", type=Path, metavar="RUN", help="new location of the model, if it has moved since indexing")
    add("--text_model", type=Path, metavar="DIR", help="new location of the text tower, if it has moved")
    add("--gallery", metavar="ID", help="search only this gallery (default: all products)")
    add_interval(parser)
    naming = parser.add_argument_group("naming")
    add_max_wrong(naming)
    naming.add_argument("--keep_calibration", action="store_true", help="leave the index as it is")
    add_naming_flags(naming)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--report", type=Path, metavar="FILE", help="also write an HTML page with the curve and mistakes"
    )
    output.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers as JSON")
    return parser


if __name__ == "__main__":
    main()

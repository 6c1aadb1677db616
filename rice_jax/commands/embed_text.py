"""Embeds titles and speech once, into files that training and evaluation read.

rice embed-text MODEL OUT --data_dir=DATA --sets=lpr4m/train,lpr4m/query,lpr4m/gallery
rice embed-text MODEL OUT --titles=titles.csv --speech=speech.jsonl
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from rice_jax.commands.errors import errors_in_one_line
from rice_jax.eval.texts import TextEmbedder, load_text_model, write_embeddings
from rice_jax.input.texts import KINDS, collect, listed_texts, stored_texts
from rice_jax.logs import log_to_stderr
from rice_jax.parallel.compilation import keep_compiled

DESCRIPTION = """\
Embeds the titles of images and the speech of clips into OUT/titles and
OUT/speech, Parquet files that config.data.texts names. MODEL is what
`rice convert text` wrote.

Texts come from built data sets, or from CSVs with the columns id and text, or
JSON lines (.jsonl) with these keys. The word null and an empty text are
missing. A run can be stopped at any moment; the same command continues it.
"""

logger = logging.getLogger("rice_jax")


def main(arguments: Sequence[str] | None = None, prog: str = "python -m rice_jax.commands.embed_text") -> None:
    """Runs the command.

    Args:
        arguments: the command line; None = `sys.argv[1:]`.
        prog: name of the command in its help text.
    """
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    if not (options.sets or options.titles or options.speech):
        parser.error("expected --sets, --titles, or --speech")
    if options.batch_size < 1:
        parser.error(f"--batch_size={options.batch_size}: expected 1 or more")
    number, _, count = options.share.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        parser.error(f"--share={options.share}: expected I/N with I from 0 to N - 1")
    log_to_stderr()
    keep_compiled()
    with errors_in_one_line():
        embedder = TextEmbedder(load_text_model(options.model), options.batch_size)
        for kind in KINDS:
            _embed(kind, embedder, options, (int(number), int(count)))
    print(options.out)


def _embed(kind: str, embedder: TextEmbedder, options: argparse.Namespace, share: tuple[int, int]) -> None:
    found = collect(_pairs(kind, options))
    if not (found.texts or found.num_missing):
        return
    cut = write_embeddings(options.out / kind, found.texts, embedder, share=share)
    logger.info(
        "%s: %d texts of up to %d tokens; %d missing; %d longer and cut; %d ids with another text later, which is left "
        "out",
        options.out / kind,
        len(found.texts),
        embedder.model.config.context,
        found.num_missing,
        cut,
        found.num_other,
    )


def _pairs(kind: str, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    names = [name.strip() for name in options.sets.split(",")] if options.sets else []
    file = getattr(options, kind)
    return chain(stored_texts(options.data_dir, names, kind), listed_texts(file) if file else ())


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--data_dir", default="data/built", help="directory that rice build wrote")
    parser.add_argument("--sets", default="", help="data sets below it, separated by commas")
    parser.add_argument("--titles", type=Path, metavar="FILE", help="titles by the ids of images")
    parser.add_argument("--speech", type=Path, metavar="FILE", help="speech by the ids of clips")
    parser.add_argument("--batch_size", type=int, default=256, help="texts at a time (default: 256)")
    parser.add_argument(
        "--share",
        default="0/1",
        metavar="I/N",
        help="write one of N shares, for N machines at once (default: 0/1)",
    )
    return parser


if __name__ == "__main__":
    main()

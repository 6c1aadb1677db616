"""Searches an index with words.

rice search "red armchair" --index=shop --text_model=weights/text
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rice_jax.commands.errors import errors_in_one_line
from rice_jax.index.store import Index, read_index
from rice_jax.index.text import Texts
from rice_jax.parallel.compilation import keep_compiled
from rice_jax.recognition.matches import Match
from rice_jax.recognition.products import parse_where
from rice_jax.recognition.words import (
    BY,
    NUM_TITLES,
    PICTURES,
    By,
    choose_products,
    choose_space,
    knows_pictures,
    search_words,
    some_titles,
)
from rice_jax.types import DataError

DESCRIPTION = """\
Finds the products of a shop that words describe: those whose pictures are most
similar to the text or, if the text tower is not that of a CLIP, whose titles
are. A score is the largest cosine of a product's images.
"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m rice_jax.commands.search") -> None:
    """Runs the command.

    Args:
        arguments: the command line; None = `sys.argv[1:]`.
        prog: name of the command in its help text.
    """
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error("expected --top of 1 or more")
    keep_compiled()
    with errors_in_one_line():
        index = read_index(options.index)
        products = choose_products(index, options.gallery, parse_where(options.where))
        texts = _load_texts(index, options)
        by = choose_space(index, texts, options.by)
        rows = some_titles(index) if by == PICTURES else []
        vectors = texts([options.words, *(index.titles[row] for row in rows)])
        if not vectors[0].any():
            raise DataError(f"found {options.words!r}, expected words")
        if rows and not knows_pictures(index, rows, vectors[1:]):
            print(
                f"warning: {texts.source}: finds the pictures of the index's own titles no better than chance, so it "
                "may be the text tower of another model",
                file=sys.stderr,
            )
        _write(search_words(index, vectors[0], by, products, options.top), by, options.json)


def _load_texts(index: Index, options: argparse.Namespace) -> Texts:
    if options.text_model is None and index.text is None:
        raise DataError(
            f"{options.index}: has no titles as vectors; give the text tower of the CLIP whose encoder made the index "
            "(--text_model), which `rice convert text` writes"
        )
    if options.text_model is not None:
        return Texts(options.text_model, batch_size=1 + NUM_TITLES)
    assert index.text
    return Texts(index.text.model, index.text.fingerprint, batch_size=1 + NUM_TITLES)


def _write(found: Sequence[Match], by: By, as_json: bool) -> None:
    if as_json:
        for match in found:
            values = {name: value for name, value in match._asdict().items() if name != "confidence"}
            print(json.dumps(values | {"score": round(match.score, 4), "by": by}, ensure_ascii=False))
        return
    if not found:
        print("no product found: none that was searched has a title", file=sys.stderr)
        return
    product, gallery = (
        max(map(len, names))
        for names in (["product", *(match.id for match in found)], ["gallery", *(match.gallery for match in found)])
    )
    print(f"{by:8}  {'product':{product}}  {'gallery':{gallery}}  title")
    for match in found:
        print(f"{match.score:8.4f}  {match.id:{product}}  {match.gallery:{gallery}}  {match.title}".rstrip())


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", metavar="WORDS", help='such as "red armchair"')
    parser.add_argument("--index", type=Path, required=True, metavar="DIR", help="the index of the shop")
    parser.add_argument(
        "--text_model",
        type=Path,
        metavar="DIR",
        help="converted text tower (default: the one that embedded the index's titles)",
    )
    parser.add_argument("--by", choices=BY, help="compare with pictures or titles (default: as the tower can)")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="list N products (default: 10)")
    parser.add_argument("--gallery", metavar="ID", help="search only this gallery (default: all products)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="search only products with this value in the shop's CSV; repeat it for other values and columns",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per product")
    return parser


if __name__ == "__main__":
    main()

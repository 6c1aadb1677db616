"""Writes a data card for a built data set: `rice card dataset DATA_DIR`."""

import argparse
import collections
import csv
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from .atomic import replacing
from .builder import ATTRIBUTION, RECORD
from .errors import RawDataError

HERE = Path(__file__).resolve().parent
DESCRIPTION = """\
Writes a data card for each data set in DATA_DIR: Markdown with the front matter of Hugging Face's hub, with the sets'
examples, features, and options, what was skipped and why, terms, and a citation. All of it is what the builder
recorded; no picture is read."""

TYPES = {"Text": "text", "Image": "picture", "BBoxFeature": "box"}  # of TFDS's features
SIZES = "1K", "10K", "100K", "1M", "10M", "100M", "1B"  # bounds of the hub's categories


@dataclasses.dataclass(frozen=True)
class BuiltSet:
    """What the builder recorded about one set.

    Attributes:
        directory: relative to that of the data set, e.g. "train/1.0.0".
        info: TFDS's record of it.
        record: content of `build.json`; empty if an earlier version built the set.
        licenses: how often `attribution.csv` has each line, with its license.
    """

    directory: Path
    info: tfds.core.DatasetInfo
    record: dict[str, Any]
    licenses: collections.Counter[tuple[str, tuple[str, ...]]]


def main(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Writes the cards and prints their paths.

    Args:
        arguments: the command line's arguments, `sys.argv[1:]` by default.
        prog: the program's name in help and errors.

    Raises:
        SystemExit: an argument is wrong, a set is damaged, or a card exists already.
    """
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    parser.add_argument("kind", choices=("dataset",), help="dataset: a data set that rice build wrote")
    parser.add_argument(
        "data_dir", metavar="DATA_DIR", type=Path, help="--data_dir of rice build, or one data set in it, DATA_DIR/NAME"
    )
    parser.add_argument("--name", help="title of a card for your own data, which leaves out the published set's facts")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: DATA_DIR/NAME/README.md)")
    args = parser.parse_args(arguments)
    try:
        if args.name is not None and not args.name.strip():
            raise RawDataError("--name: found an empty title, expected some text")
        directories = find_data_sets(args.data_dir)
        if len(directories) > 1 and (args.name or args.out):
            names = ", ".join(directory.name for directory in directories)
            raise RawDataError(f"{args.data_dir}: found {names}, expected one data set with --name or --out")
        cards = {args.out or directory / "README.md": directory for directory in directories}
        for out in cards:
            if out.exists():
                raise RawDataError(f"{out}: exists already; delete it or choose another file with --out")
        for out, directory in cards.items():
            text = data_card(directory, args.name)
            with replacing(out) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(out)
    except (RawDataError, OSError) as error:
        sys.exit(f"{parser.prog}: error: {error}")


def find_data_sets(data_dir: Path) -> list[Path]:
    """The directories of data sets: those in `data_dir`, or itself.

    Raises:
        RawDataError: there is none.
    """
    if any(_versions(data_dir)):
        return [data_dir]
    found = [path for path in sorted(data_dir.glob("*")) if path.is_dir() and any(_versions(path))]
    if not found:
        raise RawDataError(
            f"{data_dir}: found no data set, expected the --data_dir of rice build, or DATA_DIR/NAME in it"
        )
    return found


def data_card(directory: Path, name: str | None = None) -> str:
    """Renders the card of a data set.

    Args:
        directory: of the data set, `DATA_DIR/NAME`; the newest version of each of its configs is described.
        name: title of a card for own data; None = the builder's name.

    Raises:
        RawDataError: a file of a set is damaged.
    """
    sets = [_read(directory, path) for path in _versions(directory)]
    info = sets[0].info
    lines: collections.Counter[tuple[str, tuple[str, ...]]] = collections.Counter()
    licenses: collections.Counter[str] = collections.Counter()
    for built in sets:
        lines |= built.licenses  # the larger number of each line: sets from the same raw files have the same lines
    for (license, _), number in lines.items():
        licenses[license] += number
    own = bool(name or licenses)
    example = next((built for built in sets if "train" in built.info.splits), sets[0])
    num_examples = sum(built.info.splits.total_num_examples for built in sets)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("card.md.jinja").render(
        title=name or info.name,
        builder=info.name,
        sets=sets,
        example=example,
        features=_features(sets),
        description="" if own else _paragraphs(info.description)[0],
        terms="" if own else _terms(info.description),
        citation="" if own else info.citation,
        languages=[] if own else _languages(info.name),
        licenses=licenses.most_common(),
        attribution=ATTRIBUTION,
        size=size_category(num_examples),
        num_examples=num_examples,
    )


def _versions(directory: Path) -> list[Path]:
    """The newest version of each config of a data set."""
    newest: dict[str, Path] = {}
    versions = [path.parent for path in directory.glob("*/*/dataset_info.json")]
    versions = [path for path in versions if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    for path in sorted(versions, key=lambda path: (path.parent.name, *map(int, path.name.split(".")))):
        newest[path.parent.name] = path
    return list(newest.values())


def _read(directory: Path, path: Path) -> BuiltSet:
    try:
        info = tfds.builder_from_directory(path).info
        record = path / RECORD
        found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if record.exists() and not (isinstance(found, dict) and {"options", "counts"} <= found.keys()):
            raise ValueError(f"{RECORD} holds no options and counts")
        return BuiltSet(path.relative_to(directory), info, found, _licenses(path / ATTRIBUTION))
    except (ValueError, KeyError, ParseError) as error:
        reason = " ".join(str(error).split())
        raise RawDataError(f"{path}: is damaged ({reason}); build the set again with --overwrite") from error


def _licenses(path: Path) -> collections.Counter[tuple[str, tuple[str, ...]]]:
    if not path.exists():
        return collections.Counter()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
            return collections.Counter(
                (row.get("license") or row.get("licence") or "not stated", tuple(map(str, row.values())))
                for row in csv.DictReader(file)
            )
    except (csv.Error, UnicodeDecodeError) as error:
        raise RawDataError(f"{path}: found {error}, expected CSV in UTF-8; fix it here and in the raw files") from error


def _features(sets: Sequence[BuiltSet]) -> dict[tuple[str, str], list[str]]:
    """The sets that have each feature, by its name and type."""
    found = collections.defaultdict(list)
    for built in sets:
        for name, feature in built.info.features.items():
            found[name, _type_of(feature)].append(built.info.config_name)
    return dict(sorted(found.items()))


def _type_of(feature: tfds.features.FeatureConnector) -> str:
    if isinstance(feature, tfds.features.Sequence):
        return f"list of {_type_of(feature.feature)}"
    return TYPES.get(type(feature).__name__) or str(feature.np_dtype)


def _paragraphs(text: str) -> Sequence[str]:
    return text.strip().split("\n\n")


def _terms(page: str) -> str:
    """The first paragraph of the section "Terms" of a builder's page, which TFDS records as the description."""
    section = re.search(r"^## Terms\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    return _paragraphs(section[1])[0] if section else ""


def _languages(builder: str) -> list[str]:
    """The languages in a builder's TAGS.txt."""
    path = HERE / builder / "TAGS.txt"
    return re.findall(r"^content\.language\.(\w+)$", path.read_text(encoding="utf-8"), re.M) if path.exists() else []


def size_category(num_examples: int) -> str:
    """The hub's category of a data set's size."""
    step = len(str(num_examples)) - 4
    if step >= len(SIZES) - 1:
        return f"n>{SIZES[-1]}"
    return f"n<{SIZES[0]}" if step < 0 else f"{SIZES[step]}<n<{SIZES[step + 1]}"


if __name__ == "__main__":
    main()

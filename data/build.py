"""Builds a data set from its raw files: `python data/build.py NAME --raw_dir RAW --data_dir DATA`."""

import argparse
import contextlib
import importlib
import inspect
import io
import os
import shutil
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if not __package__:  # Run as a script, whose relative imports need a package: PEP 366.
    sys.path.insert(0, str(HERE.parent))
    __package__ = "data"

import tensorflow_datasets as tfds  # noqa: E402

from .builder import ShardedBuilder  # noqa: E402
from .errors import RawDataError, WorkerError  # noqa: E402
from .processes import cleaning_up_on_sigterm, locked  # noqa: E402

DESCRIPTION = """\
Builds a data set from its raw files, as ArrayRecord files in DATA_DIR/NAME/CONFIG/VERSION. A set that already exists
is left as it is. Finished shards of an interrupted build are kept, and the same command continues from them."""


def main(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Builds the requested configs, or every config that fits the raw files, unless they already exist.

    Args:
        arguments: the command line's arguments, `sys.argv[1:]` by default.
        prog: the program's name in help and errors; the script's name by default.

    Raises:
        SystemExit: an argument or the raw data is wrong, a file cannot be read or written, or the process received
            SIGTERM.
    """
    parser = _parser(prog)
    args = parser.parse_args(arguments)
    if args.max_short_side < 0:
        parser.error(f"--max_short_side={args.max_short_side}: expected 0 or more")
    if args.workers < 1:
        parser.error(f"--workers={args.workers}: expected 1 or more")
    if not 0 <= args.max_skipped_percent <= 100:
        parser.error(f"--max_skipped_percent={args.max_skipped_percent}: expected 0 to 100")
    try:
        with cleaning_up_on_sigterm():
            for builder in _builders(args):
                build(builder, args.raw_dir, args.overwrite, _beam(args))
    except RawDataError as error:
        sys.exit(f"{parser.prog}: error: {error}")
    except (OSError, WorkerError) as error:  # a full disk, a directory that cannot be written
        where = f"{error.filename or args.data_dir}: {error.strerror or error}" if isinstance(error, OSError) else error
        sys.exit(f"{parser.prog}: error: {where}; finished shards are kept, and the same command continues from them")


def build(builder: ShardedBuilder, raw_dir: Path, overwrite: bool = False, beam: dict[str, Any] | None = None) -> None:
    """Builds one data set unless it already exists.

    TFDS writes into `incomplete.*` and renames that directory at the end, so a directory named after the version is
    complete.

    Args:
        builder: a builder of one config; after a build its `summary` describes what was skipped.
        raw_dir: the raw files.
        overwrite: build again if the set exists, from the start, unless a build like this was interrupted: it goes on.
            If the build fails, the former set stays.
        beam: `beam_runner` and `beam_options` of `tfds.download.DownloadConfig`, or nothing.

    Raises:
        RawDataError: the raw data is wrong, or too much of it is unusable.
    """
    target = Path(builder.data_dir)
    replaced = target.with_name(f"replaced_{target.name}")
    with locked(target.parent):
        if overwrite and not builder.overwriting.exists():
            shutil.rmtree(builder.unfinished_dir, ignore_errors=True)
            builder.overwriting.parent.mkdir(parents=True)
            builder.overwriting.touch()
        if replaced.exists() and not target.exists():  # a build that was to replace it was killed
            replaced.rename(target)
        if target.exists() and not overwrite:
            shutil.rmtree(replaced, ignore_errors=True)
            print(f"{target}: already exists; --overwrite builds it again")
            return
        for leftover in target.parent.glob(f"incomplete.*{target.name}"):
            print(f"{leftover}: left by a build that was killed; remove it if no other build is running")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)  # until the new one is complete
        print(f"{target}: building", flush=True)
        try:
            # TFDS announces a download of unknown size, but nothing is fetched.
            with contextlib.redirect_stdout(io.StringIO()):
                config = tfds.download.DownloadConfig(manual_dir=raw_dir, **(beam or {}))
                builder.download_and_prepare(download_config=config)
        except BaseException as error:
            if replaced.exists() and not target.exists():
                replaced.rename(target)
            if isinstance(error, RawDataError):  # after it has been mended, pictures are to be read again
                builder.overwriting.unlink(missing_ok=True)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    print(f"{target}: {builder.info.splits.total_num_examples} examples; {builder.summary}")


def _builders(args: argparse.Namespace) -> list[ShardedBuilder]:
    builder_cls = importlib.import_module(f".{args.name}.{args.name}_dataset_builder", __package__).Builder
    if not args.raw_dir.is_dir() or not any(args.raw_dir.iterdir()):
        found = "an empty directory" if args.raw_dir.is_dir() else "no such directory"
        instructions = inspect.cleandoc(builder_cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        raise RawDataError(f"{args.raw_dir}: found {found}, expected the raw files.\n{instructions}")
    try:
        os.fspath(args.data_dir).encode()
    except UnicodeEncodeError:
        raise RawDataError(f"--data_dir: found {os.fspath(args.data_dir)!r}, expected a path in UTF-8") from None
    configs = args.configs.split(",") if args.configs else builder_cls.configs_for(args.raw_dir)
    _check_known("--configs", configs, builder_cls.builder_configs)
    options = dict(option.partition("=")[::2] for option in args.option)
    common = inspect.getfullargspec(ShardedBuilder).kwonlyargs
    own = [name for name in inspect.getfullargspec(builder_cls).kwonlyargs if name not in common]
    _check_known("--option", options, own)
    shared = {name: getattr(args, name) for name in ("max_skipped_percent", "max_short_side", "workers")}
    return [builder_cls(config=config, data_dir=args.data_dir, **shared, **options) for config in configs]


def _beam(args: argparse.Namespace) -> dict[str, Any]:
    if not args.beam_runner:
        return {}
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise RawDataError(
            "--beam_runner: found no apache-beam, expected the extra; install it: pip install 'rice-jax[beam]'"
        ) from None
    flags = [f"--{option}" for option in args.beam_options.split(",") if option]
    # Local workers are new processes, which find this package through the environment only.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return {"beam_runner": args.beam_runner, "beam_options": PipelineOptions(flags)}


def _check_known(flag: str, names: Iterable[str], known: Collection[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        expected = f"some of {', '.join(known)}" if known else "none for this data set"
        raise RawDataError(f"{flag}: found {', '.join(unknown)}, expected {expected}")


def _parser(prog: str | None) -> argparse.ArgumentParser:
    names = sorted(path.parent.name for path in HERE.glob("*/*_dataset_builder.py"))
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s NAME --raw_dir DIR --data_dir DIR [options]",
        description=DESCRIPTION,
    )
    parser.add_argument("name", choices=names, metavar="NAME", help=f"The data set: {', '.join(names)}.")
    add = parser.add_argument_group("files").add_argument
    add("--raw_dir", type=Path, required=True, metavar="DIR", help="Read the raw files from this directory.")
    add("--data_dir", type=Path, required=True, metavar="DIR", help="Write the data set below this directory.")
    add("--overwrite", action="store_true", help="Build sets that already exist again, or continue such a build.")
    add = parser.add_argument_group("contents").add_argument
    add("--configs", metavar="A,B", help="Build these configs (default: all that fit the raw files).")
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="Set an option of this data set's builder; repeatable.",
    )
    add(
        "--max_short_side",
        type=int,
        default=0,
        metavar="PIXELS",
        help="Shrink larger pictures to this short side (default: 0, keep all as they are).",
    )
    add(
        "--max_skipped_percent",
        type=float,
        default=1.0,
        metavar="P",
        help="Fail if more than P %% of any kind cannot be used (default: 1).",
    )
    add = parser.add_argument_group("processes").add_argument
    add("--workers", type=int, default=1, metavar="N", help="Read and write in N processes (default: 1).")
    add("--beam_runner", metavar="RUNNER", help="Write on Apache Beam: DirectRunner, DataflowRunner, ...")
    add("--beam_options", default="", metavar="A=1,B", help="Pass these options to Beam, separated by commas.")
    return parser


if __name__ == "__main__":
    main()

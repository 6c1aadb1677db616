"""Builds a data set from its raw files: `python data/build.py NAME --raw_dir RAW --data_dir DATA`."""

import argparse
import contextlib
import importlib
import inspect
import io
import os
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for the package `data`, which is not installed

import tensorflow_datasets as tfds  # noqa: E402

from data.builder import ShardedBuilder  # noqa: E402
from data.errors import DataError  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Builds the configs asked for, or all that fit the raw files; what stands already is left alone.

    Args:
        arguments: of the command line, `sys.argv[1:]` by default.
    """
    args = _parse(arguments)
    try:
        for builder in _builders(args):
            build(builder, args.raw_dir, args.overwrite, _beam(args))
    except DataError as error:
        sys.exit(f"data/build.py: {error}")


def build(builder: ShardedBuilder, raw_dir: Path, overwrite: bool = False, beam: dict[str, Any] | None = None) -> None:
    """Builds one data set unless it stands.

    TFDS writes into `incomplete.*` and renames when all is done, so a directory with the version's name is whole.

    Args:
        builder: of one config; once it has built, its `summary` tells in words what was skipped.
        raw_dir: the raw files.
        overwrite: build again if it stands, and take no shard of a build that was stopped.
        beam: `beam_runner` and `beam_options` of `tfds.download.DownloadConfig`, or nothing.
    """
    target = Path(builder.data_dir)
    if overwrite:
        shutil.rmtree(builder.unfinished_dir, ignore_errors=True)
    if target.exists() and not overwrite:
        print(f"{target}: stands already; --overwrite builds it again")
        return
    for leftover in target.parent.glob(f"incomplete.*{target.name}"):
        print(f"{leftover}: left by a build that was killed; remove it if no other build is running")
    if target.exists():
        doomed = target.with_name(f"incomplete.{os.getpid()}_{target.name}")
        target.rename(doomed)  # at once: a removal cut short must not leave a part under the version's name
        shutil.rmtree(doomed)
    print(f"{target}: building", flush=True)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download of unknown size; there is none
        config = tfds.download.DownloadConfig(manual_dir=raw_dir, **(beam or {}))
        builder.download_and_prepare(download_config=config)
    print(f"{target}: {builder.info.splits.total_num_examples} examples; {builder.summary}")


def _builders(args: argparse.Namespace) -> list[ShardedBuilder]:
    builder_cls = importlib.import_module(f"data.{args.name}.{args.name}_dataset_builder").Builder
    if not args.raw_dir.is_dir():
        instructions = inspect.cleandoc(builder_cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        raise DataError(f"{args.raw_dir}: found no such directory, expected the raw files.\n{instructions}")
    configs = args.configs.split(",") if args.configs else builder_cls.configs_for(args.raw_dir)
    _check_known("--configs", configs, builder_cls.builder_configs)
    options = dict(option.partition("=")[::2] for option in args.option)
    _check_known("--option", options, inspect.getfullargspec(builder_cls).kwonlyargs)
    shared = {name: getattr(args, name) for name in ("max_skipped_percent", "max_short_side", "workers")}
    return [builder_cls(config=config, data_dir=args.data_dir, **shared, **options) for config in configs]


def _beam(args: argparse.Namespace) -> dict[str, Any]:
    if not args.beam_runner:
        return {}
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise DataError("--beam_runner: found no apache-beam, expected the extra: pip install '.[beam]'") from None
    flags = [f"--{option}" for option in args.beam_options.split(",") if option]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])  # of local workers
    return {"beam_runner": args.beam_runner, "beam_options": PipelineOptions(flags)}


def _check_known(flag: str, names: Iterable[str], known: Iterable[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"{flag}: found {', '.join(unknown)}, expected some of {', '.join(known)}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    names = sorted(path.parent.name for path in HERE.glob("*/*_dataset_builder.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names, help="data set")
    parser.add_argument("--raw_dir", type=Path, required=True, help="directory with the raw files")
    parser.add_argument("--data_dir", type=Path, required=True, help="directory of the built data sets")
    parser.add_argument("--configs", help="which sets, with commas between; default: all that fit the raw files")
    parser.add_argument("--max_skipped_percent", type=float, default=1.0, help="fail above it (default: 1)")
    parser.add_argument("--max_short_side", type=int, default=0, help="make larger pictures that small, in pixels")
    parser.add_argument("--workers", type=int, default=1, help="processes that read and write (default: 1)")
    parser.add_argument("--beam_runner", help="write on Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, ...")
    parser.add_argument("--beam_options", default="", help="options of Beam, with commas between: NAME=VALUE,NAME")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="option of the builder")
    parser.add_argument("--overwrite", action="store_true", help="build again what stands")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # ends as Ctrl-C does: half a data set is removed
    main()

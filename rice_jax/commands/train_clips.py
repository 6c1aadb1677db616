"""Trains the model of an index on a shop's own labeled clips.

    rice train CLIPS.csv --index=SHOP --out=RUN [--holdout=0.2] [--config=FILE] [--config.GROUP.SETTING=VALUE ...]

Some films are held out. The rest trains a run in RUN that starts from the index's model, as `rice train --config` does
and with its progress, checkpoints, and report. Then the shop is indexed with the new model, in RUN/index, and the clips
held out are recognized with both. A run can be stopped at any moment; the same command continues it.
"""

import argparse
import csv
import dataclasses
import io
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rice_jax import tasks
from rice_jax.clips.dataset import Making, count_pairs, write_data_sets
from rice_jax.clips.evaluation import MIN_CLIPS, Judged, Measured, calibrate, document, judge, measure
from rice_jax.clips.frames import BATCH_SIZE, encode_clips
from rice_jax.clips.labels import Clip, read_clips, refuse, require_products
from rice_jax.clips.training import SHARE, config_file, hold_out, run_settings
from rice_jax.commands.errors import errors_in_one_line
from rice_jax.commands.evaluate import pictures_of
from rice_jax.commands.naming_flags import add_interval, add_max_wrong, share
from rice_jax.config import Config, ConfigError
from rice_jax.config.command_line import override
from rice_jax.config.files import load_config
from rice_jax.config.resolve import resolve
from rice_jax.eval.metrics import CUTOFFS, confidence_intervals
from rice_jax.files import locked, write_lines
from rice_jax.index.calibrate import calibrate_index
from rice_jax.index.model import load_index_model, load_model, same_model
from rice_jax.index.smaller import require_smaller
from rice_jax.index.spreadsheet import plain_name
from rice_jax.index.store import FILE, Index, read_index, write_index
from rice_jax.index.text import TextSettings
from rice_jax.index.update import build_index
from rice_jax.logs import log_to_stderr
from rice_jax.models.weights import newest_step
from rice_jax.pages.clips import clip_tables, write_clips_page
from rice_jax.parallel.mesh import create_mesh, require_even_batch
from rice_jax.parallel.processes import LOCK
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.naming import Naming
from rice_jax.train.trackers import require_installed
from rice_jax.types import DataError, counted

DESCRIPTION = """\
Trains the model of an index on labeled clips, and reports its scores on
held-out films before and after the training. Writes the run and, in RUN/index,
the shop indexed with the new model.

CLIPS.csv is described by rice eval CLIPS.csv --help. A run can be stopped at
any moment; the same command continues it.
"""
EPILOG = "Further flags, such as --config.train.total_steps=500: see rice train --help."
SHORT_SIDE = 9 / 8  # of the stored frames, of the side to which the model resizes pictures

logger = logging.getLogger("rice_jax")


def main(arguments: Sequence[str] | None = None, prog: str = "python -m rice_jax.commands.train_clips") -> None:
    """Runs the command.

    Args:
        arguments: the command line; None = `sys.argv[1:]`.
        prog: name of the command in its help text.
    """
    parser = _parser(prog)
    options, flags = parser.parse_known_args(arguments)
    if options.holdout is not None and not 0 < options.holdout < 1:
        parser.error("expected --holdout between 0 and 1")
    if not 0 < options.interval_seconds < math.inf:
        parser.error("expected a finite --interval_seconds above 0")
    if wrong := [flag for flag in flags if not _belongs(flag)]:
        parser.error(f"found {wrong[0]}, expected only flags of rice train, without --workdir and --mode")
    log_to_stderr()
    with errors_in_one_line():
        index = read_index(options.index)
        clips = read_clips(options.clips, set(index.product_ids), options.index)
        train, held = hold_out(clips, options.holdout)
        shown = [[clip for clip in own if clip.product] for own in (train, held)]
        config = prepare(options, flags, index, *shown)
        write_lines(options.out / "config.py", config_file(config))
        _train(prog, options.out, flags)
        compare(options, held)


def prepare(
    options: argparse.Namespace, flags: Sequence[str], index: Index, train: Sequence[Clip], held: Sequence[Clip]
) -> Config:
    """Checks the settings of a run, writes its data sets, and returns the settings without those that flags change.

    Raises:
        ConfigError: settings are wrong, or exclude each other.
        DataError: no clip shows a product, or some clips or pictures cannot be used.
    """
    for clips, what in ((train, "to train on"), (held, "held out")):
        if not clips:
            raise DataError(f"{options.clips}: found no clip with a product among those {what}; label more films")
    seen = {clip.product for clip in train}
    unseen = {clip.product for clip in held} - seen
    films = {clip.film for clip in held}
    logger.info(
        "%s of %s to train on; held out: %s of %s, %d of whose products are in no clip to train on",
        *(counted(len(train), "clip"), counted(len(seen), "product")),
        *(counted(len(held), "clip"), counted(len(films), "film"), len(unseen)),
    )
    if len(held) < MIN_CLIPS:
        logger.warning("%s", few_clips(len(held)))
    num_pairs = count_pairs(index, train)
    config = run_settings(index.about, (options.out / "data").absolute(), num_pairs, jax.device_count())
    if options.config:
        own = resolve(load_config(options.config).to_dict())
        names = ("data_dir", "train", "query", "gallery", "crop_around_box", "boxed_frames")  # clips have no boxes
        data = dataclasses.replace(own.data, **{name: getattr(config.data, name) for name in names})
        model = dataclasses.replace(own.model, init_from=own.model.init_from or config.model.init_from)
        config = dataclasses.replace(own, data=data, model=model)
    else:
        config = shorten_warmup(config, flags)
    checked = check(override(config.to_dict(), config_flags(flags)), options.out, num_pairs)
    check_comparison(index)
    data_dir = options.out / "data"
    making = Making(options.interval_seconds, round(SHORT_SIDE * checked.data.resize))
    data_dir.mkdir(parents=True, exist_ok=True)
    with locked(data_dir / LOCK, wait=True):  # the run has a lock of its own
        is_new = newest_step(options.out) is None
        write_data_sets(data_dir, index, train, held, making, replace=is_new)
    return config


def config_flags(flags: Sequence[str]) -> list[str]:
    """Those of some flags that change a setting."""
    return [flag for flag in flags if flag.lstrip("-").startswith("config.")]


def shorten_warmup(config: Config, flags: Sequence[str]) -> Config:
    """A warm-up of at most a tenth of the steps that flags ask for, unless they set it, too."""
    own = config_flags(flags)
    if any(flag.lstrip("-").startswith("config.optimizer.warmup_steps") for flag in own):
        return config
    steps = override(config.to_dict(), own)["train"]["total_steps"]
    warmup = min(config.optimizer.warmup_steps, steps // 10)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup))


def check(values: dict[str, Any], out: Path, num_pairs: int) -> Config:
    """Checks and returns a run's settings before any video is read, which may take long.

    Raises:
        ConfigError: they are wrong, exclude each other, or do not fit the data or the devices.
    """
    config = tasks.resolve(values, out)
    if config.task != "retrieval":
        raise ConfigError(f"config.task: found {config.task!r}, expected 'retrieval' to train on clips")
    if config.data.batch_size > num_pairs:
        raise ConfigError(
            f"config.data.batch_size: found {config.data.batch_size}, expected at most {num_pairs}, the number of "
            "pairs of a clip and a picture"
        )
    mesh = create_mesh(config.mesh)
    require_even_batch(config.data.batch_size, mesh)
    require_installed(config.train.tracker_names)
    tasks.TASKS[config.task].loss(config, mesh)
    return config


def check_comparison(index: Index) -> None:
    """Checks what `compare` needs of the index after the training: its model, its text tower, and its form.

    Raises:
        CheckpointError: the model or the text tower is gone, or another one than the index was made with.
        DataError: the index holds fewer pictures than its projection needs.
    """
    load_index_model(index.about)
    if texts := _text_settings(index):
        TextSettings(texts["text_model"], texts["text_weight"]).load(index.text, index.about)
    require_smaller(len(index.image_ids), index.about.model.embed_dim, False, _reduced_to(index), index.dtype)


def few_clips(num: int) -> str:
    """What a calibration on so few clips means."""
    show = "shows" if num == 1 else "show"
    return (
        f"only {num} of the clips held out {show} a product, and a calibration needs {MIN_CLIPS}: the confidences of "
        "the new index will be no more than a guess; raise --holdout, label more clips, or calibrate it with others "
        "(rice eval)"
    )


def compare(options: argparse.Namespace, held: Sequence[Clip]) -> None:
    """Indexes the shop with the new model, recognizes the clips held out with both, and prints and writes the results.

    Raises:
        DataError: some clips or pictures cannot be used.
    """
    old = Engine(options.index, batch_sizes=(BATCH_SIZE,))
    index = old.index  # may have been updated during the training: both models rank the products of now
    require_products(held, set(index.product_ids), options.index)
    new = options.out / "index"
    write_lines(options.out / "pictures.csv", _catalog(index))
    if (new / FILE).exists() and not same_model(read_index(new).about, load_model(options.out).about):
        (new / FILE).unlink()  # made before the run was trained further
    built = build_index(
        options.out / "pictures.csv",
        model=options.out,
        out=new,
        change="mirror",
        dimensions=_reduced_to(index),
        store_as=index.dtype,
        **_text_settings(index),
    )
    write_index(new, dataclasses.replace(built, sources=index.sources))  # so that the shop's own CSV may update it
    measured: list[Measured] = []
    engines = [old, Engine(new, batch_sizes=(BATCH_SIZE,))]
    for engine in engines:
        encoded, unusable = encode_clips(engine, held, options.interval_seconds)
        refuse([str(entry) for entry in unusable], f"{len(unusable)} of {len(held)} clips cannot be used:")
        measured.append(measure(engine, encoded))
    source = str(options.clips.absolute())
    fitted = [calibrate(own, engine, source) for own, engine in zip(measured, engines, strict=True)]
    calibrations = [own or engine.calibration for own, engine in zip(fitted, engines, strict=True)]
    by_frames = all(own and own.scale_by_frames is not None for own in calibrations)
    naming = Naming(score="frames" if by_frames else "mean")
    before, after = [judge(own, found, naming) for own, found in zip(measured, calibrations, strict=True)]
    about = {"clips": str(options.clips), "index": str(new), "gallery": None, "num_unusable": 0}
    about |= {"interval_seconds": options.interval_seconds, "fingerprint": engines[1].index.about.fingerprint}
    found = document(measured[1], {"before": before, "after": after}, about, options.max_wrong)
    found["difference"] = lead(measured[1], before, after)
    if fitted[1]:
        calibrate_index(new, fitted[1])
    else:
        logger.warning("%s: %s", new, few_clips(int(measured[1].shows.sum())))
    write_lines(options.out / "clips.json", [json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)])
    write_clips_page(options.out / "clips.html", found, pictures_of(index))
    print(f"\nFilms held out, by product: {clip_tables(found)}\n\n{options.out / 'clips.html'}\n{new}")


def lead(measured: Measured, before: Judged, after: Judged) -> dict[str, Any]:
    """What training has changed: {"rank-1": its mean and the ends of its 95 % confidence interval, …}."""

    def hits(judged: Judged) -> np.ndarray:
        first = np.array([min(ranks) for ranks in judged.ranks if ranks])  # of each clip that shows a product
        return (first[:, None] <= np.array(CUTOFFS)).astype(float)

    films = [clip.film for clip in measured.clips if clip.product]
    leads = hits(after) - hits(before)
    ends, _ = confidence_intervals(leads, films)
    return {
        f"rank-{cutoff}": {"mean": float(mean), "ends": pair.tolist()}
        for cutoff, mean, pair in zip(CUTOFFS, leads.mean(axis=0), ends, strict=True)
    }


def _belongs(flag: str) -> bool:
    from rice_jax import main as program  # defines flags of the whole program

    name = flag.removeprefix("--").partition("=")[0]
    known = name.startswith("config.") or name.removeprefix("no") in program.flags.FLAGS
    return flag.startswith("--") and known and name not in ("workdir", "mode")


def _train(prog: str, out: Path, flags: Sequence[str]) -> None:
    """Trains or continues the run.

    Raises:
        SystemExit: it has been stopped or has failed.
    """
    from rice_jax import main as program  # defines flags of the whole program

    try:
        program.start([prog, "--mode=train", f"--config={out / 'config.py'}", f"--workdir={out}", *flags])
    except SystemExit as end:
        if end.code:
            raise
    if not newest_step(out):
        raise SystemExit(f"{out}: has no checkpoint after the training")


def _reduced_to(index: Index) -> int | None:
    """The dimensions that the vectors of an index have been reduced to; None = they have those of the model."""
    return None if index.projection is None else index.vectors.shape[1]


def _text_settings(index: Index) -> dict[str, Any]:
    """How `build_index` embeds titles as an index has them."""
    if not index.text:
        return {}
    if index.text.model == index.about.checkpoint:  # the new run's tower has other weights
        logger.warning("the new index has no titles as vectors: those of the old one are of the model's own text tower")
        return {}
    return {"text_model": index.text.model, "text_weight": index.text.weight}


def _catalog(index: Index) -> Iterator[str]:
    """The pictures of an index as a CSV that `rice index` takes."""
    columns = {
        "id": index.image_ids,
        "path": index.paths,
        "gallery": index.gallery_ids,
        "title": index.titles,
        "product": index.product_ids,
    }
    names: dict[str, str] = {}  # that two sources of the shop write differently, such as "Price" and "price", are one
    for fields in index.fields:
        for name in fields:
            names.setdefault(plain_name(name), name)
    plain = [{plain_name(name): value for name, value in fields.items()} for fields in index.fields]
    further = [[fields.get(name, "") for name in names] for fields in plain]
    rows = [[*row, *more] for *row, more in zip(*columns.values(), further, strict=True)]
    for row in [[*columns, *names.values()], *rows]:
        line = io.StringIO()
        csv.writer(line, lineterminator="", quoting=csv.QUOTE_ALL).writerow(row)  # cells may have several lines
        yield line.getvalue()


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} CLIPS.csv --index=DIR --out=RUN [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("clips", type=Path, metavar="CLIPS.csv", help="labels of the clips")
    add(
        "--index", required=True, type=Path, metavar="DIR", help="the index of the shop, whose model is trained further"
    )
    add("--out", required=True, type=Path, metavar="RUN", help="directory of the run")
    add(
        "--holdout",
        type=share,
        metavar="P",
        help=f"share of the clips, by film, held out (default: {SHARE:g}, up to a third for {MIN_CLIPS} clips)",
    )
    add("--config", metavar="FILE", help="settings of the run (default: those of the model, for few clips)")
    add_interval(parser)
    add_max_wrong(parser)
    return parser


if __name__ == "__main__":
    main()

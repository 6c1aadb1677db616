"""The command line that trains, evaluates, detects, indexes and compares: flags and wiring.

python -m rice_jax.main --config=configs/lpr4m.py --workdir=runs/lpr4m --config.data.batch_size=64
"""

import contextlib
import dataclasses
import logging
import sys
import traceback
from pathlib import Path

import jax
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import config_flags

from rice_jax.config import Config, ConfigError
from rice_jax.config.command_line import parse_flags
from rice_jax.files import leaving_no_trace
from rice_jax.index.export import KINDS, export_faiss, require_faiss
from rice_jax.index.model import ModelSettings, place_model
from rice_jax.index.store import FILE, read_index
from rice_jax.index.update import remove_pictures, update_index
from rice_jax.input.digest import training_digests
from rice_jax.logs import log_to_stderr
from rice_jax.models.create import abstract_params, create_model, create_params
from rice_jax.models.start import start_from
from rice_jax.models.text_weights import keep_tokenizer
from rice_jax.models.weights import CHECKPOINTS, CheckpointError, newest_weights
from rice_jax.pages.compare import write_comparison
from rice_jax.parallel.compilation import keep_compiled
from rice_jax.parallel.mesh import create_mesh, require_even_batch
from rice_jax.parallel.processes import (
    ProcessError,
    join,
    leave,
    lost_process,
    only_program,
    require_same,
    share_directory,
)
from rice_jax.tasks import TASKS, resolve
from rice_jax.tasks.cope import PRODUCTS
from rice_jax.tasks.epochs import log_epochs
from rice_jax.tasks.start import initial_params, resume_run, run_optimizer
from rice_jax.tasks.task import Run, Task
from rice_jax.train import checkpoint
from rice_jax.train.loop import train
from rice_jax.train.optimizer import learning_rates
from rice_jax.train.record import common_facts, write_record
from rice_jax.train.state import create_state
from rice_jax.train.steps import training_step
from rice_jax.train.trackers import require_installed
from rice_jax.types import DataError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, or the name of one that comes with rice_jax; --config.a.b=c overrides a setting."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, metrics, results, report.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "detect", "index", "compare"],
    "train: train and evaluate; eval: evaluate the newest checkpoint; detect: write the boxes that a detector finds in "
    "config.data.detect; index: update the index of the pictures in config.index.images; compare: compare the runs "
    "whose workdirs are the arguments; needs no --config.",
)
EXPORT = flags.DEFINE_enum("export", None, ["faiss"], "With --mode=index: also write the index in this form.")
KIND = flags.DEFINE_enum("kind", "flat", KINDS, "With --export: exact (flat), or approximate; the recall is logged.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Join the other processes of a Cloud TPU, Slurm or Open MPI job, or those that the next three flags describe. "
    "By default, processes join if the environment names others.",
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of the first process.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
TIMEOUT = flags.DEFINE_integer(
    "timeout_seconds", 120, "Wait this long for the other processes; one that is silent for longer ends the run."
)

STOPPED = 143  # exit code of a run that SIGTERM stopped, as shells number it

logger = logging.getLogger("rice_jax")


def main(arguments: list[str]) -> None:
    log_to_stderr(verbose=bool(flags.FLAGS["verbosity"].present))
    directory = Path(WORKDIR.value or "").absolute()
    try:
        if MODE.value == "compare":
            return compare(directory, [Path(argument) for argument in arguments[1:]])
        if EXPORT.value and MODE.value != "index":
            raise ConfigError(f"--export: found in {MODE.value}, expected in index only")
        if arguments[1:]:
            raise ConfigError(f"{MODE.value}: found {' '.join(arguments[1:])!r}, expected only flags")
        join(DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, TIMEOUT.value)
        keep_compiled()
        config = resolve(CONFIG.value.to_dict(), directory)
        require_same({"--mode": MODE.value} | common_facts(config))
        with leaving_no_trace(directory, CHECKPOINTS, file=PRODUCTS):
            share_directory(directory)
            # Both change the results; an index has a lock of its own.
            with only_program(directory) if MODE.value in ("train", "eval") else contextlib.nullcontext():
                run(config, directory, MODE.value)
    except (ConfigError, CheckpointError, DataError, ProcessError, OSError, FloatingPointError) as error:
        leave(lost_process(error) or f"{type(error).__name__}: {error}")
    except Exception as error:
        if jax.process_count() == 1:
            raise
        leave(lost_process(error) or traceback.format_exc())


def run(config: Config, workdir: Path, mode: str) -> None:
    """Trains, evaluates, detects or indexes; see the flags."""
    mesh = create_mesh(config.mesh)
    logger.info("%d %s devices as %s", mesh.size, jax.default_backend(), dict(mesh.shape))
    task = TASKS[config.task]
    for setting in config.model.aggregation.unread:
        logger.warning("%s: is not read with config.model.aggregation.kind=%r", setting, config.model.aggregation.kind)
    if mode == "index":
        return index(config, task, workdir, mesh)
    if mode == "train":
        config = task.prepare(config, workdir)
    model = task.model(config)
    this = Run(config, workdir, mesh, model, create_model(model, mesh), abstract_params(model, mesh))
    if mode == "detect":
        return detect(this, task)
    if mode == "eval":
        source, done = newest_weights(workdir, config.model.init_from)
        this = dataclasses.replace(this, source=source)
        evaluate(this, task, done)
    else:
        done = run_training(this, task)
    if jax.process_index() == 0:
        print(f"\n{task.summary(this, done)}\n\n{this.place.results}")
    if mode == "train" and done < config.train.total_steps:
        sys.exit(STOPPED)  # so that a launcher can tell a run to be continued from a finished one


def run_training(this: Run, task: Task) -> int:
    """Trains from the newest checkpoint, or from `init_from`, or from fresh weights; returns the steps done."""
    config, workdir, mesh = this.config, this.workdir, this.mesh
    require_installed(config.train.tracker_names)
    require_even_batch(config.data.batch_size, mesh)
    data = training_digests(config.input)
    require_same(data)
    log_epochs(config)
    optimizer = run_optimizer(config, this.model, mesh)
    rates = learning_rates(config.optimizer, config.train.total_steps)
    step = training_step(this.graphdef, optimizer, task.loss(config, mesh), rates)
    evaluators = task.evaluators(this)
    with checkpoint.open_checkpoints(workdir, config.train.keep_checkpoints) as checkpoints:
        newest = checkpoints.latest_step()
        if newest is None:
            state = create_state(initial_params(this), optimizer, mesh)
        else:
            logger.info("resuming %s from step %d", workdir, newest)
            state = resume_run(this, checkpoints, newest, optimizer, data)
        first_step = int(state.step)
        start = first_step * config.data.batch_size
        batches = task.batches(config, start, jax.process_index(), jax.process_count())
        if jax.process_index() == 0:
            if config.model.text == "tower":
                keep_tokenizer(Path(config.input.tokenizer), workdir)
            write_record(workdir / "run.json", config, sys.argv[1:], mesh, data, first_step)
        state = train(config, mesh, step, state, batches, checkpoints, evaluators, data)
    return int(state.step)


def evaluate(this: Run, task: Task, step: int) -> None:
    """Evaluates the run's source, weights after `step` steps."""
    assert this.source
    evaluators = task.evaluators(this)
    params = start_from(this.source, create_params(this.model, this.mesh, this.config.seed), this.model)
    for evaluator in evaluators.values():
        evaluator(step, params)


def detect(this: Run, task: Task) -> None:
    """Writes the boxes that a detector finds in a data set, and draws some clips."""
    if not hasattr(task, "detect"):
        raise ConfigError(f"detect: found config.task={this.config.task!r}, expected 'detection'")
    source, step = newest_weights(this.workdir, this.config.model.init_from)
    params = start_from(source, create_params(this.model, this.mesh, this.config.seed), this.model)
    path = task.detect(dataclasses.replace(this, source=source), step, params)
    if jax.process_index() == 0:
        print(f"\n{path}")


def index(config: Config, task: Task, workdir: Path, mesh: Mesh) -> None:
    """Updates the index of a shop, and exports it if asked to."""
    directory, images = Path(config.index.directory or workdir / "index"), config.index.images
    if not (images or EXPORT.value):
        raise ConfigError("index: found config.index.images='', expected a directory or CSV, or --export")
    if EXPORT.value:
        require_faiss()
    if images and config.index.change == "remove":
        if jax.process_index() == 0:
            remove_pictures(directory, images)
    elif images:
        settings = ModelSettings.of_run(config, task.model(config))
        source, _ = newest_weights(workdir, config.model.init_from)
        update_index(
            directory,
            images,
            place_model(source, settings, mesh, workdir=workdir),
            change=config.index.change,
            mix=config.index.mix,
            batch_size=config.eval.batch_size,
            num_threads=config.data.num_threads,
        )
    if jax.process_index() == 0:
        exported = export_faiss(directory, read_index(directory), KIND.value) if EXPORT.value else None
        print(exported or directory / FILE)


def compare(workdir: Path, runs: list[Path]) -> None:
    """Writes a page that compares several runs; needs no model."""
    path = workdir / "compare.html"
    write_comparison(path, runs)
    print(path)


def start(arguments: list[str]) -> None:
    """Parses flags and runs `main`; the first argument is the program's name."""
    flags.mark_flag_as_required("workdir")
    flags.register_multi_flags_validator(
        ["config", "mode"],
        lambda given: given["config"] is not None or given["mode"] == "compare",
        "Flag --config must have a value other than None.",
    )
    app.run(main, argv=arguments, flags_parser=parse_flags)


if __name__ == "__main__":
    start(sys.argv)

"""The front door: flags and wiring."""

import importlib.util
import logging
import sys
import traceback
from pathlib import Path

import jax
from absl import app, flags
from absl import logging as absl_logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import config_flags

from rice_jax.config import Config, ConfigError, resolve
from rice_jax.eval.results import read_results
from rice_jax.index.store import FILE, export_faiss, read_index
from rice_jax.index.update import remove_pictures, update_index
from rice_jax.input.detection import detection_batches
from rice_jax.input.pipeline import train_batches
from rice_jax.models.create import create_model, create_params
from rice_jax.models.weights import CheckpointError, missing, newest_weights, require_trained, start_from
from rice_jax.pages import tables
from rice_jax.pages.compare import write_comparison
from rice_jax.pages.draw import draw_clips
from rice_jax.parallel.compilation import keep_compiled
from rice_jax.parallel.mesh import create_mesh
from rice_jax.parallel.processes import ProcessError, join, leave, share_directory
from rice_jax.tasks import domains
from rice_jax.tasks.detection import detection_evaluator, detection_table, write_detections
from rice_jax.tasks.retrieval import retrieval_evaluator, row_name
from rice_jax.train import checkpoint
from rice_jax.train.detection import detection_step
from rice_jax.train.loop import Evaluator, train
from rice_jax.train.optimizer import create_optimizer
from rice_jax.train.state import create_state, resume
from rice_jax.train.steps import retrieval_step
from rice_jax.types import DataError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings, e.g. configs/sample.py; --config.a.b=c overrides one."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, metrics, results.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "detect", "index", "compare"],
    "train (and evaluate), only evaluate the newest checkpoint, write a detector's boxes in config.data.detect, make "
    "or change an index of the pictures in config.index.images, or compare the runs whose workdirs are the arguments, "
    "which needs no --config.",
)
EXPORT = flags.DEFINE_enum("export", None, ["faiss"], "With --mode=index: write the index in this form, too.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Join the other processes; Cloud TPU, Slurm and Open MPI need no further flag. Not given: if the environment "
    "tells of other processes.",
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "Elsewhere: host:port of the first process,")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many there are,")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "and which one this is, from 0.")
TIMEOUT = flags.DEFINE_integer(
    "timeout_seconds", 120, "How long to wait for the other processes, and after which a silent one ends the run."
)

STOPPED = 143  # exit code of a run that SIGTERM stopped, as shells number it

# What to do where a module has not been trained.
MATCHING = "evaluate a run that trained with config.loss.pmd_weight above 0, or set config.eval.rerank=0"
DETECTING = "use the --config of a run that trained one"

logger = logging.getLogger("rice_jax")


def main(arguments: list[str]) -> None:
    speak()
    keep_compiled()
    try:
        if MODE.value == "compare":
            return compare(Path(WORKDIR.value), [Path(argument) for argument in arguments[1:]])
        if arguments[1:]:
            raise ConfigError(f"found {' '.join(arguments[1:])!r}, expected nothing but flags with --mode={MODE.value}")
        join(DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, TIMEOUT.value)
        config, workdir = resolve(CONFIG.value.to_dict()), Path(WORKDIR.value).absolute()
        share_directory(workdir)
        run(config, workdir, MODE.value)
    except (ConfigError, CheckpointError, DataError, ProcessError, OSError, FloatingPointError) as error:
        leave(f"{type(error).__name__}: {error}")
    except Exception:
        if jax.process_count() == 1:
            raise
        leave(traceback.format_exc())


def run(config: Config, workdir: Path, mode: str) -> None:
    """Trains, evaluates, detects or indexes; see the flags."""
    mesh = create_mesh(config.mesh)
    logger.info("%d %s devices as %s", mesh.size, jax.default_backend(), dict(mesh.shape))
    if mode == "index":
        return index(config, workdir, mesh)
    graphdef = create_model(config.model, mesh)
    params = create_params(config.model, mesh, config.seed)
    if mode == "detect":
        return detect(config, workdir, mesh, graphdef, params)
    if config.model.detector:
        evaluate = detection_evaluator(config, graphdef, params, mesh, workdir)
    elif config.data.domains:
        evaluate = domains.domain_evaluator(config, graphdef, params, mesh, workdir)
    else:
        evaluates = mode == "eval"
        evaluate = retrieval_evaluator(
            config,
            graphdef,
            params,
            mesh,
            workdir,
            match_before_training=evaluates,
            report_from_step=0 if evaluates else config.train.total_steps,
            with_attention=config.model.pmd is not None
            and not (evaluates and missing(newest_weights(workdir, config.model.init_from)[0], params, "pmd")),
        )
    if mode == "train":
        done = run_training(config, workdir, mesh, graphdef, params, evaluate)
    else:
        source, done = newest_weights(workdir, config.model.init_from)
        if config.eval.rerank:
            require_trained(source, params, "pmd", "decoder to match with", MATCHING)
        if config.model.detector:
            require_trained(source, params, "detector", "detector of this kind", DETECTING)
        evaluate(done, start_from(source, params, config.model))
    if jax.process_index() == 0:
        print_results(workdir, done, config)
    if mode == "train" and done < config.train.total_steps:
        sys.exit(STOPPED)  # so that a launcher can tell a run to be continued from a finished one


def run_training(
    config: Config, workdir: Path, mesh: Mesh, graphdef: nnx.GraphDef, params: PyTree, evaluate: Evaluator
) -> int:
    """Resumes, else starts from given weights, else from fresh ones, and trains; returns the steps done."""
    optimizer = create_optimizer(config.optimizer, config.train.total_steps, mesh)
    with checkpoint.open_checkpoints(workdir, config.train.keep_checkpoints) as checkpoints:
        newest = checkpoints.latest_step()
        if newest is None and config.model.init_from:
            params = start_from(config.model.init_from, params, config.model)
        state, position = create_state(params, optimizer, mesh), 0
        if newest is not None:
            logger.info("resuming %s from step %d", workdir, newest)
            state, position = resume(checkpoints, newest, state, config)
        if config.model.detector:
            name, step, read = "detection", detection_step(graphdef, optimizer, config), detection_batches
        else:
            name, step, read = "retrieval", retrieval_step(graphdef, optimizer, config, mesh), train_batches
        batches = read(config.data, position, jax.process_index(), jax.process_count())
        state = train(config, workdir, mesh, step, state, batches, position, checkpoints, {name: evaluate})
    return int(state.step)


def detect(config: Config, workdir: Path, mesh: Mesh, graphdef: nnx.GraphDef, params: PyTree) -> None:
    """Writes the boxes that a detector finds in a data set, and draws some."""
    if not config.model.detector or not config.data.detect:
        raise ConfigError(
            "--mode=detect: expected a detector (config.model.detector.kind) and the data set to look at "
            "(config.data.detect, e.g. lpr4m/query), found "
            f"{config.model.detector and config.model.detector.kind!r} and {config.data.detect!r}"
        )
    source, step = newest_weights(workdir, config.model.init_from)
    require_trained(source, params, "detector", "detector of this kind", DETECTING)
    params = start_from(source, params, config.model)
    directory = workdir / f"detections-{step}"
    path = write_detections(config, graphdef, params, mesh, directory, source=f"{source} after {step} steps")
    if jax.process_index() == 0:
        draw_clips(config.data, path, config.eval.draw_clips, config.model.detector.num_boxes)
        print(f"\n{path}")


def index(config: Config, workdir: Path, mesh: Mesh) -> None:
    """Brings an index up to date with a shop's pictures, and writes it in another form if asked to."""
    directory = Path(config.index.directory or workdir / "index")
    if config.model.detector or not (config.index.images or EXPORT.value):
        raise ConfigError(
            "--mode=index: expected config.index.images (or --export) and no detector, found "
            f"{config.index.images!r} and {config.model.detector and config.model.detector.kind!r}"
        )
    if EXPORT.value and not importlib.util.find_spec("faiss"):
        raise ConfigError("--export=faiss: faiss is not installed; pip install -e '.[faiss]'")
    if config.index.images and config.index.change == "remove":
        if jax.process_index() == 0:
            remove_pictures(directory, config.index.images)
    elif config.index.images:
        source, _ = newest_weights(workdir, config.model.init_from)
        params = create_params(config.model, mesh, config.seed)
        with_decoder = config.model.pmd is not None and not missing(source, params, "pmd")
        params = start_from(source, params, config.model)
        graphdef = create_model(config.model, mesh)
        update_index(config, graphdef, params, mesh, directory, source, workdir, with_decoder=with_decoder)
    if jax.process_index() == 0:
        print(export_faiss(directory, read_index(directory)) if EXPORT.value else directory / FILE)


def compare(workdir: Path, runs: list[Path]) -> None:
    """Writes a page about several runs; no model is needed for it."""
    path = workdir / "compare.html"
    write_comparison(path, runs)
    print(path)


def print_results(workdir: Path, step: int, config: Config) -> None:
    path = workdir / "results.json"
    if config.model.detector:
        print(f"\n{detection_table(path)}")
    elif config.data.domains:
        newest = read_results(path, domains.DomainResult).get(row_name(step))
        if newest:
            print(f"\n{row_name(step).capitalize()}.\n\n{domains.domain_tables(newest)}")
    else:
        results = read_results(path)
        newest = [name for name in (row_name(step, config.eval.rerank), row_name(step)) if name in results]
        if newest:
            subsets = tables.subset_table(results[newest[0]])
            print(f"\n{tables.table(results)}\n\nSubsets {newest[0]}:\n{subsets}")
    print(f"\n{path}")


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's own parsing, but a setting that does not exist gets one line instead of a traceback."""
    try:
        return app.parse_flags_with_usage(arguments)
    except AttributeError as error:
        sys.exit(f"ConfigError: unknown setting: {error}\nAll settings are in configs/base.py.")


def speak() -> None:
    """Our own lines go to stderr; the libraries' running commentary only with --verbosity=0."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
        # After a failed save it repeats, in its own words, what our error has said.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        # A checkpoint's failure is logged by every thread of Orbax that it passes, and then raised; once is enough.
        absl_logging.get_absl_logger().addFilter(
            lambda record: record.exc_info is None or "orbax" not in record.pathname
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    flags.register_multi_flags_validator(
        ["config", "mode"],
        lambda given: given["config"] is not None or given["mode"] == "compare",
        "Flag --config must have a value other than None.",
    )
    app.run(main, flags_parser=parse_flags)

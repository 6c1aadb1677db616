"""Compiles training and evaluation for a TPU slice, without the slice, and prints what they need on each chip.

    pip install -e '.[tpu]'
    python scripts/compile_for_tpu.py --config=lpr4m --topology=v5e:2x4 [--config.model.remat=full …]
    python scripts/compile_for_tpu.py --config=lpr4m --topology=v5e:2x4 --largest

The programs are those that `rice_jax.main` runs. A topology is a generation and its chips: v5e-8 is `v5e:2x4`, v5e-256
`v5e:16x16`, v6e-256 `v6e:16x16`, and v4-64, which counts cores, `v4:2x4x4`. `--largest` searches for the largest batch
that fits. The exit code is 1 if a program does not fit. Compiling a program takes a minute or two of one core.

Memory, operations and bytes are the compiler's, per chip. It counts a loop's body once: set
`--config.model.unroll=True` to count every block of the encoder. Collectives are read from the compiled program, and
those in loops count as often as they run. "Sent" is what leaves a chip when data goes around a ring of n chips:
(n - 1) / n of an array for a gather or a scatter, twice that for an all-reduce. By the schedule a collective goes on
"meanwhile", beside computation, or "alone". The least time that sending takes is that of all links of a chip at once.

The lower bound on a step's time is the fewest operations that it needs (`scripts/benchmark.py flops`) at the chip's
peak.

The least that a chip has to send in a training step on B pairs over n chips, with P parameters, E numbers in an
embedding, T frames of L tokens of D numbers, and K negatives of an image, in the compute dtype unless stated otherwise:

    gradients       2 · (n - 1) / n · P: products leave them in the compute dtype; chunks, which add theirs up
                    (`config.train.grad_cache_chunks`), in float32
    embeddings      (n - 1) / n · 2 · B · E in float32: every chip gets all videos', and their gradients go back; the
                    images' softmax takes a few numbers per pair
    candidates      (n - 1) / n · 2 · (1 + K) · B · D: every image's query to every chip, and the outputs for its K
                    videos back, each with its gradient; nothing with `--config.loss.negatives=device`

Which videos are candidates of which image is not known at compile time, so a query goes to every chip and attends to
all videos. With more than one pair of blocks the videos' keys and values move instead: those of all B videos, where
those of K · B / n would do; (n - 1) / n · 2 · K · B / n · T · L · D is the least. `fsdp` adds gathers of parameters,
which are not counted.

COPE (`config.task="cope"`), with its C centers of classes split over f chips (`config.mesh.fsdp`), in float32:

    embeddings      2 · (n - 1) / n · V · B · E: every chip gets all rows of the V views that stand second in a pair,
                    and their gradients go back
    classes         2 · (f - 1) / f · B · f / n · E for each domain that is no such view: the rows that a chip's group
                    classifies
    centers         2 · (1 - f / n) · C / f · E: the gradients of centers that other groups hold, too; `gradients` are
                    those of all other parameters
"""

import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed
import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import config_flags

from rice_jax.config import Config, ConfigError
from rice_jax.config.command_line import parse_flags
from rice_jax.config.cope import DOMAINS
from rice_jax.eval.embed import compile_embedder, model_embedder, padded_batch_size
from rice_jax.models.cope import CopeConfig
from rice_jax.models.create import create_model, create_params
from rice_jax.ops import matmul
from rice_jax.parallel.mesh import create_mesh, require_even_batch
from rice_jax.tasks import TASKS, resolve
from rice_jax.tasks.start import run_optimizer
from rice_jax.train.state import create_state
from rice_jax.train.steps import compile_step, training_step
from scripts.benchmarks.compiled_step import abstract_batch, abstract_rows
from scripts.benchmarks.hlo import Collective, collectives
from scripts.benchmarks.least import least_operations

# Without these libtpu asks the network for its machine, waits for an answer, and locks chips.
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Printed of every step; smaller ones are summed up.
NUM_COLLECTIVES = 12


class Chip(NamedTuple):
    memory: float  # GiB that programs may use, as the compiler refuses more
    peak: float  # bfloat16 operations per second
    link: float  # bytes that it can send per second, over all links to other chips
    options: dict[str, str] = {}  # of its topologies


# Source: Google Cloud's system architecture pages; `memory` is what remains of 16, 32, 95 and 32 GB, and `link` half of
# the bandwidth in both directions, of a v4 the all-reduce bandwidth of a pod over its chips.
CHIPS = {
    "v4": Chip(30.75, 275e12, 269e9, {"chip_config_name": "megacore"}),
    "v5e": Chip(15.75, 197e12, 200e9),
    "v5p": Chip(95.74, 459e12, 600e9),
    "v6e": Chip(31.25, 918e12, 400e9),
}


class Program(NamedTuple):
    """A step compiled for one chip of many."""

    memory: dict[str, int]  # bytes by kind
    operations: float
    bytes_accessed: float
    collectives: list[Collective]

    @property
    def needed(self) -> int:
        """Bytes held at once: results lie where the donated arguments were."""
        return sum(self.memory.values()) - 2 * self.memory["aliased"]


class TooLarge(Exception):
    """A program that does not fit; the compiler's message has the memory needed and available."""

    @property
    def excess(self) -> float:
        """The memory needed over the memory available; 1 if the compiler does not name them."""
        sizes = [float(size) for size in re.findall(r"\b([\d.]+)G\b", str(self))]
        return max(1.0, sizes[0] / sizes[1]) if len(sizes) > 1 else 1.0


def main(_) -> None:
    matmul.platform = lambda: "tpu"  # and not that of this machine
    try:
        config, chip = resolve(CONFIG.value.to_dict()), chip_of(TOPOLOGY.value)
        devices = devices_of(TOPOLOGY.value)
        if LARGEST.value:
            batch_size = largest_batch(config, devices, chip)
            print(
                f"{TOPOLOGY.value}: the largest batch that fits is {batch_size:,}, {batch_size // len(devices)} a chip"
            )
            return
        print(f"{TOPOLOGY.value}: {len(devices)} chips of {chip.memory} GiB")
        fits = report(config, devices, chip)
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    sys.exit(0 if fits else 1)


def report(config: Config, devices: list[jax.Device], chip: Chip) -> bool:
    """Compiles and prints all steps, and returns whether they fit."""
    mesh = create_mesh(config.mesh, devices)
    fits = True
    for name, lower in steps(config, mesh).items():
        print(f"\n{name}", flush=True)
        try:
            print_program(compile_program(lower, chip), chip)
        except TooLarge as error:
            print(f"  does not fit: {error}", flush=True)
            fits = False
    params = jax.eval_shape(lambda: create_params(TASKS[config.task].model(config), mesh, config.seed))
    sent = least_sent(config, mesh.size, sum(leaf.size for leaf in jax.tree.leaves(params)))
    parts = ", ".join(f"{name} {size / 2**20:.3f}" for name, size in sent.items())
    print(f"\nThe least that a chip sends in a training step: {sum(sent.values()) / 2**20:.3f} MiB ({parts})")
    try:
        least = sum(least_operations(config).values())
    except ConfigError as error:
        print(f"The fewest operations are not known. {error}")
        return fits
    seconds = least / mesh.size / chip.peak
    pairs = config.data.batch_size
    print(f"Training on {pairs:,} pairs takes {least / mesh.size / 1e9:,.0f} · 10⁹ operations of every chip or more:")
    print(
        f"{seconds * 1e3:.2f} ms at its peak of {chip.peak / 1e12:.0f} · 10¹² a second, {pairs / seconds:,.0f} pairs/s"
    )
    return fits


def print_program(program: Program, chip: Chip) -> None:
    """Memory, operations and collectives of one chip."""
    share = program.needed / 2**30 / chip.memory
    print(f"  {'memory':34}{program.needed / 2**30:10.3f} GiB, {share:.0%} of the chip's")
    for kind, size in program.memory.items():
        print(f"    {kind:32}{size / 2**30:10.3f} GiB")
    print(f"  {'operations, loops once':34}{program.operations / 1e9:10.1f} · 10⁹")
    print(f"  {'bytes accessed, loops once':34}{program.bytes_accessed / 2**30:10.3f} GiB")
    sent = sum(one.sent for one in program.collectives)
    alone = sum(one.sent for one in program.collectives if not one.overlaps)
    print(f"  {'collectives':34}{sent / 2**20:10.3f} MiB sent by a chip, {1e3 * sent / chip.link:.2f} ms or more")
    print(f"  {'… while it computes nothing':34}{alone / 2**20:10.3f} MiB, {1e3 * alone / chip.link:.2f} ms or more")
    for one in program.collectives[:NUM_COLLECTIVES]:
        shape = one.shape if len(one.shape) < 60 else f"{one.shape[:50]} … ({one.shape.count('[')} arrays)"
        how = "meanwhile" if one.overlaps else "alone"
        print(f"    {one.sent / 2**20:12.3f} MiB  {how}  {one.kind} × {one.runs} among {one.group or '?'}, {shape}")
    if rest := program.collectives[NUM_COLLECTIVES:]:
        print(f"    {sum(one.sent for one in rest) / 2**20:12.3f} MiB  {sum(one.runs for one in rest)} smaller ones")


def least_sent(config: Config, chips: int, parameters: int) -> dict[str, float]:
    """Bytes that a chip has to send in a training step, by the terms in this module's docstring."""
    data, model, loss = config.data, config.model, config.loss
    size, share = jnp.dtype(model.dtype).itemsize, (chips - 1) / chips
    candidates = 0
    parts = TASKS[config.task].model(config)
    if isinstance(parts, CopeConfig):
        return _least_of_cope(config, parts, chips, parameters)
    pmd = parts.pmd
    if pmd and loss.negatives == "batch" and pmd.num_pairs == 1:
        candidates = (1 + loss.num_negatives) * data.batch_size
    elif pmd and loss.negatives == "batch":
        candidates = loss.num_negatives * data.batch_size / chips * data.num_frames * model.num_tokens
    return {
        "gradients": 2 * share * parameters * (size if config.train.grad_cache_chunks == 1 else 4),
        "embeddings": 2 * share * data.batch_size * model.embed_dim * 4,
        "candidates": 2 * share * candidates * model.width * size,
    }


def _least_of_cope(config: Config, parts: CopeConfig, chips: int, parameters: int) -> dict[str, float]:
    """The same for COPE, whose centers of classes are split over `fsdp`."""
    batch, chunks = config.data.batch_size, config.train.grad_cache_chunks
    size, share = jnp.dtype(config.model.dtype).itemsize, (chips - 1) / chips
    split = config.mesh.fsdp if config.mesh.fsdp > 0 else chips // config.mesh.data
    rows, centers = batch * parts.embed_dim * 4, parts.num_classes * parts.embed_dim
    views = {second for _, second, _ in config.loss.cope.weighted_pairs}
    classified = len({*DOMAINS} - views) if parts.num_classes else 0
    return {
        "gradients": 2 * share * (parameters - centers) * (size if chunks == 1 else 4),
        "embeddings": 2 * share * len(views) * rows,
        "classes": 2 * (split - 1) / split * classified * rows * split / chips,
        "centers": 2 * (1 - split / chips) * centers / split * 4,
    }


def largest_batch(config: Config, devices: list[jax.Device], chip: Chip) -> int:
    """The largest batch whose training step fits, a multiple of chips and chunks.

    The compiler reports the need of a step that does not fit ten times faster than it compiles one that fits. Memory
    grows no faster than the batch, so shrinking the batch by the excess never goes too far.

    Raises:
        ConfigError: not even the smallest batch fits.
    """
    unit = len(devices) * config.train.grad_cache_chunks
    fits, units, failed = 0, max(1, config.data.batch_size // unit), False
    while units > fits:
        changed = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=units * unit))
        try:
            program = compile_program(steps(changed, create_mesh(config.mesh, devices))["training"], chip)
            print(f"{units * unit:>10,} pairs: {program.needed / 2**30:.2f} GiB", flush=True)
            fits, units = units, units if failed else 2 * units
        except TooLarge as error:
            print(f"{units * unit:>10,} pairs: {error}", flush=True)
            units, failed = max(fits, min(units - 1, int(units / error.excess))), True
    if not fits:
        raise ConfigError(f"config.data.batch_size: not even {unit} pairs fit on {len(devices)} chips")
    return fits * unit


def steps(config: Config, mesh: Mesh) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """The programs that `rice_jax.main` runs with a configuration: {name: function that lowers it}.

    Raises:
        ConfigError: it trains a detector, or a batch does not divide over the devices.
    """
    if config.task == "detection":
        raise ConfigError("config.task: found 'detection', expected 'retrieval', 'domains', or 'cope'")
    task = TASKS[config.task]
    require_even_batch(config.data.batch_size, mesh)
    model = task.model(config)
    graphdef = create_model(model, mesh)
    optimizer = run_optimizer(config, model, mesh)
    params = jax.eval_shape(lambda: create_params(model, mesh, config.seed))
    state = jax.eval_shape(lambda: create_state(params, optimizer, mesh))
    step = compile_step(training_step(graphdef, optimizer, task.loss(config, mesh)), state, mesh)
    with_queries = config.eval.rerank > 0 and config.eval.rerank_keep_tokens
    embedder = compile_embedder(model_embedder(graphdef, with_queries=with_queries), params, mesh)
    batch_size = padded_batch_size(config.eval.batch_size, mesh)
    data = dataclasses.replace(config.data, batch_size=batch_size, num_frames=config.eval.num_frames)
    rows = abstract_batch(dataclasses.replace(config, data=data))
    return {
        "training": lambda: step.lower(state, abstract_rows(config)),
        "embedding images": lambda: embedder.image.lower(params, {"image": rows["image"]}),
        "embedding videos": lambda: embedder.video.lower(params, rows),
    }


def compile_program(lower: Callable[[], jax.stages.Lowered], chip: Chip) -> Program:
    """Compiles a step.

    Raises:
        TooLarge: it needs more memory than a chip has, by the compiler's error or by its memory analysis.
    """
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(re.sub(r".*?RESOURCE_EXHAUSTED: ", "", str(error).splitlines()[0])) from error
    needed, cost = compiled.memory_analysis(), compiled.cost_analysis()
    memory = {
        "arguments": needed.argument_size_in_bytes,
        "outputs": needed.output_size_in_bytes,
        "aliased": needed.alias_size_in_bytes,
        "temporaries": needed.temp_size_in_bytes,
        "code": needed.generated_code_size_in_bytes,
    }
    program = Program(memory, cost["flops"], cost["bytes accessed"], collectives(compiled.as_text()))
    if program.needed > chip.memory * 2**30:
        raise TooLarge(f"It needs {program.needed / 2**30:.2f}G of {chip.memory}G.")
    return program


def chip_of(topology: str) -> Chip:
    """The chip of `v5e:16x16`.

    Raises:
        ConfigError: no such chip.
    """
    if (name := topology.partition(":")[0]) not in CHIPS:
        raise ConfigError(f"--topology: found {topology!r}, expected one of {', '.join(CHIPS)} and a size: v5e:16x16")
    return CHIPS[name]


def devices_of(topology: str) -> list[jax.Device]:
    """The chips of a slice, which does not have to exist.

    Raises:
        ConfigError: their compiler is not installed, or there is no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the TPU's compiler, libtpu, is not installed: pip install -e '.[tpu]'")
    os.environ.update(LIBTPU)
    jax.config.update("jax_platforms", "cpu")
    try:
        options = chip_of(topology).options
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"--topology: found {topology!r}, expected a slice like v5e:16x16: {error}") from error


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file(
        "config", None, "Config file, or the name of one that comes with rice_jax; --config.a.b=c overrides a setting."
    )
    TOPOLOGY = flags.DEFINE_string("topology", None, "Slice, e.g. v5e:16x16.")
    LARGEST = flags.DEFINE_bool("largest", False, "Look for the largest batch whose training step fits.")
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main, flags_parser=parse_flags)

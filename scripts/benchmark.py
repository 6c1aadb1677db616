"""Measures the speed and memory of training, encoding, ranking, recognition and the input pipeline.

    python scripts/benchmark.py step [--batch=4] [--cores=N] [--rounds=5] [--seconds=2] [--profile=DIR] [--alone]
                                     [--config=lpr4m] [--config.…]
    python scripts/benchmark.py encode [--batch=8] [--cores=N] [--rounds=5] [--seconds=2] [--profile=DIR] [--config.…]
    python scripts/benchmark.py attention [--batch=8] [--cores=N] [--rounds=5] [--seconds=2] [--config.…]
    python scripts/benchmark.py rank [--sizes=20079x66358x110,20079x66358x110x10] [--cores=N] [--rounds=5]
    python scripts/benchmark.py live [--images=1000] [--rerank=50] [--frames=300] [--cores=N] [--config.…]
    python scripts/benchmark.py flops [--config.data.batch_size=16 …]
    python scripts/benchmark.py memory [--chunk=64] [--config.data.batch_size=1024 …]
    python scripts/benchmark.py data [--cores=N] [--clips=1500] [--rounds=5] [--seconds=5] [--config.data.resize=288 …]

Settings are the defaults (docs/settings.md), or those of `--config`, unless `--config.…` changes them. `step`,
`encode`, `attention`, `rank`, `live` and `data` also print their numbers as a line of JSON. In the first four the
programs that are compared take turns, once a round. Speeds and ratios of wall-clock speeds are medians over the rounds.
A core-second is a second of one core's time, which other programs on the machine hardly affect. `step`, `encode`,
`attention` and `live` run on the first device that JAX finds: on a CPU in float32 and at one small batch size,
elsewhere in bfloat16 and at several sizes. FLOP are the fewest with which any program can do the work
(`scripts/benchmarks/least.py`), and utilization is their share of the device's peak, which is not known for CPUs.
`--profile` writes a trace of our program for each row.
- `step` trains RICE with ICL, PMD, PFR and AdamW, and compares this with a naive step in JAX that matches as the
  reference does, and with one that matches pair by pair. None has dropout. With `--alone`, and where there is no
  decoder (`--config.loss.pmd_weight=0`, `--config=cope`), our step is measured alone.
- `encode` encodes pictures, and computes the gradients of the weights, and compares this with transformers' encoder of
  the same sizes in PyTorch on as many cores, if PyTorch is installed; in bfloat16, too, where a CPU has AVX-512.
- `attention` computes the attention of one block of the encoder, and its gradients, by the compiler, as our encoders
  do, and by cuDNN where that can.
- `rank` ranks random embeddings, by default with LPR4M's numbers of queries, images and galleries, also by ten frames a
  query, and with one gallery of a million images, and compares this with plain numpy, which holds all scores of a
  gallery, and with faiss, if it is installed, which finds only the first ten, and not by frames. Memory is the peak of
  the process. It needs Linux.
- `live` measures the time from pushing a frame, a JPEG of 720 × 1280, to a `Recognizer` until its ranking of an index
  of random images, with and without re-ranking, while the window is full and nothing else runs: with the sample shop's
  model and with ViT-B/32, or with the model of the given settings.

`flops` counts the operations of our step, the fewest that RICE needs, and those of a step that matches as the reference
does. `memory` measures what a step needs in addition to its state and batch, with and without recomputing activations,
and, for batches of several chunks, in chunks of `--chunk` pairs (`config.train.grad_cache_chunks`). Both compile for
float32 and without dropout, and take about a minute of one core.

`data` simulates a download of LPR4M: rows of 118 frames, and pictures of 256 pixels and quality 95 in img2dataset's
tars, both from simulated clips. It measures on N cores, by default all:
- how many pictures `data/build.py` indexes, and how many clips it builds, with one worker and with N, without start-up;
- how many pictures the training input of the config lpr4m makes with N threads, in small batches. This is compared with
  decoding the same pictures to RGB in N processes and doing nothing else, by Pillow and by simplejpeg, which the input
  uses if the device resizes. Decoding and resizing by Pillow shows the cost of resizing.
It derives the hours of a whole build and the cores that keep a v5e-8 busy. Ratios and derived numbers are based on
core-seconds. Decoding, resizing and input take turns, and ratios are medians over the rounds. Files are read from the
page cache. It takes minutes and 1 GB in TMPDIR, and needs Linux.
"""

import argparse
import ast
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

import jax

from rice_jax.config import Config, ConfigError, default_config, load_config
from rice_jax.tasks import resolve
from scripts.benchmarks.compiled_step import compiled_step, operations
from scripts.benchmarks.least import encoder_operations, least_operations
from scripts.benchmarks.naive import NaiveRice
from scripts.benchmarks.timing import on_cores, print_rows

ENCODER = Path(__file__).resolve().parents[1] / "data/sample/encoder"
SIZES = "20079x66358x110,20079x66358x110x10,200x1000000x1"  # LPR4M's, also by frames; and a million images


def main(arguments: list[str] | None = None) -> None:
    """Prints one of the tables.

    Args:
        arguments: of the command line, `sys.argv[1:]` by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="step|encode|attention|rank|live|flops|memory|data")
    for command in (step, encode, attention, rank, live, flops, memory, data):
        subparser = commands.add_parser(command.__name__, description=command.__doc__)
        subparser.set_defaults(command=command)
    positive, add = _positive(int), {name: subparser.add_argument for name, subparser in commands.choices.items()}
    for name in ("step", "encode", "attention", "rank", "live", "data"):
        add[name]("--cores", type=positive, help="number of cores (default: all)")
    for name in ("step", "encode", "attention", "rank", "data"):
        add[name]("--rounds", type=positive, default=5, help="measurements of each (default: 5)")
    for name, seconds in (("step", 2.0), ("encode", 2.0), ("attention", 2.0), ("data", 5.0)):
        text = f"duration of a measurement (default: {seconds:.0f})"
        add[name]("--seconds", type=_positive(float), default=seconds, help=text)
    for name in ("step", "encode", "attention"):
        add[name]("--batch", type=_several(positive), help="batch sizes, separated by commas")
    for name in ("step", "encode"):
        add[name]("--profile", type=Path, help="directory for traces, which TensorBoard and Perfetto show")
    add["step"]("--alone", action="store_true", help="measure our step only")
    add["step"]("--config", default="", metavar="NAME", help="settings that are not the defaults, such as cope")
    add["rank"](
        "--sizes",
        type=_several(_size),
        default=SIZES,
        help="queries x images x galleries, x frames to rank by frames, separated by commas",
    )
    add["live"]("--images", type=positive, default=1000, help="size of the index (default: 1000)")
    add["live"]("--rerank", type=positive, default=50, help="candidates to re-rank, in every second row (default: 50)")
    add["live"]("--frames", type=positive, default=300, help="number of frames (default: 300)")
    add["data"]("--clips", type=positive, default=1500, help="simulated clips (default: 1500)")
    add["memory"]("--chunk", type=positive, default=64, help="pairs (default: 64)")
    args, rest = parser.parse_known_args(arguments)
    if wrong := [flag for flag in rest if not re.fullmatch(r"--config\.[\w.]+=.+", flag)]:
        parser.error(f"found {' '.join(wrong)}, expected --config.x.y=value")
    overrides = dict(flag.removeprefix("--config.").split("=", 1) for flag in rest)
    options = vars(args)
    command = options.pop("command")
    if command not in (step, encode, attention, live):
        jax.config.update("jax_platforms", "cpu")
    try:
        command({name: _literal(value) for name, value in overrides.items()}, **options)
    except (ConfigError, KeyError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def step(
    overrides: Mapping,
    *,
    batch: list[int] | None,
    cores: int | None,
    rounds: int,
    seconds: float,
    profile: Path | None,
    alone: bool,
    config: str,
) -> None:
    """Measures the speed of training RICE and of a step that matches as the reference does."""
    from scripts.benchmarks import step_speed

    with on_cores(cores) as used:
        own = {"data.num_frames": 3} if on_cpu() else {}
        sizes = [4] if on_cpu() else [32, 96, 256]
        if "data.batch_size" in overrides:
            sizes = [overrides["data.batch_size"]]
        configs = [
            settings({**own, **default_dtype(), **overrides, "data.batch_size": size}, config)
            for size in batch or sizes
        ]
        alone = alone or configs[0].task == "cope" or not configs[0].loss.pmd_weight  # nothing to match with
        rows = step_speed.measure(configs, rounds, seconds, profile, alone)
        print_rows(step_speed.COLUMNS, rows, **about(configs[0], used))


def encode(
    overrides: Mapping, *, batch: list[int] | None, cores: int | None, rounds: int, seconds: float, profile: Path | None
) -> None:
    """Measures the speed of encoding pictures, here and in PyTorch."""
    from scripts.benchmarks import encode_speed

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or a GPU has no room for PyTorch
    with on_cores(cores) as used:
        config = settings({**default_dtype(), **overrides})
        sizes = batch or ([8] if on_cpu() else [64, 256, 1024])
        learning, weights_learning = encoder_operations(config)
        forward = sum(learning.values()) + sum(weights_learning.values())
        backward = 2 * sum(learning.values()) + sum(weights_learning.values())
        operations = dict(zip(encode_speed.WORKS, (forward, forward + backward), strict=True))
        rows = encode_speed.measure(config.model.encoder, sizes, operations, used, rounds, seconds, profile)
        print_rows(encode_speed.COLUMNS, rows, **about(config, used))
    if why := encode_speed.missing_torch(jax.devices()[0]):
        print(f"{why}: no rows of it", file=sys.stderr)


def attention(overrides: Mapping, *, batch: list[int] | None, cores: int | None, rounds: int, seconds: float) -> None:
    """Measures the speed of attention, by the compiler and by cuDNN."""
    from scripts.benchmarks import attention_speed

    with on_cores(cores) as used:
        config = settings({**default_dtype(), **overrides})
        sizes = batch or ([8] if on_cpu() else [64, 256, 1024])
        rows = attention_speed.measure(config.model.encoder, sizes, rounds, seconds)
        print_rows(attention_speed.COLUMNS, rows, **about(config, used))


def rank(overrides: Mapping, *, sizes: list[tuple[int, ...]], cores: int | None, rounds: int) -> None:
    """Measures the speed and memory of ranking galleries, here and with numpy and faiss."""
    from scripts.benchmarks import rank_speed

    if overrides:
        raise ConfigError(f"rank: found settings {sorted(overrides)}, expected none")
    with on_cores(cores) as used:
        rows = rank_speed.measure([rank_speed.Size(*size) for size in sizes], rounds)
        print_rows(rank_speed.COLUMNS, rows, cores=used)
    if "faiss" not in rank_speed.methods():
        print("faiss is not installed: no rows of it", file=sys.stderr)


def live(overrides: Mapping, *, cores: int | None, images: int, rerank: int, frames: int) -> None:
    """Measures the time from pushing a frame to its ranking."""
    from scripts.benchmarks import live_speed

    with on_cores(cores) as used:
        configs = {"as set": settings({**default_dtype(), **overrides})}
        if not overrides:
            shop = load_config("sample_icl")
            encoder = json.loads((ENCODER / "config.json").read_text())
            shop.model.update({name: encoder[name] for name in encoder.keys() & {*shop.model} - {"dtype"}})
            shop.model.init_from = ""
            shop.loss.pmd_weight = 1.0  # for a decoder to re-rank with
            configs = {"sample": resolve(shop.to_dict()), "ViT-B/32": configs["as set"]}
        rows = live_speed.measure(configs, images, rerank, frames)
        print_rows(live_speed.COLUMNS, rows, device=jax.devices()[0].device_kind, cores=used, images=images)


def flops(overrides: Mapping) -> None:
    """Counts the operations of ICL alone, of PMD and PFR, and of both together. The default batch is 8."""
    # The compiler's own count takes a loop's body once, however often it runs.
    config, icl = (
        settings({"data.batch_size": 8, **overrides, "model.unroll": True, **weights})
        for weights in ({}, {"loss.pmd_weight": 0.0})
    )
    least = least_operations(config)
    if not config.loss.pmd_weight:
        raise ConfigError("config.loss.pmd_weight: found 0, expected more: the decoder is what is compared")
    icl_operations = operations(icl)
    rows = {
        "least": (sum(least_operations(icl).values()), sum(least.values())),
        "ours": (icl_operations, operations(config)),
        "naive": (icl_operations, operations(config, NaiveRice)),
    }

    def parts(icl: float, whole: float) -> tuple[float, float, float]:
        return icl, whole - icl, whole

    print(f"{'10⁹ operations (ratio to the least)':36}{'ICL':>18}{'PMD and PFR':>18}{'whole step':>18}")
    for name, row in rows.items():
        cells = zip(parts(*row), parts(*rows["least"]), strict=True)
        print(f"{name:36}" + "".join(f"{count / 1e9:10.3f} ({count / fewest:.3f})" for count, fewest in cells))
    print("\nThe least, term by term")
    for name, count in least.items():
        print(f"{name:36}{count / 1e9:10.3f}")


def memory(overrides: Mapping, *, chunk: int) -> None:
    """Counts the bytes of a step: those of its state and batch, and those that it needs in addition while it runs."""
    print(f"{'GiB':20}{'state and batch':>18}{'while it runs':>18}")
    rows = {f"model.remat={remat}": {"model.remat": remat} for remat in ("none", "dots", "full")}
    if (chunks := settings(overrides).data.batch_size // chunk) > 1:
        rows[f"{chunks} chunks"] = {"train.grad_cache_chunks": chunks}
    for name, changes in rows.items():
        needed = compiled_step(settings({**overrides, **changes})).memory_analysis()
        sizes = (needed.argument_size_in_bytes, needed.temp_size_in_bytes)
        print(f"{name:20}" + "".join(f"{size / 2**30:18.3f}" for size in sizes), flush=True)


def data(overrides: Mapping, *, cores: int | None, clips: int, rounds: int, seconds: float) -> None:
    """Measures the speed of building LPR4M, of the training input, and of JPEG decoding alone."""
    from scripts.benchmarks import data_speed  # TFDS and pyarrow take seconds to import

    with on_cores(cores) as used:
        speeds, config = data_speed.measure(used, clips, rounds, seconds, overrides)
    print(data_speed.report(speeds, sum(least_operations(config).values()) / config.data.batch_size))


def on_cpu() -> bool:
    """Whether JAX's default device is a CPU."""
    return jax.default_backend() == "cpu"


def default_dtype() -> dict[str, str]:
    """The compute type that suits the device, as a setting."""
    return {"model.dtype": "float32" if on_cpu() else "bfloat16"}


def about(config: Config, cores: int) -> dict:
    """The facts that all rows of a table share."""
    from scripts.benchmarks.peaks import peak_operations

    model, device = config.model, jax.devices()[0]
    peak = peak_operations(device, model.dtype)
    encoder = f"{model.layers} layers of {model.width}, {model.image_size} px in patches of {model.patch_size}"
    return {
        "device": device.device_kind,
        "peak": f"{peak / 1e12:.0f} TFLOP/s" if peak else "unknown",
        "cores": cores,
        "dtype": model.dtype,
        "encoder": encoder,
    }


def settings(overrides: Mapping, name: str = "") -> Config:
    """The defaults, or the settings of a config that comes with rice_jax, with `{"data.batch_size": 8}` overridden.

    Raises:
        ConfigError: a setting does not exist or has an impossible value.
    """
    values = load_config(name) if name else default_config()
    with values.ignore_type():  # `resolve` checks types with a clearer message
        values.update_from_flattened_dict(
            {"model.dtype": "float32", "model.pmd.attention_dropout": 0.0} | dict(overrides)
        )
    return resolve(values.to_dict())


def _positive(kind: type) -> Callable[[str], float]:
    def positive(text: str) -> float:
        if (value := kind(text)) <= 0:
            raise argparse.ArgumentTypeError(f"found {text}, expected more than 0")
        return value

    return positive


def _several(kind: Callable[[str], object]) -> Callable[[str], list]:
    def several(text: str) -> list:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"found {text}, expected numbers with commas between") from error

    return several


def _size(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2,3}", text):
        expected = "queries x images x galleries like 20x50x2, or with x frames behind"
        raise argparse.ArgumentTypeError(f"found {text}, expected {expected}")
    return tuple(map(int, text.split("x")))


def _literal(value: str):
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


if __name__ == "__main__":
    main()

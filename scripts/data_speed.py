"""How fast data is built and read, beside bare JPEG decoding: `python scripts/benchmark.py data` says the rest."""

import dataclasses
import io
import math
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from absl import flags
from PIL import Image

from configs import lpr4m
from data.img2dataset import build_index, find_outputs
from data.pictures import choose_frames
from rice_jax.config import Config, DataConfig, resolve
from rice_jax.input.pipeline import train_batches
from rice_jax.input.source import Source
from scripts.simulated_download import FRAMES_PER_CLIP, ROOT, simulate_download, some_clips

CLIPS, FRAMES = 4_013_617, 473_402_226  # of LPR4M's training set
STORED_FRAMES = 10  # of a clip, at most: the builder's choice
CHIPS, PEAK, UTILISATION = 8, 197e12, 0.4  # a v5e-8: bf16 operations per second and chip, and the assumed use of them
CORES = (2, 16, 64)  # to tell the hours of
PRODUCTS = 60


@dataclasses.dataclass(frozen=True)
class Speeds:
    """What was measured on `cores` cores; of the last three a value for each round, in pictures per second."""

    cores: int
    indexed: float  # pictures per second, one process
    built_by_one: float  # clips per second
    built_by_all: float
    pictures_per_pair: float  # that the training input decodes
    decoded: list[float]
    resized: list[float]
    read: list[float]


def measure(cores: int, clips: int, rounds: int, seconds: float, overrides: Mapping) -> tuple[Speeds, Config]:
    """Measures everything; the last three take turns, so that their ratios stand where other programs come and go.

    Args:
        cores: processes that build, that decode, and that make batches.
        clips: simulated clips to build and to train on.
        rounds: how often each is measured.
        seconds: how long the last three are measured in a round.
        overrides: {"data.batch_size": 8} and the like, on top of `configs/lpr4m.py`.

    Returns:
        The speeds, and the configuration of the training input.

    Raises:
        ConfigError: a setting cannot be.
    """
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags
    with tempfile.TemporaryDirectory() as directory:
        raw_dir, few, built = (Path(directory) / name for name in ("raw", "few", "built"))
        config = _settings(built, cores, overrides)
        _say("simulating")
        kept = [number for number, _ in choose_frames(range(FRAMES_PER_CLIP), STORED_FRAMES)]
        simulate_download(raw_dir, clips, min(clips, PRODUCTS), kept)
        indexed = _index_speed(raw_dir, Path(directory) / "index", clips * STORED_FRAMES, rounds)
        difference = clips - some_clips(raw_dir, few)
        by_one = _build_speed(raw_dir, few, built, difference, 1, rounds)
        by_all = _build_speed(raw_dir, few, built, difference, cores, rounds) if cores > 1 else by_one
        pictures, per_pair = _pictures_of_a_batch(config.data)
        decoded, resized, read = [], [], []
        with multiprocessing.get_context("spawn").Pool(cores, _take, (pictures, config.model.image_size)) as pool:
            for number in range(rounds):
                _say(f"decoding and reading, round {number + 1} of {rounds}")
                for results, resize in ((decoded, False), (resized, True)):
                    results.append(sum(pool.map(_decode_speed, [(seconds, resize)] * cores, chunksize=1)))
                read.append(_input_speed(config.data, seconds))
    return Speeds(cores, indexed, by_one, by_all, per_pair, decoded, resized, read), config


def report(speeds: Speeds, operations_per_pair: float) -> str:
    """Tables of what was measured and of what follows from it.

    Args:
        speeds: what `measure` returned.
        operations_per_pair: of a training step.
    """
    cores, read = speeds.cores, statistics.median(speeds.read)
    lines = [
        f"{'building LPR4M, one second':44}{'1 process':>12}{f'{cores} processes':>14}",
        f"{'clips stored':44}{speeds.built_by_one:12.1f}{speeds.built_by_all:14.1f}",
        f"{'pictures stored':44}{11 * speeds.built_by_one:12.0f}{11 * speeds.built_by_all:14.0f}",
        f"{'pictures indexed':44}{speeds.indexed:12.0f}",
        "",
        f"{f'pictures in one second, {cores} processes':44}{'all':>12}{'per process':>14}{'ratio':>8}",
    ]
    names = "bare decoding", "decoding and resizing", "training input"
    for name, results in zip(names, (speeds.decoded, speeds.resized, speeds.read), strict=True):
        speed, share = statistics.median(results), ratio(results, speeds.decoded)
        lines.append(f"{name:44}{speed:12.0f}{speed / cores:14.0f}{share:8.2f}")
    lines.append(f"training input / decoding and resizing: {ratio(speeds.read, speeds.resized):.2f}")
    lines += [
        "",
        f"all of LPR4M: {FRAMES:,} frames to index; {CLIPS:,} clips to store, each {STORED_FRAMES} frames and an image",
        f"{'cores like these':24}{'index, hours':>14}{'clips, hours':>14}",
    ]
    for count in CORES:
        index, build = build_hours(speeds, count)
        lines.append(f"{count:<24}{index:14.1f}{build:14.1f}")
    pairs = pairs_per_second(operations_per_pair)
    pictures = pairs * speeds.pictures_per_pair
    lines += [
        "",
        f"a v5e-8 that uses {UTILISATION:.0%} (assumed) of {CHIPS} · {PEAK / 1e12:.0f} · 10¹² operations a second, at "
        f"{operations_per_pair / 1e9:.0f} · 10⁹ a pair,",
        f"takes {pairs:,.0f} pairs and {pictures:,.0f} pictures a second ({speeds.pictures_per_pair:.2f} a pair): "
        f"{math.ceil(pictures * cores / read)} cores like these",
    ]
    return "\n".join(lines)


def ratio(speeds: list[float], others: list[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(speed / other for speed, other in zip(speeds, others, strict=True))


def build_hours(speeds: Speeds, cores: int) -> tuple[float, float]:
    """Hours to index and to build all of LPR4M, if every core adds what it added here."""
    index = FRAMES / (speeds.indexed * cores)
    build = CLIPS / (speeds.built_by_all / speeds.cores * cores)
    return index / 3600, build / 3600


def pairs_per_second(operations_per_pair: float) -> float:
    """Pairs that a v5e-8 trains on in a second."""
    return CHIPS * PEAK * UTILISATION / operations_per_pair


def _settings(data_dir: Path, cores: int, overrides: Mapping) -> Config:
    values = lpr4m.get_config()
    # A batch of 384 takes 0.6 GB, of which each thread makes one; its pictures take as long each.
    own = {"data.batch_size": 32, "data.num_workers": cores, "data.num_threads": 1}
    with values.ignore_type():  # `resolve` says it better
        values.update_from_flattened_dict(own | dict(overrides) | {"data.data_dir": str(data_dir)})
    return resolve(values.to_dict())


def _index_speed(raw_dir: Path, directory: Path, pictures: int, rounds: int) -> float:
    """Pictures per second."""

    def once() -> float:
        start = time.perf_counter()
        build_index(find_outputs(raw_dir), directory)
        shutil.rmtree(directory)
        return time.perf_counter() - start

    return pictures / statistics.median([once() for _ in range(rounds)])


def _build_speed(raw_dir: Path, few: Path, built: Path, difference: int, workers: int, rounds: int) -> float:
    """Clips per second, without what a build takes of any size; nan if the clips are too few to tell.

    Args:
        raw_dir: raw files of many clips.
        few: raw files of few clips.
        built: where to build the many.
        difference: many less few.
        workers: processes.
        rounds: how often to build.
    """
    aside = built.with_name("built_few")

    def seconds(raw: Path, data_dir: Path) -> float:
        command = [sys.executable, ROOT / "data/build.py", "lpr4m", "--raw_dir", raw, "--data_dir", data_dir]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--configs", "train", "--overwrite", "--workers", str(workers)], check=True, capture_output=True
        )
        return time.perf_counter() - start

    _say(f"building with --workers {workers}")
    seconds(few, aside), seconds(raw_dir, built)  # makes the index, which stays
    pairs = [(seconds(few, aside), seconds(raw_dir, built)) for _ in range(rounds)]
    taken = statistics.median(many - few for few, many in pairs)
    return difference / taken if taken > 0 else math.nan


def _pictures_of_a_batch(config: DataConfig) -> tuple[list[bytes], float]:
    """The pictures that the training input decodes for its first batches, and their number for each pair."""
    source = Source(config.data_dir, config.train, ("frames", "image"))
    config = dataclasses.replace(config, num_workers=0)
    batches, pictures, pairs = train_batches(config), [], 0
    while pairs < 128:
        batch = next(batches)
        pairs += len(batch["index"])
        for row, mask in zip(batch["index"], batch["frame_mask"], strict=True):
            example = source[int(row)]
            pictures += [example["image"], *example["frames"][: mask.sum()]]
    batches.close()
    return pictures, len(pictures) / pairs


def _take(pictures: list[bytes], size: int) -> None:
    global _pictures, _size  # multiprocessing hands a worker its constants through globals
    _pictures, _size = pictures, (size, size)


def _decode_speed(task: tuple[float, bool]) -> float:
    """Pictures per second that this process decodes, and resizes if asked to, with nothing but Pillow."""
    seconds, resize = task
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or not count:
        picture = Image.open(io.BytesIO(_pictures[count % len(_pictures)]))  # RGB, as all simulated ones
        if resize:
            picture.draft("RGB", _size)  # decodes at half the size or less, where that is enough
            picture.resize(_size, Image.Resampling.BICUBIC)
        else:
            picture.load()
        count += 1
    return count / taken


def _input_speed(config: DataConfig, seconds: float) -> float:
    """Pictures per second of the training input."""
    batches = train_batches(config)
    for _ in range(max(1, config.num_workers) * (config.num_threads + 2)):
        next(batches)  # made ahead, while the processes started
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or not count:
        batch = next(batches)
        count += len(batch["image"]) + int(batch["frame_mask"].sum())
    batches.close()
    return count / taken


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)

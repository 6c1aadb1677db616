"""The speed of building and reading data, and of JPEG decoding alone (`python scripts/benchmark.py data`)."""

import dataclasses
import io
import json
import math
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import simplejpeg
from absl import flags
from PIL import Image

from data.img2dataset import build_index, find_outputs
from data.pictures import choose_frames
from rice_jax.config import Config, InputConfig, load_config
from rice_jax.input.pipeline import train_batches
from rice_jax.input.source import Source
from rice_jax.tasks import resolve
from scripts.benchmarks.simulated_download import FRAMES_PER_CLIP, ROOT, simulate_download, some_clips
from scripts.benchmarks.timing import Speed, median, ratio

CLIPS, FRAMES = 4_013_617, 473_402_226  # of LPR4M's training set
STORED_FRAMES = 10  # of a clip, at most: the builder's choice
CHIPS, PEAK, UTILIZATION = 8, 197e12, 0.4  # a v5e-8: bf16 operations per second and chip, and the assumed use of them
CORES = (2, 16, 64)  # to tell the hours of
PRODUCTS = 60


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Speeds on `cores` cores; the last four are in pictures and have a value for each round."""

    cores: int
    indexed: Speed  # pictures, by one process
    built_by_one: Speed  # clips
    built_by_all: Speed
    pictures_per_pair: float  # that the training input decodes
    decoded: list[Speed]  # by Pillow
    fast_decoded: list[Speed]  # by the training input's own decoder
    resized: list[Speed]
    read: list[Speed]


def measure(cores: int, clips: int, rounds: int, seconds: float, overrides: Mapping) -> tuple[Speeds, Config]:
    """Measures everything; the last four take turns, so that their ratios are robust to other load on the machine.

    Args:
        cores: number of processes that build, that decode, and that make batches.
        clips: number of simulated clips to build and to train on.
        rounds: number of measurements of each.
        seconds: duration of a measurement of the last four.
        overrides: {"data.batch_size": 8} and the like, on top of `configs/lpr4m.py`.

    Returns:
        The speeds, and the configuration of the training input.

    Raises:
        ConfigError: a setting has an impossible value.
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
        pictures, per_pair = _pictures_of_a_batch(config.input)
        tasks, read = {"decoded": [], "fast_decoded": [], "resized": []}, []
        with multiprocessing.get_context("spawn").Pool(cores, _take, (pictures, config.model.image_size)) as pool:
            for number in range(rounds):
                _say(f"decoding and reading, round {number + 1} of {rounds}")
                for task, results in tasks.items():
                    done = pool.map(_decode, [(seconds, task)] * cores, chunksize=1)
                    count, elapsed, core_seconds = np.transpose(done)
                    results.append(Speed(sum(count / elapsed), sum(count) / sum(core_seconds)))
                read.append(_input_speed(config.input, seconds))
    return Speeds(cores, indexed, by_one, by_all, per_pair, **tasks, read=read), config


def report(speeds: Speeds, operations_per_pair: float) -> str:
    """Tables of the measurements and of the derived numbers, and a line of JSON with the same numbers.

    Args:
        speeds: output of `measure`.
        operations_per_pair: of a training step.
    """
    cores = speeds.cores
    built = [
        ("pictures indexed, 1 process", [speeds.indexed]),
        ("clips stored, --workers 1", [speeds.built_by_one]),
        (f"clips stored, --workers {cores}", [speeds.built_by_all]),
    ]
    read = [
        (f"pictures by bare decoding, Pillow, {cores} processes", speeds.decoded),
        (f"pictures by bare decoding, simplejpeg, {cores} processes", speeds.fast_decoded),
        (f"pictures decoded and resized, Pillow, {cores} processes", speeds.resized),
        (f"pictures of the training input, {cores} threads", speeds.read),
    ]
    result = {"cores": cores, "pictures_per_pair": speeds.pictures_per_pair, "rows": [], "hours": []}
    lines = [f"{'':54}{'a second':>12}{'a core-second':>16}{'of Pillow':>12}{'of simplejpeg':>16}"]
    for name, results in built + read:
        share = ""
        if (name, results) in read:
            shares = [ratio(results, bare).per_core_second for bare in (speeds.decoded, speeds.fast_decoded)]
            share = f"{shares[0]:12.2f}{shares[1]:16.2f}"
        speed = median(results)
        result["rows"].append({"name": name, **{unit: _known(number) for unit, number in speed._asdict().items()}})
        lines.append(f"{name:54}{speed.per_second:12.1f}{speed.per_core_second:16.1f}{share}")
    lines += [
        "",
        f"all of LPR4M: {FRAMES:,} frames to index; {CLIPS:,} clips to store, each {STORED_FRAMES} frames and an image",
        f"{'cores like these':24}{'index, hours':>14}{'clips, hours':>14}",
    ]
    for count in CORES:
        index, build = build_hours(speeds, count)
        result["hours"].append({"cores": count, "index": _known(index), "clips": _known(build)})
        lines.append(f"{count:<24}{index:14.1f}{build:14.1f}")
    pairs = pairs_per_second(operations_per_pair)
    pictures = pairs * speeds.pictures_per_pair
    needed = math.ceil(pictures / median(speeds.read).per_core_second)
    lines += [
        "",
        f"a v5e-8 that uses {UTILIZATION:.0%} (assumed) of {CHIPS} · {PEAK / 1e12:.0f} · 10¹² operations a second, at "
        f"{operations_per_pair / 1e9:.0f} · 10⁹ a pair,",
        f"takes {pairs:,.0f} pairs and {pictures:,.0f} pictures a second ({speeds.pictures_per_pair:.2f} a pair): "
        f"{needed} cores like these",
        json.dumps(result | {"v5e-8": {"pairs_per_second": pairs, "pictures_per_second": pictures, "cores": needed}}),
    ]
    return "\n".join(lines)


def build_hours(speeds: Speeds, cores: int) -> tuple[float, float]:
    """Hours to index and to build all of LPR4M, if cores never wait for each other or for a disk."""
    index = FRAMES / (speeds.indexed.per_core_second * cores)
    build = CLIPS / (speeds.built_by_all.per_core_second * cores)
    return index / 3600, build / 3600


def pairs_per_second(operations_per_pair: float) -> float:
    """Pairs that a v5e-8 trains on in a second."""
    return CHIPS * PEAK * UTILIZATION / operations_per_pair


def _settings(data_dir: Path, cores: int, overrides: Mapping) -> Config:
    values = load_config("lpr4m")
    # A batch of 384 takes 1.5 GB, of which there are several; its pictures take as long each.
    own = {"data.batch_size": 32, "data.num_workers": 0, "data.num_threads": cores}
    with values.ignore_type():  # `resolve` says it better
        values.update_from_flattened_dict(own | dict(overrides) | {"data.data_dir": str(data_dir)})
    return resolve(values.to_dict())


def _index_speed(raw_dir: Path, directory: Path, pictures: int, rounds: int) -> Speed:
    """Pictures, by one process."""
    results = []
    for _ in range(rounds):
        start, core_start = time.perf_counter(), time.process_time()
        build_index(find_outputs(raw_dir), directory)
        results.append(Speed(pictures / (time.perf_counter() - start), pictures / (time.process_time() - core_start)))
        shutil.rmtree(directory)
    return median(results)


def _build_speed(raw_dir: Path, few: Path, built: Path, difference: int, workers: int, rounds: int) -> Speed:
    """Clips per second without the fixed cost of a build; nan if there are too few clips to tell.

    Args:
        raw_dir: raw files of many clips.
        few: raw files of few clips.
        built: where to build the many.
        difference: number of clips in `raw_dir` minus that in `few`.
        workers: number of processes.
        rounds: number of builds.
    """
    aside = built.with_name("built_few")

    def seconds(raw: Path, data_dir: Path) -> np.ndarray:
        command = [sys.executable, ROOT / "data/build.py", "lpr4m", "--raw_dir", raw, "--data_dir", data_dir]
        start, core_start = time.perf_counter(), _core_seconds(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*command, "--configs", "train", "--overwrite", "--workers", str(workers)], check=True, capture_output=True
        )
        return np.array([time.perf_counter() - start, _core_seconds(resource.RUSAGE_CHILDREN) - core_start])

    _say(f"building with --workers {workers}")
    seconds(few, aside), seconds(raw_dir, built)  # makes the index, which stays
    taken = np.median([seconds(raw_dir, built) - seconds(few, aside) for _ in range(rounds)], axis=0)
    return Speed(*(difference / np.where(taken > 0, taken, np.nan)).tolist())


def _pictures_of_a_batch(config: InputConfig) -> tuple[list[bytes], float]:
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


def _decode(work: tuple[float, str]) -> tuple[int, float, float]:
    """Decodes, and optionally resizes, pictures; returns their number, seconds and core-seconds."""
    seconds, task = work
    count, start, core_start = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        file = _pictures[count % len(_pictures)]  # RGB, as all simulated ones
        if task == "fast_decoded":
            simplejpeg.decode_jpeg(file)
        else:
            picture = Image.open(io.BytesIO(file))
            if task == "resized":
                picture.draft("RGB", _size)  # decodes at half the size or less, where that is enough
                picture.resize(_size, Image.Resampling.BICUBIC)
            else:
                picture.load()
        count += 1
    return count, elapsed, time.process_time() - core_start


def _input_speed(config: InputConfig, seconds: float) -> Speed:
    """Pictures of the training input."""
    batches = train_batches(config)
    for _ in range(max(1, config.num_workers) * 6):
        next(batches)  # made ahead, while the processes started
    count, start, core_start = 0, time.perf_counter(), _core_seconds_of_all()
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        batch = next(batches)
        count += len(batch["index"]) + int(batch["frame_mask"].sum())
    core_seconds = _core_seconds_of_all() - core_start
    batches.close()
    return Speed(count / elapsed, count / core_seconds)


def _core_seconds_of_all() -> float:
    """Core-seconds of this process and of its running child processes."""
    total = _core_seconds(resource.RUSAGE_SELF)
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
    return total


def _core_seconds(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def _known(number: float) -> float | None:
    """None for nan, which JSON does not have."""
    return None if math.isnan(number) else number


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)

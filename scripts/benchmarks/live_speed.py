"""The time from pushing a frame to its ranking (`python scripts/benchmark.py live`)."""

import dataclasses
import io
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from PIL import Image

from rice_jax.config import Config, MeshConfig
from rice_jax.eval.calibration import Calibration
from rice_jax.index.store import About, Index, write_index
from rice_jax.models.create import create_params
from rice_jax.models.weights import embedding_fingerprint, save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.recognition.recognizer import Recognizer
from rice_jax.tasks import TASKS

COLUMNS = {
    "model": "16",
    "re-ranked": "",
    "frames": "",
    "median_ms": ".1f",
    "p99_ms": ".1f",
    "longest_ms": ".1f",
    "core_ms": ".1f",
    "start_seconds": ".1f",
}
HEIGHT, WIDTH = 1280, 720  # of a frame
NUM_PICTURES = 8  # different ones
TOP = 5


def measure(configs: Mapping[str, Config], images: int, rerank: int, frames: int) -> Iterator[dict]:
    """Pushes frames into a full window, each after the ranking of the previous one.

    Args:
        configs: of the models, by name, each with a decoder; their weights are fresh, which takes the same time.
        images: number of images in the index.
        rerank: number of images that the decoder matches in the second row of each model.
        frames: number of measured frames.

    Yields:
        The rows of the table.
    """
    pictures = [jpeg(seed) for seed in range(NUM_PICTURES)]
    for name, config in configs.items():
        with tempfile.TemporaryDirectory() as directory:
            make_index(Path(directory), config, images)
            for matched in (0, rerank):
                start = time.perf_counter()
                recognizer = Recognizer(directory, top=TOP, rerank=matched)
                started = time.perf_counter() - start
                full = recognizer.engine.num_frames
                for second in range(full):
                    recognizer.push(pictures[second % NUM_PICTURES], float(second))
                waits, core_start = [], time.process_time()
                for second in range(full, full + frames):
                    start = time.perf_counter()
                    recognizer.push(pictures[second % NUM_PICTURES], float(second))
                    waits.append(1000 * (time.perf_counter() - start))
                yield {
                    "model": name,
                    "re-ranked": matched,
                    "frames": frames,
                    "median_ms": float(np.median(waits)),
                    "p99_ms": float(np.percentile(waits, 99)),
                    "longest_ms": max(waits),
                    "core_ms": 1000 * (time.process_time() - core_start) / frames,
                    "start_seconds": started,
                }


def make_index(directory: Path, config: Config, images: int) -> None:
    """Writes an index of random vectors, and a checkpoint with fresh weights that it refers to."""
    model, rng = dataclasses.replace(TASKS[config.task].model(config), pfr=None), np.random.default_rng(0)
    params = create_params(model, create_mesh(MeshConfig(1, 1), jax.local_devices()[:1]), config.seed)
    save_weights(directory / "weights", params, config.to_dict())
    fingerprint = embedding_fingerprint(params, model, config.data.resize)
    vectors = rng.standard_normal((images, model.encoder.embed_dim)).astype(np.float32)
    num_frames = config.eval.num_frames
    calibration = Calibration(15.0, 10.0, 0.7, 1, num_frames, fingerprint, scale_by_frames=15.0)
    rows = 1 if model.pmd.num_pairs == 1 else model.encoder.num_tokens
    index = Index(
        gallery_ids=[""] * images,
        image_ids=[str(row) for row in range(images)],
        product_ids=[str(row) for row in range(images)],
        titles=[""] * images,
        paths=[""] * images,
        digests=[""] * images,
        fields=[{}] * images,
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        queries=rng.standard_normal((images, rows, model.encoder.width), np.float32).astype(ml_dtypes.bfloat16),
        about=About(model, config.data.resize, num_frames, fingerprint, str(directory / "weights"), calibration),
    )
    write_index(directory, index)


def jpeg(seed: int) -> bytes:
    """A frame as a phone sends it, with details of all sizes."""
    rng = np.random.default_rng(seed)
    picture = sum(
        np.asarray(Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).resize((WIDTH, HEIGHT)), np.float32)
        for side in (4, 16, 64)
    )
    file = io.BytesIO()
    Image.fromarray((picture / 3).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()

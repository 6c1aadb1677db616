"""Measures how fast pictures are embedded into shards, and what that makes of a catalog of 100 million.

    python scripts/benchmarks/index_speed.py [--model=RUN] [--pictures=1024] [--shards=4]

The sample's pictures, with a short side of 256 pixels, are repeated in tars as img2dataset writes them, and embedded by
one process as `rice index --worker=0/1` does: reading, checksums, decoding, encoding, and writing. RUN is a run or a
converted model; by default it is a ViT-B/16 with random weights, whose speed is that of trained ones. The first shard
compiles the model and is left out.

The extrapolation assumes that further shards take as long as these, that pictures are on a fast disk, and, of
`core_hours_100_million`, that other programs use the rest of the machine, as time of all cores counts. N processes or
machines, each with a share of the shards, need an N-th of the hours: they have nothing in common but the disk.
"""

import argparse
import io
import itertools
import json
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the package need not be installed

import jax
from PIL import Image

from rice_jax.config import MeshConfig, default_config
from rice_jax.index.model import load_model
from rice_jax.index.shards import build_shards
from rice_jax.models.create import create_params
from rice_jax.models.weights import save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks import TASKS, resolve

IMAGES = Path(__file__).resolve().parents[2] / "data/sample/images"
SHORT_SIDE, QUALITY = 256, 95  # as `scripts/img2dataset.sh` asks for
CATALOG = 100_000_000


def main() -> None:
    """Prints the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--shards", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = load_model(options.model or save_random(Path(directory) / "model"))
        tars, out = Path(directory) / "tars", Path(directory) / "shards"
        write_tars(tars, options.pictures // options.shards, options.shards + 1)
        build_shards(tars, out, model, worker=(0, options.shards + 1))
        start, cores = time.perf_counter(), time.process_time()
        done = build_shards(tars, out, model)
        seconds, core_seconds = time.perf_counter() - start, time.process_time() - cores
    encoder = model.config.encoder
    row = {
        "encoder": f"{type(encoder).__name__} width={encoder.width}",
        "image_size": encoder.image_size,
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "pictures": done.num_embedded,
        "per_second": done.num_embedded / seconds,
        "per_core_second": done.num_embedded / core_seconds,
        "hours_100_million": CATALOG * seconds / done.num_embedded / 3600,
        "core_hours_100_million": CATALOG * core_seconds / done.num_embedded / 3600,
    }
    print(json.dumps({name: float(f"{value:.4g}") if type(value) is float else value for name, value in row.items()}))


def save_random(path: Path) -> Path:
    """A model of the default sizes with random weights."""
    values = default_config().to_dict()
    values["loss"] |= {"pmd_weight": 0.0, "pfr_weight": 0.0}
    config = resolve(values)
    mesh = create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    save_weights(path, create_params(TASKS[config.task].model(config), mesh, seed=0), config.to_dict())
    return path


def write_tars(directory: Path, num_pictures: int, num_tars: int) -> None:
    """Writes tars of as many pictures each."""
    directory.mkdir()
    pictures = itertools.cycle([shrink(path) for path in sorted(IMAGES.iterdir())])
    for shard in range(num_tars):
        with tarfile.open(directory / f"{shard:05}.tar", "w") as tar:
            for place, content in enumerate(itertools.islice(pictures, num_pictures)):
                member = tarfile.TarInfo(f"{shard:05}{place:05}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def shrink(path: Path) -> bytes:
    """A picture as a download stores it."""
    picture = Image.open(path).convert("RGB")
    scale, buffer = SHORT_SIDE / min(picture.size), io.BytesIO()
    picture.resize([round(side * scale) for side in picture.size]).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


if __name__ == "__main__":
    main()

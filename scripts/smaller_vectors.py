"""Measures what smaller vectors of an index cost: fewer dimensions, and whole numbers of 8 bits.

    python scripts/smaller_vectors.py --run RUN --clips CLIPS [--products data/sample]

CLIPS is what data/sample/simulate.py wrote. The index has the pictures of its galleries and those of all other products
of the sample. "PCA" is the projection of `rice index --dimensions`, fitted on this index; "first" keeps the first
numbers of each vector instead. Each clip is ranked in its gallery and among all products, by the mean and by frames
(`rice_jax.eval.scores`), and a tie counts against it. Differences from whole vectors are paired, with intervals of 95 %
over the products.
"""

import argparse
import csv
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `scripts`

from rice_jax.eval.scores import center
from rice_jax.index.columns import from_int8, to_int8
from rice_jax.index.smaller import fit_projection, project
from rice_jax.index.store import Index
from rice_jax.index.update import build_index
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.recognizer import encode_video
from scripts.long_videos import BATCH_SIZE, embed_clips, frames_of, read_clips, unit
from scripts.several_photos import Clip, paired

CUTOFFS = (1, 10)
SCORES = ("mean", "frames")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--clips", type=pathlib.Path, required=True)
    parser.add_argument("--products", type=pathlib.Path, default=pathlib.Path("data/sample"))
    flags = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        shop = write_shop(pathlib.Path(directory), flags.clips, flags.products)
        index = build_index(shop, model=flags.run, out=pathlib.Path(directory) / "index")
        engine = Engine(pathlib.Path(directory) / "index", batch_sizes=(BATCH_SIZE,))
    known = read_clips(flags.clips)
    encoded = [encode_video(engine, pictures, BATCH_SIZE)[1] for pictures in frames_of(flags.clips, known, engine)]
    clips = [
        Clip(product, embedding, unit(own.features))
        for product, embedding, own in zip(known.values(), embed_clips(engine, encoded), encoded, strict=True)
    ]
    print(*tables(index, clips), sep="\n")


def write_shop(directory: pathlib.Path, clips: pathlib.Path, products: pathlib.Path) -> pathlib.Path:
    """Writes a CSV of the galleries' pictures, and of the pictures of all other products in a gallery of their own."""
    galleries = json.loads(next(clips.glob("test_liveid_to_gallery_*.json")).read_text(encoding="utf-8"))
    with (clips / "attribution.csv").open(newline="", encoding="utf-8") as file:
        names = {row["image_id"]: row["product_id"] for row in csv.DictReader(file)}
    rows = [
        (names[image], clips.absolute() / "images" / f"{image}.jpg", gallery)
        for gallery, images in galleries.items()
        for image in images
    ]
    known = {name for name, _, _ in rows}
    others = sorted(path for path in (products / "images").absolute().iterdir() if path.stem not in known)
    shop = directory / "shop.csv"
    with shop.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("id", "path", "gallery"), *rows, *((path.stem, path, "others") for path in others)]
        )
    return shop


def variants(vectors: np.ndarray) -> Iterator[tuple[str, int, np.ndarray | None, np.ndarray]]:
    """The name, the bytes of a picture, the projection, and the vectors of each kind of index; whole vectors first."""
    width = vectors.shape[1]
    yield f"{width} numbers", 4 * width, None, vectors
    yield f"{width}, int8", width, None, from_int8(to_int8(vectors))
    for dimensions in (width // 2, width // 4, width // 8):
        projection = fit_projection(vectors, dimensions)
        smaller = project(vectors, projection)
        yield f"{dimensions} by PCA", 4 * dimensions, projection, smaller
        yield f"{dimensions} by PCA, int8", dimensions, projection, from_int8(to_int8(smaller))
        first = np.eye(width, dimensions, dtype=np.float32)
        yield f"first {dimensions}", 4 * dimensions, first, project(vectors, first)


def tables(index: Index, clips: Sequence[Clip]) -> list[str]:
    """A table for galleries and one for all products, as Markdown."""
    products = np.array([clip.product for clip in clips])
    galleries = np.array(index.gallery_ids)
    of_clip = dict(zip(index.image_ids, index.gallery_ids, strict=True))
    inside = [np.flatnonzero(galleries == of_clip[clip.product]) for clip in clips]
    everything = [np.arange(len(galleries))] * len(clips)
    header = [f"rank-{k} by {score if score == 'frames' else 'the mean'}" for score in SCORES for k in CUTOFFS]
    lines = [f"{len(clips)} clips of {len(set(products))} products; percent"]
    sizes = " to ".join(str(size) for size in sorted({min(map(len, inside)), max(map(len, inside))}))
    for title, searched in (
        (f"among the {sizes} products of a gallery", inside),
        (f"among all {len(galleries)} products", everything),
    ):
        lines += ["", f"| {title} | bytes | {' | '.join(header)} |", "|---" * (2 + len(header)) + "|"]
        whole: np.ndarray | None = None
        for name, size, projection, vectors in variants(index.vectors):
            hits = measure(index, clips, searched, projection, vectors)
            cells = [f"{100 * own.mean():.1f}" for own in hits.T]
            if whole is None:
                whole = hits
            else:
                lead = [paired(own, other, products) for own, other in zip(hits.T, whole.T, strict=True)]
                cells = [f"{cell}; {difference}" for cell, difference in zip(cells, lead, strict=True)]
            lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
    return lines


def measure(
    index: Index,
    clips: Sequence[Clip],
    searched: Sequence[np.ndarray],
    projection: np.ndarray | None,
    vectors: np.ndarray,
) -> np.ndarray:
    """Whether the right product is among the first of each score and cutoff [clips, scores · cutoffs]."""
    place = {name: row for row, name in enumerate(index.image_ids)}
    hits = np.zeros((len(clips), len(SCORES), len(CUTOFFS)))
    centers = {rows.tobytes(): center(vectors, rows) for rows in searched}
    for number, (clip, rows) in enumerate(zip(clips, searched, strict=True)):
        queries = np.concatenate([clip.embedding[None], clip.frames]).astype(np.float64)
        if projection is not None:
            queries = queries @ projection
        mean, frames = queries[:1] @ vectors[rows].T, queries[1:] @ (vectors[rows] - centers[rows.tobytes()]).T
        truth = np.flatnonzero(rows == place[clip.product])[0]
        for score, values in enumerate((mean[0], frames.max(axis=0))):
            rank = (values >= values[truth]).sum()
            hits[number, score] = [rank <= cutoff for cutoff in CUTOFFS]
    return hits.reshape(len(clips), -1)


if __name__ == "__main__":
    main()

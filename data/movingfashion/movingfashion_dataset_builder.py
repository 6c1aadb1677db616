"""Builds MovingFashion as TFDS data sets: training pairs, test queries and their gallery."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from ..builder import PICTURE, TEXT, Example, Shard, ShardedBuilder, chunks
from ..errors import FormatError, Unusable
from ..pictures import Picture, RawPictures
from ..skip_report import SkipReport, SkipSummary
from ..text import find_file
from .annotations import (
    GALLERY_ID,
    README,
    GalleryImage,
    Pair,
    Query,
    gallery_of,
    id_of,
    queries_of,
    read_pairs,
)

T = TypeVar("T")
Entry = Pair | Query | GalleryImage

KINDS = {"train": "pairs", "query": "queries", "gallery": "gallery images"}
MAX_FRAMES = 10
NO_BOX = tfds.features.BBox(0.0, 0.0, 0.0, 0.0)
UNKNOWN = ("title", "category", "scale", "duration", "number")  # texts of a query that the files do not contain

FRAMES = {
    "frames": tfds.features.Sequence(PICTURE()),
    "frame_ids": tfds.features.Sequence(TEXT()),
    "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
}
FEATURES = {
    "train": {
        "clip_id": TEXT(),
        "image_id": TEXT(),
        "product_id": TEXT(),
        "source": TEXT(),
        **FRAMES,
        "image": PICTURE(),
    },
    "query": {
        "clip_id": TEXT(),
        "gallery_id": TEXT(),
        "image_ids": tfds.features.Sequence(TEXT()),
        "source": TEXT(),
        **{name: TEXT() for name in UNKNOWN},
        **FRAMES,
        "box_frame": tfds.features.Sequence(np.int32),
    },
    "gallery": {
        "gallery_id": TEXT(),
        "image_id": TEXT(),
        "image": PICTURE(),
    },
}


class Builder(ShardedBuilder):
    """Builds data sets from MovingFashion's raw files and the frames that scripts/extract_movingfashion.sh extracts.

    No boxes refer to stored pixels, so readers may turn each picture as its EXIF data say.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="train", description="Training pairs: a video and the image of a product in it."),
        tfds.core.BuilderConfig(name="query", description="Test videos with their ground truth."),
        tfds.core.BuilderConfig(name="gallery", description="The images of the test products: one gallery."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    Put these files into one directory and pass it as --raw_dir:
      train.json, test.json, videos/<video>.mp4, imgs/<image>.png
    MovingFashion's authors provide them: {README}.
    Then extract one frame per second of the videos into frames/<video>/<number>.jpg; the repository has a script:
      scripts/extract_movingfashion.sh RAW
    """

    @classmethod
    def configs_for(cls, raw_dir: Path) -> list[str]:
        """Returns the names of all configs, which all fit."""
        return list(cls.builder_configs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self._info_of(FEATURES[self.builder_config.name])

    def _shards(self, raw_dir: Path) -> dict[str, Sequence[Shard]]:
        config = self.builder_config.name
        split = "train" if config == "train" else "test"
        pairs = read_pairs(find_file([raw_dir], f"{split}.json", README))
        kinds: dict[str, tuple[Sequence[Entry], Callable[..., Example]]] = {
            "train": (pairs, _train_example),
            "query": (queries_of(pairs), _query_example),
            "gallery": (gallery_of(pairs), _gallery_example),
        }
        entries, example_of = kinds[config]
        kind, pictures = KINDS[config], self._pictures(raw_dir)
        shards = [functools.partial(_examples, chunk, kind, example_of, pictures) for chunk in chunks(entries)]
        return {split: shards}

    def _metadata(self, summary: SkipSummary) -> dict[str, Any]:
        config = self.builder_config.name
        kind = KINDS[config]
        if config == "train":
            return {"num_rows": summary.num_tried(kind), "skipped": summary.num_skipped(kind)}
        counted = {"query": "num_queries", "gallery": "num_images"}[config]
        return {counted: summary.num_tried(kind), "skipped": summary.reasons(kind)}


def choose_frames(frames: Sequence[T], max_frames: int) -> list[T]:
    """Chooses at most `max_frames` frames, spread evenly from the first frame but not to the last.

    Args:
        frames: all n frames of a video, in order.
        max_frames: at least 1.

    Returns:
        The chosen frames, in order: all if n <= max_frames, otherwise those at
        `linspace(0, n, max_frames, endpoint=False)`, truncated to integers.

    Source: data/movingfashion/README.md, "Frames".
    """
    count = min(len(frames), max_frames)
    return [frames[index * len(frames) // count] for index in range(count)]


def _examples(
    entries: Sequence[Entry],
    kind: str,
    example_of: Callable[..., Example],
    pictures: RawPictures,
    report: SkipReport,
) -> Iterator[Example]:
    for entry in entries:
        report.tried(kind)
        try:
            yield example_of(entry, pictures, report)
        except Unusable as reason:
            report.skipped(kind, entry.name, entry.where, str(reason))


def _train_example(pair: Pair, pictures: RawPictures, report: SkipReport) -> Example:
    return {
        "clip_id": id_of(pair.video),
        "image_id": id_of(pair.image),
        "product_id": pair.product_id,
        "source": pair.source,
        **_frames(pair.video, pictures, report),
        "image": read_image(pair.image, pictures, report).encoded,
    }


def _query_example(query: Query, pictures: RawPictures, report: SkipReport) -> Example:
    return {
        "clip_id": id_of(query.video),
        "gallery_id": GALLERY_ID,
        "image_ids": [id_of(image) for image in query.images],
        "source": query.source,
        **dict.fromkeys(UNKNOWN, ""),
        **_frames(query.video, pictures, report),
        "boxes": [],
        "box_frame": [],
    }


def _gallery_example(entry: GalleryImage, pictures: RawPictures, report: SkipReport) -> Example:
    image = read_image(entry.image, pictures, report)
    return {"gallery_id": GALLERY_ID, "image_id": id_of(entry.image), "image": image.encoded}


def read_frames(video: str, pictures: RawPictures, report: SkipReport) -> dict[str, bytes]:
    """Reads at most `MAX_FRAMES` frames of a video; unreadable ones are left out and reported.

    Args:
        video: the video's path relative to the raw directory.
        pictures: the reader of the raw directory's pictures.
        report: lists unreadable frames.

    Returns:
        {name without extension: bytes of the file}, ordered by frame number.

    Raises:
        Unusable: the video has no frames.
        FormatError: a frame's name is not a number.
    """
    folder = f"frames/{id_of(video)}"
    names = sorted(pictures.stems(folder), key=lambda name: _frame_number(name, folder))
    if not names:
        raise Unusable("no frames")
    frames = {}
    for name in choose_frames(names, MAX_FRAMES):
        try:
            frames[name] = pictures.read(f"{folder}/{name}.jpg", report).encoded
        except Unusable:
            continue
    return frames


def read_image(path: str, pictures: RawPictures, report: SkipReport) -> Picture:
    """Reads a shop's image.

    Args:
        path: the file relative to the raw directory.
        pictures: the reader of the raw directory's pictures.
        report: counts the picture and lists it if it cannot be used.

    Raises:
        Unusable: "image missing", or "image" and another reason.
    """
    try:
        return pictures.read(path, report)
    except Unusable as reason:
        raise Unusable(f"image {reason}") from None


def _frames(video: str, pictures: RawPictures, report: SkipReport) -> Example:
    frames = read_frames(video, pictures, report)
    if not frames:
        raise Unusable("no usable frame")
    return {"frames": list(frames.values()), "frame_ids": list(frames), "boxes": [NO_BOX] * len(frames)}


def _frame_number(name: str, folder: str) -> int:
    if not name.isdecimal():
        raise FormatError(folder, f"{name}.jpg", "frames whose names are numbers", "rename or remove the file")
    return int(name)

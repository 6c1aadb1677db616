"""Builds ROPE as TFDS data sets: product pages, short videos and live clips, each item with its product."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ..builder import PICTURE, TEXT, Example, Shard, ShardedBuilder
from ..errors import RawDataError, Unusable
from ..pictures import IMAGE_EXTENSIONS, RawPictures
from ..skip_report import SkipReport, SkipSummary
from .files import DOMAINS, README, SPLITS
from .items import Block, Item, read_block, write_blocks

MAX_FRAMES = 10


class Builder(ShardedBuilder):
    """Builds data sets from ROPE's raw files.

    No boxes refer to stored pixels, so readers may turn each picture as its EXIF data say.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="pages", description="Product pages: their images and titles."),
        tfds.core.BuilderConfig(name="videos", description="Short videos: their frames and speech."),
        tfds.core.BuilderConfig(name="lives", description="Clips of livestreams: their frames and speech."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    Put these files into one directory and pass it as --raw_dir:
      training_product_pages_pair.txt    training_page_titles.txt    training_page_images.txt
      training_product_videos_pair.txt   training_video_asrs.txt     training_video_frames.txt
      training_product_lives_pair.txt    training_live_asrs.txt      training_live_clips.txt
      the same nine for testing, with test_ in place of training_; names.json can map other names
      pages/<image>.jpg, videos/<image>.jpg, lives/<image>.jpg, or img2dataset's output directories of any name
    ROPE's authors provide them: {README}.
    """
    index_features = ("product_id", "item_id")

    def __init__(self, *, splits: str = ",".join(SPLITS), max_frames: int | str = MAX_FRAMES, **kwargs: Any):
        """Makes a builder.

        Args:
            splits: "train", "test" or both, separated by a comma.
            max_frames: the maximum number of pictures in an example, at least 1.
            **kwargs: arguments of `ShardedBuilder`.

        Raises:
            RawDataError: an argument has another value.
        """
        self._splits = splits.split(",")
        if unknown := sorted(set(self._splits) - set(SPLITS)):
            raise RawDataError(f"splits: found {', '.join(map(repr, unknown))}, expected some of {', '.join(SPLITS)}")
        if not str(max_frames).isdecimal() or not int(max_frames):
            raise RawDataError(f"max_frames: found {max_frames!r}, expected 1 or more")
        self._max_frames = int(max_frames)
        super().__init__(**kwargs)

    @classmethod
    def configs_for(cls, raw_dir: Path) -> list[str]:
        """Returns the names of all configs, which all fit."""
        return list(cls.builder_configs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self._info_of(
            {
                "item_id": TEXT(),
                "product_id": TEXT(),
                "text": TEXT(),
                "frames": tfds.features.Sequence(PICTURE()),
                "frame_ids": tfds.features.Sequence(TEXT()),
            }
        )

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"splits": ",".join(self._splits), "max_frames": self._max_frames}

    def _shards(self, raw_dir: Path) -> dict[str, Sequence[Shard]]:
        domain = DOMAINS[self.builder_config.name]
        pictures = self._pictures(raw_dir)
        shards: dict[str, Sequence[Shard]] = {}
        for split in self._splits:
            blocks = write_blocks(raw_dir, split, domain, self._max_frames, self.unfinished_dir / f"items_{split}")
            kind = kind_of(split, domain.name)
            shards[split] = [functools.partial(_examples, block, kind, domain.name, pictures) for block in blocks]
        return shards

    def _metadata(self, summary: SkipSummary) -> dict[str, Any]:
        kinds = {split: kind_of(split, self.builder_config.name) for split in self._splits}
        metadata: dict[str, dict[str, Any]] = {
            split: {"num_rows": summary.num_tried(kind), "skipped": summary.num_skipped(kind)}
            for split, kind in kinds.items()
        }
        if "test" in kinds:  # by name, because evaluation counts skipped items as misses
            metadata["test"]["skipped"] = summary.reasons(kinds["test"])
        return metadata


def kind_of(split: str, domain: str) -> str:
    """Returns the kind of a set's items in reports, such as "training pages"."""
    return f"{SPLITS[split]} {domain}"


def read_frames(item: Item, folder: str, pictures: RawPictures, report: SkipReport) -> list[tuple[str, bytes]]:
    """Reads an item's pictures; unreadable ones are left out and reported.

    Args:
        item: the item.
        folder: the folder in the raw directory of pictures that img2dataset did not download.
        pictures: the reader of the raw directory's pictures.
        report: lists unreadable pictures.

    Returns:
        (name without extension, bytes of the file) of each picture that was read, in order.

    Raises:
        Unusable: "no pictures".
    """
    if not item.pictures:
        raise Unusable("no pictures")
    frames = []
    for name in item.pictures:
        file = name if name.lower().endswith(IMAGE_EXTENSIONS) else f"{name}.jpg"
        try:
            frames.append((Path(file).stem, pictures.read(f"{folder}/{file}", report).encoded))
        except Unusable:
            continue
    return frames


def report_lines(item: Item, report: SkipReport) -> None:
    """Counts an item's lines and lists those that repeat an earlier one."""
    report.counts["lines"] += item.num_lines
    for where in item.repeats:
        report.skipped("lines", item.item_id, where, "again")


def _examples(block: Block, kind: str, folder: str, pictures: RawPictures, report: SkipReport) -> Iterator[Example]:
    for item in read_block(block):
        report_lines(item, report)
        report.tried(kind)
        try:
            yield _example(item, folder, pictures, report)
        except Unusable as reason:
            report.skipped(kind, item.name, item.where, str(reason))


def _example(item: Item, folder: str, pictures: RawPictures, report: SkipReport) -> Example:
    product = item.product
    frames = read_frames(item, folder, pictures, report)
    if not frames:
        raise Unusable("no usable picture")
    return {
        "item_id": item.item_id,
        "product_id": product,
        "text": item.text,
        "frames": [encoded for _, encoded in frames],
        "frame_ids": [name for name, _ in frames],
    }

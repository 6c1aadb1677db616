"""LPR4M as TFDS data sets: training pairs, test queries and test galleries, of the full set and of its subset."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data.errors import DataError, FormatError, Unusable
from data.lpr4m import evaluation_files
from data.lpr4m.boxes import NORMALISED, PIXELS, clip_types, detect_units, relative_box
from data.lpr4m.evaluation_files import GalleryImage, Query
from data.lpr4m.pictures import Picture, RawPictures, choose_frames, read_picture
from data.lpr4m.rows import RowBlock, TrainingRow, index_rows, read_rows
from data.lpr4m.values import Box, live_id_of
from data.skip_report import SkipReport

EXAMPLES_PER_SHARD = 1024  # of 256 px pictures about 150 MB: the most that is ever held in memory
ROWS_THAT_TELL_UNITS = 100

Examples = Iterator[tuple[str, dict[str, Any]]]

TEXT = tfds.features.Text
PICTURE = functools.partial(tfds.features.Image, encoding_format="jpeg")  # bytes go in and are stored as they are
FRAMES = {
    "frames": tfds.features.Sequence(PICTURE()),
    "frame_ids": tfds.features.Sequence(TEXT()),
    "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
}
TYPES = {"scale": TEXT(), "duration": TEXT(), "number": TEXT()}
FEATURES = {
    "train": {
        "clip_id": TEXT(),
        "live_id": TEXT(),
        "image_id": TEXT(),
        "title": TEXT(),
        "asr": TEXT(),
        "category": TEXT(),
        "category_id": TEXT(),
        "product_id": TEXT(),
        **TYPES,
        **FRAMES,
        "image": PICTURE(),
    },
    "query": {
        "clip_id": TEXT(),
        "gallery_id": TEXT(),
        "image_ids": tfds.features.Sequence(TEXT()),
        "title": TEXT(),
        "asr": TEXT(),
        "category": TEXT(),
        **TYPES,
        **FRAMES,
        "box_frame": tfds.features.Sequence(np.int32),
    },
    "gallery": {
        "gallery_id": TEXT(),
        "image_id": TEXT(),
        "title": TEXT(),
        "image": PICTURE(),
    },
}


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """One of the sets to build.

    Attributes:
        kind: "train", "query" or "gallery".
        is_subset: whether the raw files are those of the 641,821-row subset.
        max_frames: the most frames that an example holds.
    """

    kind: str = "train"
    is_subset: bool = False
    max_frames: int = 10


class Builder(tfds.core.ShardBasedBuilder):
    """Reads LPR4M's raw files.

    Differs: TFDS recommends GeneratorBasedBuilder, but that one holds a split in memory when its order is to be kept,
    and needs TensorFlow above a gigabyte. Shards that are told beforehand need neither.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    url_infos = None  # nothing is downloaded; TFDS's own look-up wants importlib_resources, which it does not install
    BUILDER_CONFIGS = [
        Config(name="train", kind="train", description="Training pairs: a clip and its product's image."),
        Config(name="query", kind="query", description="Test clips with their ground truth."),
        Config(name="gallery", kind="gallery", description="The shops' images of the test livestreams."),
        Config(name="train_750k", kind="train", is_subset=True, description="Training pairs, 641,821-row subset."),
        Config(name="query_750k", kind="query", is_subset=True, description="Test clips, subset layout."),
        Config(name="gallery_750k", kind="gallery", is_subset=True, description="Shops' main images, subset layout."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Put these into one directory and pass it as --raw_dir (counts in the names may differ):
      training_videoinfo_full_part_00.txt ... _09.txt    training rows
      test_videoid_to_gtimage_20079.json, test_liveid_to_gallery_110.json, test_frameid2gtbox_20079_426751.json,
      test_videoid_asr_20079.txt, test_image_title_6076.txt
      frames/<clip_id>/<frame_id>.jpg, images/<image_id>.jpg
    or the subset: annotations/, query/, gallery/, training_image/, training_video_00/ ... training_video_07/.
    They come from LPR4M's authors (data/lpr4m/README.md); data/sample/simulate.py makes a small set of the same form.
    """

    def __init__(self, *, box_units: str = "auto", max_skipped_percent: float = 1.0, **kwargs):
        """Makes a builder.

        Args:
            box_units: "pixels" (of the original frame), "normalised" (0..1) or "auto", which looks at the file.
            max_skipped_percent: fail if more of the clips, images or pictures cannot be used, 0..100.
            **kwargs: of `tfds.core.DatasetBuilder`.
        """
        if box_units not in ("auto", PIXELS, NORMALISED):
            raise DataError(f"box_units: found {box_units!r}, expected auto, pixels or normalised")
        self._box_units = box_units
        self._max_skipped_percent = max_skipped_percent
        super().__init__(file_format="array_record", **kwargs)

    @classmethod
    def configs_for(cls, raw_dir: Path) -> list[str]:
        """Returns the names of the configs that fit the layout of a raw directory."""
        of_the_subset = ("annotations/query_tenframes.json", "annotations/gallery_main.txt", "training_image")
        is_subset = any((raw_dir / name).exists() for name in of_the_subset)
        return [config.name for config in cls.BUILDER_CONFIGS if config.is_subset == is_subset]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(FEATURES[self.builder_config.kind]),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        # Beside the version's directory, not in it: it must outlive a build that fails.
        report = SkipReport(Path(self.data_dir).parent / "skipped.jsonl")
        progress = tqdm(desc=self.builder_config.name, unit=" examples", disable=None)  # None: on a terminal only
        with report as self._report, progress as self._progress:
            super()._download_and_prepare(dl_manager, download_config)
            self._report.fail_above(self._max_skipped_percent)
            if self.info.splits.total_num_examples == 0:
                raise DataError(f"{dl_manager.manual_dir}: found no example, {self._report.summary()}")
            self.summary = f"{self._report.summary()}, listed in {report.path}"

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, Sequence[Callable[[], Examples]]]:
        raw_dir = Path(dl_manager.manual_dir)
        self._pictures = RawPictures(raw_dir)
        if self.builder_config.kind == "train":
            return {"train": self._train_shards(raw_dir)}
        if self.builder_config.kind == "query":
            return {"test": self._query_shards(raw_dir)}
        return {"test": self._gallery_shards(raw_dir)}

    def _train_shards(self, raw_dir: Path) -> list[Callable[[], Examples]]:
        blocks = index_rows(_training_parts(raw_dir, self.builder_config.is_subset), EXAMPLES_PER_SHARD)
        rows = itertools.chain.from_iterable(map(read_rows, blocks))
        rows_with_boxes = (row for row in rows if any(map(any, row.boxes)))
        first_rows = itertools.islice(rows_with_boxes, ROWS_THAT_TELL_UNITS)
        units = self._units(box for row in first_rows for box in row.boxes)
        num_rows = sum(block.num_rows for block in blocks)
        self.info.metadata.update(num_rows=num_rows, skipped=0)
        self._progress.reset(num_rows)
        return [functools.partial(self._train_examples, block, units) for block in blocks]

    def _train_examples(self, block: RowBlock, units: str) -> Examples:
        for row in read_rows(block):
            self._progress.update()
            self._report.tried("clips")
            try:
                example = self._train_example(row, units)
            except Unusable as reason:
                self._report.skipped("clips", row.clip_id, row.where, str(reason))
                self.info.metadata["skipped"] += 1
                continue
            yield row.clip_id, example

    def _train_example(self, row: TrainingRow, units: str) -> dict[str, Any]:
        frames, frame_ids, boxes = [], [], []
        for index, frame_id, picture in self._read_frames(row.clip_id, row.frames):
            box = self._relative_box(row.boxes[index], units, picture, frame_id, row.where)
            if box is None:
                continue  # a frame without its box would be taken for one without the product
            frames.append(picture.encoded)
            frame_ids.append(frame_id)
            boxes.append(box)
        if not frames:
            raise Unusable("no usable frame")
        image = self._read_image(row.image_id, row.image_path)
        return {
            "clip_id": row.clip_id,
            "live_id": live_id_of(row.clip_id),
            "image_id": row.image_id,
            "title": row.title,
            "asr": row.asr,
            "category": row.category,
            "category_id": row.category_id,
            "product_id": row.product_id,
            "scale": row.scale,
            "duration": row.duration,
            "number": row.number,
            "frames": frames,
            "frame_ids": frame_ids,
            "boxes": boxes,
            "image": image.encoded,
        }

    def _query_shards(self, raw_dir: Path) -> list[Callable[[], Examples]]:
        is_subset = self.builder_config.is_subset
        read = evaluation_files.read_subset_queries if is_subset else evaluation_files.read_queries
        queries = read(raw_dir)
        find = functools.partial(evaluation_files.find_file, raw_dir, required=not is_subset)
        boxes = evaluation_files.read_boxes(find("test_frameid2gtbox_*.json"))
        units = self._units(box for clip in boxes.values() for frame in clip.values() for box in frame)
        texts = {
            "title": evaluation_files.read_texts(find("test_image_title_*.txt")),
            "asr": evaluation_files.read_texts(find("test_videoid_asr_*.txt")),
            "category": evaluation_files.read_texts(find("test_image_category.txt", required=False)),
        }
        self.info.metadata.update(num_queries=len(queries), skipped={})
        self._progress.reset(len(queries))
        examples = functools.partial(self._query_examples, boxes=boxes, units=units, texts=texts)
        return [functools.partial(examples, chunk) for chunk in _chunks(queries)]

    def _query_examples(
        self,
        queries: Sequence[Query],
        boxes: dict[str, dict[str, list[Box]]],
        units: str,
        texts: dict[str, dict[str, str]],
    ) -> Examples:
        for query in queries:
            self._progress.update()
            self._report.tried("queries")
            try:
                example = self._query_example(query, boxes.get(query.clip_id, {}), units)
            except Unusable as reason:
                self._report.skipped("queries", query.clip_id, query.where, str(reason))
                self.info.metadata["skipped"][query.clip_id] = str(reason)
                continue
            first_image = query.image_ids[0]
            example["title"] = texts["title"].get(first_image, "")
            example["category"] = texts["category"].get(first_image, "")
            example["asr"] = texts["asr"].get(query.clip_id, "")
            yield query.clip_id, example

    def _query_example(self, query: Query, boxes_of: dict[str, list[Box]], units: str) -> dict[str, Any]:
        frames = self._read_frames(query.clip_id, query.frames or self._pictures.frames_of(query.clip_id))
        if not frames:
            raise Unusable("no usable frame")
        size = frames[0][2]  # that of all frames of the clip
        annotated = {
            frame_id: [self._relative_box(box, units, size, frame_id, query.where) for box in boxes]
            for frame_id, boxes in boxes_of.items()
        }
        annotated = {frame_id: boxes for frame_id, boxes in annotated.items() if None not in boxes}
        stored = [annotated.get(frame_id, []) for _, frame_id, _ in frames]
        return {
            "clip_id": query.clip_id,
            "gallery_id": live_id_of(query.clip_id),
            "image_ids": list(query.image_ids),
            **clip_types(list(annotated.values())),
            "frames": [picture.encoded for _, _, picture in frames],
            "frame_ids": [frame_id for _, frame_id, _ in frames],
            "boxes": [box for boxes in stored for box in boxes],
            "box_frame": [index for index, boxes in enumerate(stored) for _ in boxes],
        }

    def _gallery_shards(self, raw_dir: Path) -> list[Callable[[], Examples]]:
        is_subset = self.builder_config.is_subset
        read = evaluation_files.read_subset_gallery if is_subset else evaluation_files.read_gallery
        gallery = read(raw_dir)
        find = functools.partial(evaluation_files.find_file, raw_dir, required=not is_subset)
        titles = evaluation_files.read_texts(find("test_image_title_*.txt"))
        self.info.metadata.update(num_images=len(gallery), skipped={})
        self._progress.reset(len(gallery))
        examples = functools.partial(self._gallery_examples, titles=titles, seen=set())
        return [functools.partial(examples, chunk) for chunk in _chunks(gallery)]

    def _gallery_examples(self, gallery: Sequence[GalleryImage], titles: dict[str, str], seen: set[str]) -> Examples:
        for entry in gallery:
            self._progress.update()
            self._report.tried("gallery images")
            name = f"{entry.gallery_id}/{entry.image_id}"
            try:
                if name in seen:
                    raise Unusable("twice in its gallery")
                image = self._read_image(entry.image_id, entry.path)
            except Unusable as reason:
                self._report.skipped("gallery images", name, entry.where, str(reason))
                if name not in seen:
                    self.info.metadata["skipped"][name] = str(reason)
                continue
            finally:
                seen.add(name)
            example = {"gallery_id": entry.gallery_id, "image_id": entry.image_id, "image": image.encoded}
            yield name, example | {"title": titles.get(entry.image_id, "")}

    def _read_image(self, image_id: str, path: str) -> Picture:
        try:
            return self._read_picture(image_id, self._pictures.image(image_id, path))
        except Unusable as reason:
            raise Unusable(f"image {reason}") from None

    def _read_frames(self, clip_id: str, frames: Sequence[str]) -> list[tuple[int, str, Picture]]:
        """Reads at most `max_frames` of a clip's frames; those that cannot be read are left out and reported.

        Returns:
            (index among all frames, frame id, picture), in order.
        """
        if not frames:
            raise Unusable("no frames")
        pictures = []
        for index, frame in choose_frames(frames, self.builder_config.max_frames):
            file = self._pictures.frame(clip_id, frame)
            try:
                pictures.append((index, file.stem, self._read_picture(file.stem, file)))
            except Unusable:
                continue
        return pictures

    def _read_picture(self, name: str, file: Path) -> Picture:
        self._report.tried("pictures")
        try:
            return read_picture(file)
        except Unusable as reason:
            self._report.skipped("pictures", name, file, str(reason))
            raise

    def _relative_box(
        self, box: Box, units: str, frame: Picture, frame_id: str, where: str
    ) -> tfds.features.BBox | None:
        self._report.tried("boxes")
        try:
            return relative_box(box, units, (frame.width, frame.height), where)
        except Unusable as reason:
            self._report.skipped("boxes", frame_id, where, str(reason))
            return None

    def _units(self, boxes: Iterator[Box]) -> str:
        return detect_units(boxes) if self._box_units == "auto" else self._box_units


def _training_parts(raw_dir: Path, is_subset: bool) -> list[Path]:
    pattern = "annotations/train*.txt" if is_subset else "training_videoinfo_full_part_*.txt"
    parts = sorted(raw_dir.glob(pattern))
    if not parts:
        raise DataError(
            f"{raw_dir}: found no {pattern}, expected the training rows; data/lpr4m/README.md tells where they come "
            "from, and --configs leaves the training set out"
        )
    numbers = [part.stem.rpartition("_")[2] for part in parts]
    expected = [f"{number:02}" for number in range(len(parts))]
    if not is_subset and numbers != expected:
        raise FormatError(str(raw_dir), f"parts {', '.join(numbers)}", "all parts from 00 on", "download the others")
    return parts


def _chunks(entries: Sequence) -> list[Sequence]:
    return [entries[i : i + EXAMPLES_PER_SHARD] for i in range(0, len(entries), EXAMPLES_PER_SHARD)]

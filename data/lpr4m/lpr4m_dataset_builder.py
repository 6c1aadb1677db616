"""Builds LPR4M as TFDS data sets: pairs, queries, galleries and clips for a detector, in full or as a subset."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ..box_units import NORMALIZED, PIXELS, Box, detect_units
from ..builder import Shard, ShardedBuilder
from ..errors import RawDataError
from ..skip_report import SkipSummary
from . import detection, gallery, query, train
from .ids import README


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """The config of one data set.

    Attributes:
        kind: "train", "query", "gallery", "detection_train" or "detection_test".
        is_subset: whether the raw files are those of the 641,821-row subset.
        max_frames: an example holds at most this many frames.
    """

    kind: str = "train"
    is_subset: bool = False
    max_frames: int = 10


class Builder(ShardedBuilder):
    """Builds data sets from LPR4M's raw files.

    Raw boxes refer to the stored pixels of a frame, and built ones to the frame as a viewer shows it: the boxes of a
    frame that its EXIF data turn are turned with it. Images have no boxes.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        Config(name="train", kind="train", description="Training pairs: a clip and its product's image."),
        Config(name="query", kind="query", description="Test clips with their ground truth."),
        Config(name="gallery", kind="gallery", description="The shops' images of the test livestreams."),
        Config(
            name="detection_train", kind="detection_train", description="Training clips with boxes, for a detector."
        ),
        Config(name="detection_test", kind="detection_test", description="Test clips with boxes, for a detector."),
        Config(name="train_750k", kind="train", is_subset=True, description="Training pairs, 641,821-row subset."),
        Config(name="query_750k", kind="query", is_subset=True, description="Test clips, subset layout."),
        Config(name="gallery_750k", kind="gallery", is_subset=True, description="Shops' main images, subset layout."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    Put these files into one directory and pass it as --raw_dir (the counts in the names may differ):
      training_videoinfo_full_part_00.txt ... training_videoinfo_full_part_09.txt    training rows
      test_videoid_to_gtimage_20079.json             ground truth
      test_liveid_to_gallery_110.json                galleries
      test_frameid2gtbox_20079_426751.json           boxes
      test_videoid_asr_20079.txt                     speech
      test_image_title_6076.txt                      titles
      frames/<clip_id>/<frame_id>.jpg, images/<image_id>.jpg, or img2dataset's output directories of any name
    or those of the subset of 641,821 rows:
      annotations/train*.txt, annotations/query_tenframes.json, annotations/gallery_main.txt
      query/, gallery/, training_image/, training_video_00/ ... training_video_07/
    LPR4M's authors provide them: {README}.
    The repository's data/sample/simulate.py makes a small data set with the same layout.
    """

    def __init__(self, *, box_units: str = "auto", photos: str = "listed", **kwargs: Any):
        """Makes a builder.

        Args:
            box_units: "pixels" (of the original frame), "normalized" (0..1), or "auto" to detect it from the file.
            photos: of products: "listed" in the annotation files, as published, or "all", also those beside them that
                are called `<image_id>-<k>.jpg`.
            **kwargs: arguments of `ShardedBuilder`.

        Raises:
            RawDataError: `box_units` or `photos` has another value.
        """
        if box_units == "normalised":  # the value's name in earlier versions
            box_units = NORMALIZED
        if box_units not in ("auto", PIXELS, NORMALIZED):
            raise RawDataError(f"box_units: found {box_units!r}, expected auto, pixels or normalized")
        if photos not in ("listed", "all"):
            raise RawDataError(f"photos: found {photos!r}, expected listed or all")
        self._box_units, self._all_photos = box_units, photos == "all"
        super().__init__(**kwargs)

    @classmethod
    def configs_for(cls, raw_dir: Path) -> list[str]:
        """Returns the configs that fit the layout of a raw directory, without those for a detector."""
        of_the_subset = ("annotations/query_tenframes.json", "annotations/gallery_main.txt", "training_image")
        is_subset = any((raw_dir / name).exists() for name in of_the_subset)
        fitting = [config for config in cls.BUILDER_CONFIGS if config.is_subset == is_subset]
        return [config.name for config in fitting if not config.kind.startswith("detection")]

    def _info(self) -> tfds.core.DatasetInfo:
        of_train = train.FEATURES | (train.PHOTOS if self._all_photos else {})
        kinds = {"train": of_train, "query": query.FEATURES, "gallery": gallery.FEATURES}
        return self._info_of(kinds.get(self.builder_config.kind, detection.FEATURES))

    def _shards(self, raw_dir: Path) -> dict[str, Sequence[Shard]]:
        config = self.builder_config
        pictures = self._pictures(raw_dir)
        rows = raw_dir, config.is_subset, pictures, config.max_frames, self._units_of
        match config.kind:
            case "train":
                return {"train": train.train_shards(*rows, self._all_photos)}
            case "query":
                return {"test": query.query_shards(*rows)}
            case "gallery":
                return {"test": gallery.gallery_shards(raw_dir, config.is_subset, pictures, self._all_photos)}
            case "detection_train":
                return {"train": detection.detection_train_shards(*rows)}
            case _:  # "detection_test"
                return {"test": detection.detection_test_shards(raw_dir, pictures, self._units_of)}

    def _metadata(self, summary: SkipSummary) -> dict[str, Any]:
        kinds: dict[str, Callable[[SkipSummary], dict[str, Any]]] = {
            "train": train.train_metadata,
            "query": query.query_metadata,
            "gallery": gallery.gallery_metadata,
        }
        return kinds.get(self.builder_config.kind, detection.detection_metadata)(summary)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"box_units": self._box_units, "photos": "all" if self._all_photos else "listed"}

    def _units_of(self, boxes: Iterable[Box]) -> str:
        return detect_units(boxes) if self._box_units == "auto" else self._box_units

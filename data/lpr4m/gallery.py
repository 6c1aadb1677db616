"""Builds the galleries: the shops' images of the test livestreams."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..builder import PICTURE, TEXT, Example, Shard, chunks
from ..errors import Unusable
from ..pictures import RawPictures
from ..skip_report import SkipReport, SkipSummary
from . import evaluation_files
from .evaluation_files import GalleryImage
from .pictures import read_image

FEATURES = {
    "gallery_id": TEXT(),
    "image_id": TEXT(),
    "title": TEXT(),
    "image": PICTURE(),
}
REPEATED = "twice in its gallery"


def gallery_shards(raw_dir: Path, is_subset: bool, pictures: RawPictures) -> list[Shard]:
    """Divides the galleries into shards, in the order of their file.

    Args:
        raw_dir: the raw files.
        is_subset: whether these are the files of the 641,821-row subset.
        pictures: the reader of the raw directory's pictures.
    """
    read = evaluation_files.read_subset_gallery if is_subset else evaluation_files.read_gallery
    gallery = read(raw_dir)
    find = evaluation_files.find_optional_file if is_subset else evaluation_files.find_file
    titles = evaluation_files.read_texts(find(raw_dir, "test_image_title_*.txt"))
    titled = [(image, titles.get(image.image_id, "")) for image in gallery]
    return [functools.partial(_examples, chunk, pictures) for chunk in chunks(titled)]


def gallery_metadata(summary: SkipSummary) -> dict[str, Any]:
    """Returns the number of images and {gallery_id/image_id: reason} for the images without an example."""
    reasons = summary.reasons("gallery images").items()
    return {
        "num_images": summary.num_tried("gallery images"),
        "skipped": {name: reason for name, reason in reasons if reason != REPEATED},
    }


def _examples(
    gallery: Sequence[tuple[GalleryImage, str]], pictures: RawPictures, report: SkipReport
) -> Iterator[Example]:
    for entry, title in gallery:
        report.tried("gallery images")
        try:
            if entry.is_repeated:
                raise Unusable(REPEATED)
            image = read_image(pictures, entry.image_id, entry.path, report)
        except Unusable as reason:
            report.skipped("gallery images", f"{entry.gallery_id}/{entry.image_id}", entry.where, str(reason))
            continue
        yield {"gallery_id": entry.gallery_id, "image_id": entry.image_id, "title": title, "image": image.encoded}

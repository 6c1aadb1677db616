"""Builds the galleries: the shops' images of the test livestreams."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..builder import PICTURE, TEXT, Example, Shard, chunks
from ..errors import Unusable
from ..pictures import RawPictures
from ..skip_report import SkipReport, SkipSummary
from . import evaluation_files
from .evaluation_files import GalleryImage, name_photos
from .pictures import photos_of, read_image

FEATURES = {
    "gallery_id": TEXT(),
    "image_id": TEXT(),
    "product_id": TEXT(),
    "title": TEXT(),
    "image": PICTURE(),
}
REPEATED = "twice in its gallery"


def gallery_shards(raw_dir: Path, is_subset: bool, pictures: RawPictures, all_photos: bool) -> list[Shard]:
    """Divides the galleries into shards, in the order of their file.

    Args:
        raw_dir: the raw files.
        is_subset: whether these are the files of the 641,821-row subset.
        pictures: the reader of the raw directory's pictures.
        all_photos: whether photos that lie beside those in the file are added, each behind the last of its product.
    """
    read = evaluation_files.read_subset_gallery if is_subset else evaluation_files.read_gallery
    gallery = read(raw_dir)
    if all_photos:
        gallery = _with_photos(gallery, pictures)
    find = evaluation_files.find_optional_file if is_subset else evaluation_files.find_file
    titles = evaluation_files.read_texts(find(raw_dir, "test_image_title_*.txt"))
    titled = [(image, titles.get(image.product_id, "")) for image in gallery]
    return [functools.partial(_examples, chunk, pictures) for chunk in chunks(titled)]


def gallery_metadata(summary: SkipSummary) -> dict[str, Any]:
    """Returns the number of images and {gallery_id/image_id: reason} for the images without an example."""
    reasons = summary.reasons("gallery images").items()
    return {
        "num_images": summary.num_tried("gallery images"),
        "skipped": {name: reason for name, reason in reasons if reason != REPEATED},
    }


def _with_photos(listed: Sequence[GalleryImage], pictures: RawPictures) -> list[GalleryImage]:
    photos: dict[tuple[str, str], list[GalleryImage]] = {}  # of each product; of equal ones the first stays
    for photo in listed:
        photos.setdefault((photo.gallery_id, photo.product_id), []).append(photo)
    for own in photos.values():
        known, first = {photo.number for photo in own}, own[0]
        own += [
            dataclasses.replace(first, number=number, path=path)
            for number, path in photos_of(pictures, first.product_id, first.path)
            if number not in known
        ]
    return name_photos(photo for own in photos.values() for photo in own)


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
        yield {
            "gallery_id": entry.gallery_id,
            "image_id": entry.image_id,
            "product_id": entry.product_id,
            "title": title,
            "image": image.encoded,
        }

"""Reads LPR4M's test files: ground truth, galleries, boxes, speech and titles of the full set and the subset."""

import collections
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from .. import text as text_files
from ..box_units import Box, parse_box
from ..errors import FormatError, RepeatedId
from ..text import check_strings, read_lines, read_object
from .ids import CLIP_ID, CLIP_ID_FORMAT, README, RENAME_CLIP, parse_image_id, parse_photo


@dataclasses.dataclass(frozen=True)
class Query:
    """A test clip; any image of `image_ids` is a hit.

    Attributes:
        where: the place in the file, for errors.
        clip_id: the clip.
        image_ids: the ground truth.
        frames: in the subset, paths relative to the raw directory; empty in the full layout, which does not list them.
    """

    where: str
    clip_id: str
    image_ids: tuple[str, ...]
    frames: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GalleryImage:
    """A photo of a shop's product in the gallery of a livestream.

    Attributes:
        where: the place in the file, for errors.
        gallery_id: the livestream.
        product_id: the published image id, `<image_id>` of `<image_id>-<k>`.
        number: `<k>`, 0 = the main photo.
        path: relative to the raw directory; '' for a main photo of the full layout, which `product_id` names.
        image_id: equals `product_id` for the product's photo of the lowest number in the gallery, and is
            `<image_id>-<k>` for the others.
        is_repeated: whether the same gallery lists the photo before.
    """

    where: str
    gallery_id: str
    product_id: str
    number: int
    path: str = ""
    image_id: str = ""
    is_repeated: bool = False


def read_queries(raw_dir: Path) -> list[Query]:
    """Reads `test_videoid_to_gtimage_*.json`: the queries in the order of the ground truth."""
    path = find_file(raw_dir, "test_videoid_to_gtimage_*.json")
    return [_query(path, clip_id, images) for clip_id, images in read_object(path).items()]


def read_subset_queries(raw_dir: Path) -> list[Query]:
    """Reads the subset's `query_tenframes.json`: queries with the paths of their frames."""
    path = find_file(raw_dir, "query_tenframes.json")
    queries = []
    for clip_id, entry in read_object(path).items():
        if not isinstance(entry, dict) or not {"frames", "gt"} <= entry.keys():
            expected = 'an object with "frames" and "gt"'
            raise FormatError(f"{path}: {clip_id}", repr(entry), expected, "download the file again")
        listed = check_strings(entry["frames"], f"{path}: {clip_id}")
        frames = tuple(f"query/{frame.removeprefix('query/')}" for frame in listed)
        queries.append(_query(path, clip_id, entry["gt"], frames))
    return queries


def read_gallery(raw_dir: Path) -> list[GalleryImage]:
    """Reads `test_liveid_to_gallery_*.json`: all galleries, in the order of the file."""
    path = find_file(raw_dir, "test_liveid_to_gallery_*.json")
    return name_photos(
        GalleryImage(where, live_id, product_id, number, f"images/{product_id}-{number}.jpg" if number else "")
        for live_id, images in read_object(path).items()
        for where in (f"{path}: {live_id}",)
        for product_id, number in map(parse_photo, check_strings(images, where))
    )


def read_subset_gallery(raw_dir: Path) -> list[GalleryImage]:
    """Reads the subset's `gallery_main.txt`: lines `live_id/image_id-0.jpg`."""
    path = find_file(raw_dir, "gallery_main.txt")
    gallery = []
    for where, name in read_lines(path):
        live_id, slash, image = name.removeprefix("gallery/").partition("/")
        if not slash or not live_id or not image or "/" in image:
            raise FormatError(where, repr(name), "live_id/image_id-0.jpg", "fix the line")
        gallery.append(GalleryImage(where, live_id, *parse_photo(image), f"gallery/{live_id}/{image}"))
    return name_photos(gallery)


def name_photos(listed: Iterable[GalleryImage]) -> list[GalleryImage]:
    """Gives the photos of all galleries their `image_id`, and marks those that are repeated."""
    photos = list(listed)
    lowest: dict[tuple[str, str], int] = {}
    for photo in photos:
        key = photo.gallery_id, photo.product_id
        lowest[key] = min(photo.number, lowest.get(key, photo.number))
    seen: set[tuple[str, str, int]] = set()
    named = []
    for photo in photos:
        is_first = photo.number == lowest[photo.gallery_id, photo.product_id]
        name = photo.product_id if is_first else f"{photo.product_id}-{photo.number}"
        numbered = photo.gallery_id, photo.product_id, photo.number
        named.append(dataclasses.replace(photo, image_id=name, is_repeated=numbered in seen))
        seen.add(numbered)
    return named


def read_texts(path: Path | None) -> dict[str, str]:
    """Reads a file of lines `id ⇥ text`.

    Args:
        path: the file; None = no texts.

    Returns:
        {id: text}; the word `null` becomes ''.

    Raises:
        FormatError: a line has no tab, or an id is repeated.
    """
    texts: dict[str, str] = {}
    for where, line in read_lines(path) if path else ():
        name, tab, text = line.partition("\t")  # only the first tab separates: a text may contain more
        if not tab or not name:
            raise FormatError(where, repr(line), "id, a tab, and a text", "fix the line")
        if name in texts:
            raise RepeatedId(where, f"{name} again", "unique ids", "remove one of the lines")
        texts[name] = "" if text == "null" else text
    return texts


def read_boxes(path: Path | None) -> dict[str, dict[str, list[Box]]]:
    """Reads `test_frameid2gtbox_*.json`.

    Args:
        path: the file; None = no boxes.

    Returns:
        {clip_id: {frame_id: boxes}} in the file's own unit, the intended product's box first. A frame has no boxes if
        its first box is all zeros, which means that the intended product is out of view.
    """
    clips: dict[str, dict[str, list[Box]]] = collections.defaultdict(dict)
    for frame_id, boxes in read_object(path).items() if path else ():
        where = f"{path}: {frame_id}"
        if not isinstance(boxes, list):
            raise FormatError(where, repr(boxes), "a list of boxes", "download the file again")
        if boxes and not isinstance(boxes[0], list):  # a single box instead of a list of boxes
            boxes = [boxes]
        parsed = [parse_box(box, where) for box in boxes]
        in_view = bool(parsed) and any(parsed[0])
        clips[frame_id.rpartition("-")[0]][frame_id] = [box for box in parsed if any(box)] if in_view else []
    return clips


def find_file(raw_dir: Path, pattern: str) -> Path:
    """Finds a file in the raw directory or its `annotations/`, as `text.find_file` does."""
    return text_files.find_file([raw_dir, raw_dir / "annotations"], pattern, README)


def find_optional_file(raw_dir: Path, pattern: str) -> Path | None:
    """Finds a file in the raw directory or its `annotations/`, as `text.find_optional_file` does."""
    return text_files.find_optional_file([raw_dir, raw_dir / "annotations"], pattern)


def _query(path: Path, clip_id: str, images: object, frames: tuple[str, ...] = ()) -> Query:
    where = f"{path}: {clip_id}"
    if not CLIP_ID.fullmatch(clip_id):
        raise FormatError(str(path), f"query {clip_id!r}", CLIP_ID_FORMAT, RENAME_CLIP)
    image_ids = tuple(parse_image_id(image) for image in check_strings(images, where))
    if not image_ids:
        raise FormatError(where, "no ground truth", "at least one image id", "download the file again")
    return Query(where, clip_id, image_ids, frames)

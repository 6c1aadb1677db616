"""LPR4M's test files: ground truth, galleries, boxes, ASR and titles, of the full set and of the subset."""

import collections
import dataclasses
import json
from pathlib import Path

from data.errors import DataError, FormatError
from data.lpr4m.values import CLIP_ID, Box, parse_box, parse_image_id, read_lines


@dataclasses.dataclass(frozen=True)
class Query:
    """A test clip; any image of `image_ids` is a hit.

    `frames` are paths relative to the raw directory in the subset; the full layout does not list them: empty.
    """

    where: str
    clip_id: str
    image_ids: tuple[str, ...]
    frames: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GalleryImage:
    """A shop's image in the gallery of a livestream; `path` is relative to the raw directory, '' in the full layout."""

    where: str
    gallery_id: str
    image_id: str
    path: str = ""


def read_queries(raw_dir: Path) -> list[Query]:
    """Reads `test_videoid_to_gtimage_*.json`: the queries in the order of the ground truth."""
    path = find_file(raw_dir, "test_videoid_to_gtimage_*.json")
    return [_query(path, clip_id, images) for clip_id, images in _read_object(path).items()]


def read_subset_queries(raw_dir: Path) -> list[Query]:
    """Reads the subset's `query_tenframes.json`: queries with the paths of their frames."""
    path = find_file(raw_dir, "query_tenframes.json")
    queries = []
    for clip_id, entry in _read_object(path).items():
        if not isinstance(entry, dict) or not {"frames", "gt"} <= entry.keys():
            expected = 'an object with "frames" and "gt"'
            raise FormatError(f"{path}: {clip_id}", repr(entry), expected, "download the file again")
        frames = _strings(entry["frames"], f"{path}: {clip_id}")
        frames = tuple(f"query/{frame.removeprefix('query/')}" for frame in frames)
        queries.append(_query(path, clip_id, entry["gt"], frames))
    return queries


def read_gallery(raw_dir: Path) -> list[GalleryImage]:
    """Reads `test_liveid_to_gallery_*.json`: all galleries, in the order of the file."""
    path = find_file(raw_dir, "test_liveid_to_gallery_*.json")
    return [
        GalleryImage(f"{path}: {live_id}", live_id, parse_image_id(image))
        for live_id, images in _read_object(path).items()
        for image in _strings(images, f"{path}: {live_id}")
    ]


def read_subset_gallery(raw_dir: Path) -> list[GalleryImage]:
    """Reads the subset's `gallery_main.txt`: lines `live_id/image_id-0.jpg`."""
    path = find_file(raw_dir, "gallery_main.txt")
    gallery = []
    for where, name in read_lines(path):
        live_id, slash, image = name.removeprefix("gallery/").partition("/")
        if not slash or not live_id or not image or "/" in image:
            raise FormatError(where, repr(name), "live_id/image_id-0.jpg", "mend the line")
        gallery.append(GalleryImage(where, live_id, parse_image_id(image), f"gallery/{live_id}/{image}"))
    return gallery


def read_texts(path: Path | None) -> dict[str, str]:
    """Reads lines `id ⇥ text`; the word `null` is no text. No file, no texts."""
    texts: dict[str, str] = {}
    for where, line in read_lines(path) if path else ():
        name, tab, text = line.partition("\t")  # a text may hold tabs: only the first one counts
        if not tab or not name:
            raise FormatError(where, repr(line), "id, a tab, and a text", "mend the line")
        if name in texts:
            raise FormatError(where, f"{name} again", "each id once", "take one of the lines away")
        texts[name] = "" if text == "null" else text
    return texts


def read_boxes(path: Path | None) -> dict[str, dict[str, list[Box]]]:
    """Reads `test_frameid2gtbox_*.json`.

    Returns:
        {clip_id: {frame_id: boxes}}, the intended product's box first, in the file's own unit; no boxes where the
        first one is all zeros: the intended product is out of view.
    """
    clips: dict[str, dict[str, list[Box]]] = collections.defaultdict(dict)
    for frame_id, boxes in _read_object(path).items() if path else ():
        where = f"{path}: {frame_id}"
        if not isinstance(boxes, list):
            raise FormatError(where, repr(boxes), "a list of boxes", "download the file again")
        if boxes and not isinstance(boxes[0], list):  # one bare box instead of a list of one
            boxes = [boxes]
        parsed = [parse_box(box, where) for box in boxes]
        in_view = bool(parsed) and any(parsed[0])
        clips[frame_id.rpartition("-")[0]][frame_id] = [box for box in parsed if any(box)] if in_view else []
    return clips


def find_file(raw_dir: Path, pattern: str, required: bool = True) -> Path | None:
    """Finds the one file of that name in the raw directory or its `annotations/`.

    Args:
        raw_dir: the raw directory.
        pattern: a name with `*` for the counts that published names carry.
        required: whether its absence is an error.

    Raises:
        DataError: there is none and it is required.
        FormatError: there are several.
    """
    found = sorted([*raw_dir.glob(pattern), *raw_dir.glob(f"annotations/{pattern}")])
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise FormatError(str(raw_dir), names, f"one file {pattern}", "take the others away")
    if not found and required:
        raise DataError(
            f"{raw_dir}: found no {pattern}, expected it here or in annotations/; data/lpr4m/README.md tells where it "
            "comes from, and --configs leaves its set out"
        )
    return found[0] if found else None


def _query(path: Path, clip_id: str, images: object, frames: tuple[str, ...] = ()) -> Query:
    where = f"{path}: {clip_id}"
    if not CLIP_ID.fullmatch(clip_id):
        raise FormatError(str(path), f"query {clip_id!r}", "a clip id live_id-START-END", "download the file again")
    image_ids = tuple(parse_image_id(image) for image in _strings(images, where))
    if not image_ids:
        raise FormatError(where, "no ground truth", "at least one image id", "download the file again")
    return Query(where, clip_id, image_ids, frames)


def _strings(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise FormatError(where, repr(value), "a list of strings", "download the file again")
    return value


def _read_object(path: Path) -> dict:
    def without_repeats(pairs: list[tuple[str, object]]) -> dict:
        members = dict(pairs)
        if len(members) < len(pairs):  # json would keep the last one and tell nobody
            keys = collections.Counter(key for key, _ in pairs)
            repeated = keys.most_common(1)[0][0]
            raise FormatError(str(path), f"key {repeated!r} twice", "each key once", "take one of them away")
        return members

    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_repeats)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", 1)
        raise FormatError(f"{path}:{line}", str(error), "JSON in UTF-8", "download the file again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}:1", type(value).__name__, "a JSON object", "download the file again")
    return value

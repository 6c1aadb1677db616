"""Parses the ids of LPR4M's clips, livestreams and images."""

import re
from pathlib import Path

from ..pictures import IMAGE_EXTENSIONS

README = str(Path(__file__).with_name("README.md"))  # named by errors
CLIP_ID = re.compile(r"[^/\\\s]+-\d+-\d+")
CLIP_ID_FORMAT = "a clip id LIVE-START-END: the livestream's id, and two times in milliseconds"
RENAME_CLIP = "rename the clip, its frames, and its other mentions: its livestream and times are read from its id"
_UUID_AND_INDEX = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-(\d+)", re.IGNORECASE)


def parse_image_id(name: str) -> str:
    """Returns the image id in a file name or path, which may be `<image_id>.jpg` or `<image_id>-<k>.jpg`."""
    return parse_photo(name)[0]


def parse_photo(name: str) -> tuple[str, int]:
    """Returns the image id in a file name or path and `<k>`, the number of the product's photo; 0 = the main one."""
    stem = name.rpartition("/")[2]
    for extension in IMAGE_EXTENSIONS:
        if stem.lower().endswith(extension):
            stem = stem[: -len(extension)]
    indexed = _UUID_AND_INDEX.fullmatch(stem)  # count the groups: an id's last group may be all digits
    return (indexed[1], int(indexed[2])) if indexed else (stem, 0)


def live_id_of(clip_id: str) -> str:
    """Returns the livestream of a clip, whose id is `live_id-START-END`."""
    return clip_id.rsplit("-", 2)[0]

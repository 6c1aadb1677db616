"""The ids of LPR4M: clips, livestreams, images."""

import re

from data.pictures import IMAGE_EXTENSIONS

CLIP_ID = re.compile(r"[^/\\\s]+-\d+-\d+")  # live_id-START-END
_UUID_AND_INDEX = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-\d+", re.IGNORECASE)


def parse_image_id(name: str) -> str:
    """Returns the image id of a file name or path: the extension goes first, then the `-k` of `<image_id>-<k>.jpg`."""
    stem = name.rpartition("/")[2]
    for extension in IMAGE_EXTENSIONS:
        if stem.lower().endswith(extension):
            stem = stem[: -len(extension)]
    indexed = _UUID_AND_INDEX.fullmatch(stem)  # an id's own last group may be digits too: count the groups
    return indexed[1] if indexed else stem


def live_id_of(clip_id: str) -> str:
    """Returns the livestream of a clip: `live_id-START-END` without its last two parts."""
    return clip_id.rsplit("-", 2)[0]

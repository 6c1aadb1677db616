"""What to look at in MovingFashion's raw files before a build."""

import contextlib
from pathlib import Path

from data.errors import DataError, FormatError, Unusable
from data.findings import Findings
from data.movingfashion.annotations import gallery_of, queries_of, read_pairs
from data.movingfashion.movingfashion_dataset_builder import read_frames, read_image
from data.pictures import RawPictures
from data.text import find_file

PUBLISHED = {"training videos": 13_526, "test videos": 1_329, "gallery images": 1_341}


def check(raw_dir: Path, pictures: RawPictures, min_frames: int, findings: Findings) -> None:
    """Reads all that a build would read, and lists every fault.

    Args:
        raw_dir: the raw files.
        pictures: of the raw directory.
        min_frames: a video with fewer frames that can be used is a fault, 1..10.
        findings: is told the faults and counts.
    """
    findings.published |= PUBLISHED
    for split, kind in (("train", "training videos"), ("test", "test videos")):
        try:
            path = find_file([raw_dir], f"{split}.json", "data/movingfashion/README.md")
            pairs = read_pairs(path, findings.errors("rows"))
        except DataError as error:
            findings.error("files", error)
            continue
        videos = queries_of(pairs)
        for video in findings.looked_at(kind, videos, len(videos)):
            _check_frames(video.video, video.name, kind, video.where, pictures, min_frames, findings)
        images = gallery_of(pairs)
        image_kind = "gallery images" if split == "test" else "training images"
        for image in findings.looked_at(image_kind, images, len(images)):
            with contextlib.suppress(Unusable):  # listed as a picture
                read_image(image.image, pictures, findings)


def _check_frames(
    video: str, name: str, kind: str, where: str, pictures: RawPictures, min_frames: int, findings: Findings
) -> None:
    usable = 0
    try:
        usable = len(read_frames(video, pictures, findings))
    except Unusable:
        pass  # no frames at all
    except FormatError as error:
        findings.error("files", error)
        return
    findings.check_frames(kind, name, where, usable, min_frames)

"""Checks MovingFashion's raw files before a build."""

import contextlib
from pathlib import Path

from ..errors import FormatError, RawDataError, Unusable
from ..findings import Findings
from ..pictures import RawPictures
from ..text import find_file
from .annotations import README, gallery_of, queries_of, read_pairs
from .movingfashion_dataset_builder import read_frames, read_image

PUBLISHED = {"training videos": 13_526, "test videos": 1_329, "gallery images": 1_341}


def check(raw_dir: Path, pictures: RawPictures, min_frames: int, findings: Findings) -> None:
    """Reads everything that a build would read, and lists every fault.

    Args:
        raw_dir: the raw files.
        pictures: the reader of the raw directory's pictures.
        min_frames: a video with fewer usable frames is a fault, 1..10.
        findings: collects the faults and counts.
    """
    findings.published |= PUBLISHED
    for split, kind in (("train", "training videos"), ("test", "test videos")):
        try:
            path = find_file([raw_dir], f"{split}.json", README)
            pairs = read_pairs(path, findings.error_handler("rows"))
        except RawDataError as error:
            findings.error("files", error)
            continue
        videos = queries_of(pairs)
        for video in findings.counted(kind, videos, len(videos)):
            _check_frames(video.video, video.name, kind, video.where, pictures, min_frames, findings)
        images = gallery_of(pairs)
        image_kind = "gallery images" if split == "test" else "training images"
        for image in findings.counted(image_kind, images, len(images)):
            with contextlib.suppress(Unusable):  # listed as a picture
                read_image(image.image, pictures, findings)


def _check_frames(
    video: str, name: str, kind: str, where: str, pictures: RawPictures, min_frames: int, findings: Findings
) -> None:
    usable = 0
    try:
        usable = len(read_frames(video, pictures, findings))
    except Unusable:
        pass  # the video has no frames
    except FormatError as error:
        findings.error("files", error)
        return
    findings.check_frames(kind, name, where, usable, min_frames)

"""Checks ROPE's raw files before a build."""

import hashlib
from pathlib import Path

from ..errors import RawDataError, Unusable
from ..findings import Findings
from ..pictures import RawPictures
from .files import DOMAINS, SPLITS, Domain, files_of
from .items import Item, read_items
from .rope_dataset_builder import MAX_FRAMES, kind_of, read_frames, report_lines

PUBLISHED = {
    "training products": 187_431,
    "training pages": 3_025_236,
    "training videos": 5_837_716,
    "training lives": 3_464_116,
    "test products": 2_527,
    "test pages": 31_388,
    "test videos": 29_810,
    "test lives": 30_981,
}


def check(raw_dir: Path, pictures: RawPictures, min_frames: int, findings: Findings) -> None:
    """Reads everything that a build would read, and lists every fault.

    Args:
        raw_dir: the raw files.
        pictures: the reader of the raw directory's pictures.
        min_frames: a short video or live clip with fewer usable frames is a fault, 1..10. A page without a usable image
            is always a fault.
        findings: collects the faults and counts.
    """
    findings.published |= PUBLISHED
    for split in SPLITS:
        products: set[bytes] = set()
        for domain in DOMAINS.values():
            try:
                files = files_of(raw_dir, split, domain)
                items = read_items(files, domain, MAX_FRAMES, findings.scratch, findings.error_handler("rows"))
                for item in findings.counted(kind_of(split, domain.name), items):
                    _check_item(item, split, domain, pictures, min_frames, findings)
                    products.update(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in item.products)
            except RawDataError as error:
                findings.error("files", error)
        findings.counts[f"{SPLITS[split]} products"] = len(products)


def _check_item(
    item: Item, split: str, domain: Domain, pictures: RawPictures, min_frames: int, findings: Findings
) -> None:
    kind = kind_of(split, domain.name)
    report_lines(item, findings)
    try:
        _ = item.product
        frames = read_frames(item, domain.name, pictures, findings)
    except Unusable as reason:
        findings.skipped(kind, item.name, item.where, str(reason))
    else:
        least = min_frames if domain.has_numbers else 1
        findings.check_frames(kind, item.name, item.where, len(frames), least)

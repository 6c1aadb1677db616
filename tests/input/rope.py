"""A small ROPE in which some products lack a domain."""

from collections.abc import Callable
from pathlib import Path

from data.build import main as build
from tests.data.raw_rope import FILES, item_of, picture_of, write_raw

BROKEN = item_of("lives", 8)  # a test item without any picture
BUILT = "built"  # beside the raw files


def num_items(domain: str, product: int) -> int:
    """Number of items: products 0 and 5 are in one domain, 1 in two, the others in three."""
    missing = {0: ("videos", "lives"), 1: ("lives",), 5: ("pages", "videos")}.get(product, ())
    return 0 if domain in missing else 1 + product % 3


def write_rope(directory: Path, change: Callable[[Path], object] = lambda raw: None, num_train: int = 8) -> Path:
    """Writes raw files and builds their data sets; returns the raw files' directory.

    Args:
        directory: for both.
        change: changes the raw files.
        num_train: training products; three test products follow them.
    """
    raw = write_raw(directory / "raw", num_train=num_train, num_test=3, num_items=num_items)
    for path in (raw / "lives").iterdir():
        if path.name in {picture_of("lives", BROKEN, frame) for frame in range(12)}:
            path.unlink()
    change(raw)
    data_dir = str(directory / BUILT)
    build(["rope", "--raw_dir", str(raw), "--data_dir", data_dir, "--max_skipped_percent", "50"])
    return raw


def lines_of(raw: Path, kind: str) -> list[list[str]]:
    """The fields of a raw file's lines."""
    return [[field.strip() for field in line.split(",")] for line in (raw / f"{kind}.txt").read_text().splitlines()]


def known_pictures(raw: Path) -> dict[bytes, tuple[str, str, str]]:
    """{bytes of a training picture: (product, domain, item)}, from the raw files."""
    known = {}
    for domain, (pairs, _, pictures) in FILES.items():
        product = {item: product for product, item in lines_of(raw, f"training_{pairs}")}
        for item, *_, name in lines_of(raw, f"training_{pictures}"):
            known[(raw / domain / name).read_bytes()] = product[item], domain, item
    return known

"""Writes tiny raw ROPE files for tests."""

import uuid
from collections.abc import Callable
from pathlib import Path

from data.rope.files import DOMAINS
from tests.data.raw_lpr4m import jpeg
from tests.data.raw_movingfashion import write

SIZE = (27, 48)  # width, height of frames and images
FILES = {
    "pages": ("product_pages_pair", "page_titles", "page_images"),
    "videos": ("product_videos_pair", "video_asrs", "video_frames"),
    "lives": ("product_lives_pair", "live_asrs", "live_clips"),
}
TEXT = "简约, 外套,\t厚\x01 1 元"  # all that may confuse a reader


def write_raw(
    raw_dir: Path,
    *,
    num_train: int = 6,
    num_test: int = 4,
    num_items: Callable[[str, int], int] = lambda domain, product: 1 + (product % 2),
    num_pictures: Callable[[str, int], int] = lambda domain, product: 2 + 5 * (product % 3),
) -> Path:
    """Writes raw files in which every product has a color of its own, in all its pictures.

    Args:
        raw_dir: directory to fill.
        num_train: training products, numbered from 0.
        num_test: test products, numbered on.
        num_items: how many pages, videos or lives there are of a product, at most 9.
        num_pictures: how many pictures each of them has.

    Returns:
        `raw_dir`.
    """
    for domain in DOMAINS:
        for prefix, products in (("training", range(num_train)), ("test", range(num_train, num_train + num_test))):
            lines: tuple[list[str], ...] = ([], [], [])
            for product in products:
                for number in range(num_items(domain, product)):
                    item = item_of(domain, product, number)
                    lines[0].append(f"{product_of(product)}, {item}")
                    lines[1].append(f"{item},  {TEXT}{item} ")
                    pictures = range(num_pictures(domain, product))
                    for frame in pictures:
                        noise = 10**6 * list(FILES).index(domain) + 100 * int(item) + frame
                        picture = raw_dir / domain / picture_of(domain, item, frame)
                        write(picture, jpeg(product, SIZE, noise=noise))
                    # Out of order, but for pages, whose order is that of the file.
                    for frame in pictures if domain == "pages" else sorted(pictures, key=lambda frame: frame % 3):
                        numbers = {"pages": [], "videos": [f"{80 * frame}"], "lives": [f"{1668122889829 + frame}"]}
                        lines[2].append(", ".join([item, *numbers[domain], picture_of(domain, item, frame)]))
            for name, its_lines in zip(FILES[domain], lines, strict=True):
                write(raw_dir / f"{prefix}_{name}.txt", "".join(f"{line}\n" for line in its_lines).encode())
    return raw_dir


def product_of(product: int) -> str:
    return str(99000 + product)


def item_of(domain: str, product: int, number: int = 0) -> str:
    """Its id: of 3 or 4 digits, so that numbers and texts sort otherwise."""
    return str(900 + 10 * product + number + 1000 * list(FILES).index(domain) * (product % 2))


def picture_of(domain: str, item: str, frame: int) -> str:
    return f"{uuid.UUID(int=(list(FILES).index(domain) + 1 << 64) + 100 * int(item) + frame)}.jpg"


def edit(raw_dir: Path, name: str, change: Callable[[list[str]], object]) -> None:
    """Changes the lines of a file."""
    path = raw_dir / f"{name}.txt"
    lines = path.read_bytes().decode().removesuffix("\n").split("\n")
    change(lines)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())

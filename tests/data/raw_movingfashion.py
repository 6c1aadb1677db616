"""Writes tiny raw MovingFashion files, frames extracted, for tests."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.data.raw_lpr4m import jpeg

SIZE = (27, 48)  # width, height of frames and images


def write_raw(
    raw_dir: Path,
    *,
    num_train: int = 6,
    num_test: int = 4,
    num_frames: Callable[[int], int] = lambda product: 3 + 5 * (product % 3),
    tracklets: bool = True,
) -> Path:
    """Writes raw files in which every product has a color of its own, in its image and in its videos.

    Every second product is regular, the others are hard. The second training product has two videos. The first two
    test products share a video, so that it has two ground truths.

    Args:
        raw_dir: directory to fill.
        num_train: training products, two at least.
        num_test: test products, two at least.
        num_frames: extracted frames of the videos of the i-th product; those of testing follow those of training.
        tracklets: whether the files hold boxes.

    Returns:
        `raw_dir`.
    """
    products = range(num_train + num_test)
    videos = {product: [video_of(product)] for product in products}
    videos[1].append(video_of(1, number=1))
    videos[num_train + 1] = videos[num_train]
    for product in products:
        write(raw_dir / image_of(product), jpeg(product, SIZE))
        for number, video in enumerate(videos[product]):
            if (raw_dir / video).exists():  # of the product before
                continue
            write(raw_dir / video, b"frames are extracted already")
            for frame in range(num_frames(product)):
                content = jpeg(product, SIZE, noise=1000 * product + 100 * number + frame)
                write(frame_of(raw_dir, video, frame), content)
    for split, chosen in (("train", products[:num_train]), ("test", products[num_train:])):
        entries = {str(product): _entry(product, videos[product], tracklets) for product in chosen}
        (raw_dir / f"{split}.json").write_text(json.dumps(entries))
    return raw_dir


def _entry(product: int, videos: list[str], tracklets: bool) -> dict:
    entry = {"video_paths": videos, "img_path": image_of(product), "source": product % 2}
    if tracklets:
        entry["tracklets"] = [{"0": [3, 6, 24, 36], "17": [4, 6, 25, 36]} for _ in videos]
    return entry


def image_of(product: int) -> str:
    return f"imgs/{product:08}a1f4.jpg"


def video_of(product: int, number: int = 0) -> str:
    return f"videos/{1000 + product}_detail{number}.mp4"


def frame_of(raw_dir: Path, video: str, frame: int) -> Path:
    return raw_dir / "frames" / Path(video).stem / f"{frame:04}.jpg"


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def edit(raw_dir: Path, split: str, change: Callable[[dict], object]) -> None:
    """Changes what a split's file says."""
    path = raw_dir / f"{split}.json"
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))

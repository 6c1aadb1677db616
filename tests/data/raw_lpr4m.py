"""Writes tiny raw LPR4M files, in any of the three layouts of training rows, for tests."""

import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

FRAME_SIZE = (27, 48)  # width, height
IMAGE_SIZE = (32, 32)


def write_raw(
    raw_dir: Path,
    *,
    num_columns: int = 11,
    num_train: int = 6,
    num_lives: int = 2,
    queries_per_live: int = 2,
    gallery_size: int = 4,
    frames_per_clip: Callable[[int], int] = lambda clip: 3 + 5 * (clip % 3),
    parts: int = 2,
    seed: int = 0,
) -> Path:
    """Writes raw files in which every product has a color of its own, in its images and in its clips' frames.

    Args:
        raw_dir: directory to fill.
        num_columns: 11 or 12 (full layout) or 13 (the subset's).
        num_train: training clips, of `num_train // 2` products at least one.
        num_lives: test livestreams, each with a gallery of its own.
        queries_per_live: test clips of a livestream, each of another product of the gallery.
        gallery_size: images of a livestream.
        frames_per_clip: number of frames of the i-th clip.
        parts: files of training rows.
        seed: of the colors.

    Returns:
        `raw_dir`.
    """
    return _Writer(Path(raw_dir), num_columns, frames_per_clip, seed).write(
        num_train, num_lives, queries_per_live, gallery_size, parts
    )


class _Writer:
    def __init__(self, raw_dir: Path, num_columns: int, frames_per_clip: Callable[[int], int], seed: int):
        self.raw_dir, self.num_columns, self.frames_per_clip = raw_dir, num_columns, frames_per_clip
        self.is_subset = num_columns == 13
        self.annotations = raw_dir / "annotations" if self.is_subset else raw_dir
        self.rng = np.random.default_rng(seed)

    def write(self, num_train: int, num_lives: int, queries_per_live: int, gallery_size: int, parts: int) -> Path:
        self.annotations.mkdir(parents=True, exist_ok=True)
        rows = [self.training_row(clip, product=clip % max(1, num_train // 2)) for clip in range(num_train)]
        for part in range(parts):
            name = "training_rows" if self.is_subset else "training_videoinfo_full_part"
            (self.annotations / f"{name}_{part:02}.txt").write_text("".join(rows[part::parts]), encoding="utf-8")
        self.test_files(num_train, num_lives, queries_per_live, gallery_size)
        return self.raw_dir

    def training_row(self, clip: int, product: int) -> str:
        clip_id, image_id, num_frames = clip_id_of(clip), image_id_of(product), self.frames_per_clip(clip)
        frame_ids = [f"{clip_id}-{frame:04}" for frame in range(num_frames)]
        for frame_id in frame_ids:
            self.picture(self.frame_path(clip_id, frame_id, "training_video_00"), product, FRAME_SIZE)
        boxes = [[0, 0, 0, 0] if frame % 4 == 3 else [3, 6, 24, 36] for frame in range(num_frames)]
        frames = frame_ids
        image_path = []
        if self.is_subset:
            frames = [self.frame_path(clip_id, frame_id, "training_video_00") for frame_id in frame_ids][:10]
            boxes = boxes[:10]
            image_path = [f"training_image/{image_id}-0.jpg"]
        self.picture(image_path[0] if image_path else f"images/{image_id}.jpg", product, IMAGE_SIZE)
        product_id = [] if self.num_columns == 11 else [str(9000 + product)]
        columns = [clip_id, json.dumps(frames), json.dumps(boxes), image_id, *image_path]
        columns += [f"简约外套, {product}", str(1000 + product), "女装", *product_id, f"这件|外套\x01{product}"]
        return "\t".join([*columns, "Medium", "long", "few"]) + "\n"

    def test_files(self, num_train: int, num_lives: int, queries_per_live: int, gallery_size: int) -> None:
        truth, galleries, boxes, asr, titles, subset_queries = {}, {}, {}, [], [], {}
        for live in range(num_lives):
            products = [1000 + live * gallery_size + i for i in range(gallery_size)]
            galleries[live_id_of(1000 + live)] = [image_id_of(product) for product in products]
            for product in products:
                image_id = image_id_of(product)
                in_gallery = f"gallery/{live_id_of(1000 + live)}/{image_id}-0.jpg"
                self.picture(in_gallery if self.is_subset else f"images/{image_id}.jpg", product, IMAGE_SIZE)
                titles.append(f"{image_id}\t商品 {product}\n")
            for query in range(queries_per_live):
                clip = num_train + live * queries_per_live + query
                clip_id = clip_id_of(clip, live=1000 + live)
                truth[clip_id] = [image_id_of(products[query])]
                frames = []
                for frame in range(self.frames_per_clip(clip)):
                    frame_id = f"{clip_id}-{frame:04}"
                    frames.append(self.frame_path(clip_id, frame_id, "query"))
                    self.picture(frames[-1], products[query], FRAME_SIZE)
                    if frame % 3 == 0:
                        boxes[frame_id] = [[0.1, 0.2, 0.6, 0.8], [0.5, 0.5, 1.0, 1.0]] if frame % 2 == 0 else []
                subset_queries[clip_id] = {"frames": frames[:10], "gt": truth[clip_id]}
                asr.append(f"{clip_id}\t{'null' if query else '看这件, 好看'}\n")
        if self.is_subset:
            self.json("query_tenframes.json", subset_queries)
            lines = [f"{live}/{image}-0.jpg\n" for live, images in galleries.items() for image in images]
            (self.annotations / "gallery_main.txt").write_text("".join(lines))
            return
        self.json(f"test_videoid_to_gtimage_{len(truth)}.json", truth)
        self.json(f"test_liveid_to_gallery_{num_lives}.json", galleries)
        num_boxes = sum(map(len, boxes.values()))
        self.json(f"test_frameid2gtbox_{len(truth)}_{num_boxes}.json", boxes)
        (self.annotations / f"test_videoid_asr_{len(asr)}.txt").write_text("".join(asr), encoding="utf-8")
        (self.annotations / f"test_image_title_{len(titles)}.txt").write_text("".join(titles), encoding="utf-8")

    def frame_path(self, clip_id: str, frame_id: str, folder: str) -> str:
        return f"{folder}/{clip_id}/{frame_id}.jpg" if self.is_subset else f"frames/{clip_id}/{frame_id}.jpg"

    def picture(self, relative: str, product: int, size: tuple[int, int]) -> None:
        path = self.raw_dir / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(product, size, noise=int(self.rng.integers(1 << 30))))

    def json(self, name: str, value: dict) -> None:
        (self.annotations / name).write_text(json.dumps(value), encoding="utf-8")


def jpeg(product: int, size: tuple[int, int], noise: int = 0) -> bytes:
    """Returns a small JPEG in the product's color with a little noise.

    Args:
        product: products of different numbers look different.
        size: width, height.
        noise: seed of the noise, so that no two pictures need be equal.
    """
    color = np.random.default_rng(product).integers(30, 226, 3)
    pixels = color + np.random.default_rng(noise).integers(-12, 13, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def live_id_of(number: int) -> str:
    return str(uuid.UUID(int=(1 << 100) + number))


def image_id_of(product: int) -> str:
    return str(uuid.UUID(int=(2 << 100) + product))


def clip_id_of(clip: int, live: int = 0) -> str:
    start = 1_667_916_122_888 + 200_000 * clip
    return f"{live_id_of(live)}-{start}-{start + 130_000}"

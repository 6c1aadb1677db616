"""Simulates livestreams of a shop's products and writes them in the raw layout of LPR4M.

    python data/sample/simulate.py --products data/sample --out RAW

README.md beside this file describes the product directory and the output.
"""

import argparse
import csv
import functools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence

import numpy as np
import tqdm

if not __package__:  # Run as a script, whose relative imports need a package: PEP 366.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    __package__ = "data.sample"

from ..errors import WorkerError
from ..processes import in_workers
from . import plan, scene, shop, speech

PARTS = 10  # number of files of training rows, as in LPR4M
ANNOTATED_EVERY = 3  # frames 0, 3, 6, ... of a test clip have boxes
FIRST_START_MS = 1_667_916_122_888


def main(argv: list[str] | None = None) -> None:
    """Parses the flags, renders every clip and finally writes the annotation files."""
    flags = _parse(argv)
    try:
        simulate(flags)
    except (ValueError, WorkerError) as error:
        raise SystemExit(f"error: {error}") from None


def simulate(flags: argparse.Namespace) -> None:
    """Writes a raw data directory.

    Args:
        flags: the parsed flags.

    Raises:
        ValueError: a flag or a file in the product directory is wrong, or --out is not empty.
    """
    out = pathlib.Path(flags.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out={out} is not empty: remove it or choose another directory")
    settings = plan.Settings(
        min_frames=flags.min_frames,
        max_frames=flags.max_frames,
        max_distractors=flags.distractors,
        clutter=flags.clutter,
    )
    products, backgrounds, train, test = shop.load(flags)
    tasks = _tasks(train, flags.clips_per_product, "train", flags) + _tasks(
        test, flags.test_clips_per_product, "test", flags
    )
    out.mkdir(parents=True, exist_ok=True)
    _write_images(train + test, flags.products, out)
    render = functools.partial(_render, flags.products, backgrounds, settings, out)
    rendered = in_workers(render, tasks, flags.workers, chunksize=4)
    clips = list(tqdm.tqdm(rendered, total=len(tasks), unit="clip", desc="rendering"))
    _write_training(out, [c for c in clips if c["split"] == "train"], products)
    _write_test(out, test, [c for c in clips if c["split"] == "test"], flags)


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    shop.add_flags(parser)
    add("--out", required=True, help="directory to write; must be new or empty")
    add("--clips_per_product", type=int, default=4, help="number of training clips per product (default 4)")
    add("--test_clips_per_product", type=int, default=4, help="number of test clips (queries) per product (default 4)")
    add("--min_frames", type=int, default=5, help="length of the shortest clip (default 5)")
    add("--max_frames", type=int, default=30, help="length of the longest clip (default 30)")
    add("--distractors", type=int, default=8, help="maximum number of other products in a clip (default 8)")
    add(
        "--clutter",
        type=float,
        default=1.0,
        help="amount of blur, hands, banners and color casts, 0 to 1 (default 1)",
    )
    add("--categories", action="store_true", help="also write test_image_category.txt (not an LPR4M file)")
    add("--all_titles", action="store_true", help="titles for all of the gallery's images (default: for about half)")
    add("--workers", type=int, default=count_cores(), help="number of processes (default: all cores)")
    flags = parser.parse_args(argv)
    for name in ("clips_per_product", "test_clips_per_product", "workers", "min_frames"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name}={getattr(flags, name)}: expected at least 1")
    if flags.max_frames < flags.min_frames:
        parser.error(f"--max_frames={flags.max_frames}: expected at least --min_frames={flags.min_frames}")
    check_common(parser, flags)
    return flags


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_common(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Ends the program if a flag that simulate.py, film.py and rope.py share is out of range."""
    shop.check_flags(parser, flags)
    if flags.distractors < 0:
        parser.error(f"--distractors={flags.distractors}: expected at least 0")
    if not 0 <= flags.clutter <= 1:
        parser.error(f"--clutter={flags.clutter}: expected 0 to 1")


def _tasks(lives, clips_per_product, split, flags):
    """Returns one task per clip, with everything that its rendering needs besides the shared settings.

    Each clip has its own random generator, so that the result does not depend on the worker that renders it.
    """
    tasks = []
    for number, live in enumerate(lives):
        code = 1 if split == "train" else 2
        rng = np.random.default_rng([flags.seed, code, number])
        others = [p for other in lives for p in other.products if other is not live]
        start = FIRST_START_MS + 86_400_000 * number
        for clip in rng.permutation(len(live.products) * clips_per_product):
            index = int(clip) // clips_per_product
            start += int(rng.integers(2_000, 60_000))
            tasks.append(
                {
                    "split": split,
                    "seed": [flags.seed, code, number, int(clip)],
                    "live_id": live.live_id,
                    "start": start,
                    "image_id": live.image_ids[index],
                    "product": live.products[index],
                    "shop": [p for i, p in enumerate(live.products) if i != index],
                    "language": live.language,
                    "elsewhere": [others[i].product_id for i in rng.permutation(len(others))[:8]],
                }
            )
            start += flags.max_frames * 1000
    return tasks


def _render(directory, backgrounds, settings, out, task):
    """Renders one clip, writes its frames and returns its annotations."""
    rng = np.random.default_rng(task["seed"])
    product, language = task["product"], task["language"]
    nearby = [p.product_id for p in task["shop"]]
    clip = scene.render(
        product.product_id, nearby, task["elsewhere"], backgrounds, directory, settings, ANNOTATED_EVERY, rng
    )
    end = task["start"] + 1000 * len(clip.frames)
    clip_id = f"{task['live_id']}-{task['start']}-{end}"
    folder = out / "frames" / clip_id
    folder.mkdir(parents=True)
    frame_ids = [f"{clip_id}-{i:04d}" for i in range(len(clip.frames))]
    for frame_id, jpeg in zip(frame_ids, clip.frames, strict=True):
        (folder / f"{frame_id}.jpg").write_bytes(jpeg)
    return {
        "split": task["split"],
        "clip_id": clip_id,
        "live_id": task["live_id"],
        "image_id": task["image_id"],
        "product": product,
        "frame_ids": frame_ids,
        "boxes": clip.boxes,
        "title": speech.title(product, language, task["seed"][0]),
        "asr": speech.asr(product, task["shop"], language, rng),
    }


def _write_images(lives, directory, out):
    """Copies the shop's pictures under their image ids, and writes their creators to attribution.csv."""
    (out / "images").mkdir()
    with (out / "attribution.csv").open("w", newline="", encoding="utf-8") as file:
        writer = None
        for live in lives:
            for product, image_id in zip(live.products, live.image_ids, strict=True):
                shutil.copyfile(shop.image_path(directory, product.product_id), out / "images" / f"{image_id}.jpg")
                row = {"image_id": image_id, **product.row}
                if writer is None:
                    writer = csv.DictWriter(file, list(row), lineterminator="\n")
                    writer.writeheader()
                writer.writerow(row)


def _write_training(out, clips, products):
    categories = sorted({p.category for p in products})
    for part, indices in enumerate(np.array_split(np.arange(len(clips)), PARTS)):
        path = out / f"training_videoinfo_full_part_{part:02d}.txt"
        with path.open("w", encoding="utf-8") as file:
            for i in indices:
                clip = clips[i]
                boxes = [frame[0] if frame else [0, 0, 0, 0] for frame in clip["boxes"]]
                columns = [
                    clip["clip_id"],
                    json.dumps(clip["frame_ids"]),
                    json.dumps(boxes),
                    clip["image_id"],
                    clip["title"],
                    str(1001 + categories.index(clip["product"].category)),
                    clip["product"].category,
                    clip["asr"],
                    *clip_types(clip["boxes"]),
                ]
                file.write("\t".join(columns) + "\n")


def _write_test(out, lives, clips, flags):
    truth = {c["clip_id"]: [c["image_id"]] for c in clips}
    galleries = {live.live_id: list(live.image_ids) for live in lives}
    width, height = plan.WIDTH, plan.HEIGHT
    boxes = {
        frame_id: [
            [round(x1 / width, 6), round(y1 / height, 6), round(x2 / width, 6), round(y2 / height, 6)]
            for x1, y1, x2, y2 in frame
        ]
        for c in clips
        for frame_id, frame in list(zip(c["frame_ids"], c["boxes"], strict=True))[::ANNOTATED_EVERY]
    }
    titles = {c["image_id"]: c["title"] for c in clips}
    if not flags.all_titles:  # as in LPR4M
        titles = {image_id: title for image_id, title in titles.items() if int(image_id[0], 16) % 2 == 0}
    _write_json(out / f"test_videoid_to_gtimage_{len(truth)}.json", truth)
    _write_json(out / f"test_liveid_to_gallery_{len(galleries)}.json", galleries)
    _write_json(out / f"test_frameid2gtbox_{len(truth)}_{len(boxes)}.json", boxes)
    _write_lines(out / f"test_videoid_asr_{len(truth)}.txt", [(c["clip_id"], c["asr"]) for c in clips])
    _write_lines(out / f"test_image_title_{len(titles)}.txt", titles.items())
    if flags.categories:
        rows = [(i, p.category) for live in lives for i, p in zip(live.image_ids, live.products, strict=True)]
        _write_lines(out / "test_image_category.txt", rows)


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=0) + "\n", encoding="utf-8")


def _write_lines(path, pairs):
    path.write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")


def clip_types(boxes: Sequence[Sequence[Sequence[int]]]) -> tuple[str, str, str]:
    """Derives a clip's scale, duration and number type from its boxes.

    Args:
        boxes: for each frame a list of [x1, y1, x2, y2] in pixels, the intended product's first; empty if it is out of
            view.

    Returns:
        ("small" | "medium" | "large", "short" | "medium" | "long", "few" | "medium" | "abundant").

    Source: docs/reference.md, section 8.
    """
    seen = [frame for frame in boxes if frame]
    areas = [(x2 - x1) * (y2 - y1) / (plan.WIDTH * plan.HEIGHT) for (x1, y1, x2, y2), *_ in seen]
    scale, duration, number = np.mean(areas), len(seen) / len(boxes), np.mean([len(frame) for frame in seen])
    return (
        "small" if scale <= 0.2 else "medium" if scale <= 0.4 else "large",
        "short" if duration <= 0.4 else "medium" if duration <= 0.7 else "long",
        "few" if number <= 3 else "medium" if number <= 7 else "abundant",
    )


if __name__ == "__main__":
    main()

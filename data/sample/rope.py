"""Simulates product pages, short videos and live clips of a shop's products, in the raw layout of ROPE.

    python data/sample/rope.py --products data/sample --out RAW

README.md beside this file describes the product directory and the output. A program that was stopped continues if it is
started again with the same flags.
"""

import argparse
import csv
import functools
import json
import pathlib
import shutil
import sys

import numpy as np
import tqdm

if not __package__:  # Run as a script, whose relative imports need a package: PEP 366.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    __package__ = "data.sample"

from ..atomic import replacing
from ..errors import WorkerError
from ..processes import in_workers
from . import plan, scene, shop, shots, simulate, speech

DOMAINS = {  # {folder: its files of pairs, texts, and pictures, without the split's prefix}
    "pages": ("product_pages_pair", "page_titles", "page_images"),
    "videos": ("product_videos_pair", "video_asrs", "video_frames"),
    "lives": ("product_lives_pair", "live_asrs", "live_clips"),
}
SPLITS = {"train": "training", "test": "test"}
LACKING = 0.15  # share of the products that have no item in one of the domains
UNTITLED = 0.05  # share of the pages without a title
LIVE_FRAMES = (5, 12)  # of a live clip, at least and at most
FRAME_NUMBERS = 24  # between two frames of a short video, which are a second apart
UNFINISHED = "unfinished"  # holds what is known of finished items until all are


def main(argv: list[str] | None = None) -> None:
    """Parses the flags, draws every item that is missing and finally writes the text files."""
    flags = _parse(argv)
    try:
        simulate_rope(flags)
    except (ValueError, WorkerError) as error:
        raise SystemExit(f"error: {error}") from None


def simulate_rope(flags: argparse.Namespace) -> None:
    """Writes a raw data directory.

    Args:
        flags: the parsed flags.

    Raises:
        ValueError: a flag or a file in the product directory is wrong, or --out is neither empty nor an unfinished
            directory of the same flags.
    """
    out = pathlib.Path(flags.out)
    products, backgrounds, *splits = shop.load(flags)
    _begin(out, flags)
    numbers = {product.product_id: number for number, product in enumerate(products, start=1)}
    tasks = [
        task
        for split, lives, per_product in zip(SPLITS, splits, (flags.train_items, flags.test_items), strict=True)
        for task in plan_items(lives, split, per_product, flags.seed)
    ]
    drawn = in_workers(functools.partial(_draw, flags, backgrounds, out), tasks, flags.workers, chunksize=4)
    items = list(tqdm.tqdm(drawn, total=len(tasks), unit="item", desc="drawing"))
    for split, prefix in SPLITS.items():
        for domain, names in DOMAINS.items():
            chosen = [item for item in items if (item["split"], item["domain"]) == (split, domain)]
            _write(out, prefix, names, chosen, numbers)
    _write_attribution(out, [product for lives in splits for live in lives for product in live.products], numbers)
    shutil.rmtree(out / UNFINISHED)


def plan_items(lives: list[shop.Live], split: str, per_product: int, seed: int) -> list[dict]:
    """Plans the items of a split's products, in all domains.

    Args:
        lives: the livestreams, each a shop with its products.
        split: "train" or "test".
        per_product: mean number of a product's items in each domain; a product has between half and three halves.
        seed: of the simulation.

    Returns:
        A task for each item. Items of a domain are numbered in random order, since one-shot classification takes the
        lowest number of each product.
    """
    code = list(SPLITS).index(split)
    rng = np.random.default_rng([seed, 6, code])  # 1 to 5 are those of simulate.py, shop.py and film.py
    tasks: list[dict] = []
    for live in lives:
        others = [product.product_id for other in lives if other is not live for product in other.products]
        for place, product in enumerate(live.products):
            lacks = list(DOMAINS)[int(rng.integers(len(DOMAINS)))] if rng.random() < LACKING else None
            for domain in DOMAINS:
                count = int(rng.integers((per_product + 1) // 2, per_product + per_product // 2 + 1))
                tasks += [
                    {
                        "split": split,
                        "domain": domain,
                        "product": product,
                        "shop": [other for i, other in enumerate(live.products) if i != place],
                        "elsewhere": [others[i] for i in rng.permutation(len(others))[:8]],
                        "language": live.language,
                    }
                    for _ in range(count if domain != lacks else 0)
                ]
    for domain_code, domain in enumerate(DOMAINS):
        own = [task for task in tasks if task["domain"] == domain]
        for task, number in zip(own, rng.permutation(len(own)), strict=True):
            task["item"] = int(number) + 1
            task["seed"] = [seed, 7, code, domain_code, task["item"]]
    return tasks


def _begin(out, flags):
    """Makes the directory, or finds that an earlier run with the same flags has begun it."""
    state = {name: value for name, value in vars(flags).items() if name not in ("out", "workers")}
    path = out / UNFINISHED / "flags.json"
    if path.exists():
        if json.loads(path.read_text()) != state:
            raise ValueError(f"{path}: found other flags than now, expected the same; remove {out} or give it these")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"--out={out} is not empty: remove it or choose another directory")
    else:
        path.parent.mkdir(parents=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")
    for folder in DOMAINS:
        (out / folder).mkdir(exist_ok=True)


def _draw(flags, backgrounds, out, task):
    """Draws an item, writes its pictures, and returns what the text files say of it; a finished item is only read."""
    split, domain, product, item = task["split"], task["domain"], task["product"], task["item"]
    done = out / UNFINISHED / f"{split}-{domain}-{item}.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    rng, words = (np.random.default_rng([*task["seed"], stream]) for stream in (0, 1))
    nearby = [other.product_id for other in task["shop"]]
    name = product.name.lower()
    if domain == "pages":
        pictures = shots.page(product.product_id, name, backgrounds, flags.products, rng)
        text = speech.title(product, task["language"], int(words.integers(2**32)))
        text, times = "" if words.random() < UNTITLED else text, None
    elif domain == "videos":
        pictures = shots.short_video(product.product_id, name, nearby, backgrounds, flags.products, rng)
        text = speech.asr(product, [], task["language"], words)
        times = [int(FRAME_NUMBERS * second) for second in range(len(pictures))]
    else:
        settings = plan.Settings(*LIVE_FRAMES, max_distractors=flags.distractors, clutter=flags.clutter)
        pictures = scene.render(
            product.product_id, nearby, task["elsewhere"], backgrounds, flags.products, settings, 1, rng
        ).frames
        text = speech.asr(product, task["shop"], task["language"], words)
        start = simulate.FIRST_START_MS + 60_000 * item
        times = [start + 1000 * second for second in range(len(pictures))]
    names = [f"{shop.new_uuid(words)}.jpg" for _ in pictures]
    for picture, content in zip(names, pictures, strict=True):
        (out / domain / picture).write_bytes(content)
    found = {
        "split": split,
        "domain": domain,
        "product": product.product_id,
        "item": item,
        "text": "" if text == "null" else text,
        "pictures": names,
        "times": times,
    }
    with replacing(done) as temporary:
        temporary.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return found


def _write(out, prefix, names, items, numbers):
    """Writes the three files of a domain; an item without text has no line in the second."""
    pairs, texts, pictures = [], [], []
    for item in sorted(items, key=lambda item: item["item"]):
        pairs.append(f"{numbers[item['product']]}, {item['item']}")
        if item["text"]:
            texts.append(f"{item['item']}, {item['text']}")
        for place, picture in enumerate(item["pictures"]):
            number = "" if item["times"] is None else f"{item['times'][place]}, "
            pictures.append(f"{item['item']}, {number}{picture}")
    for name, lines in zip(names, (pairs, texts, pictures), strict=True):
        (out / f"{prefix}_{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_attribution(out, products, numbers):
    """Writes whose work each product's pictures are."""
    with (out / "attribution.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [{"product": numbers[product.product_id], **product.row} for product in products]
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["product"]))


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    shop.add_flags(parser)
    add("--out", required=True, help="directory to write; must be new, empty, or unfinished")
    add("--train_items", type=int, default=4, help="mean number of a training product's items in a domain (default 4)")
    add("--test_items", type=int, default=20, help="the same of a test product (default 20)")
    add("--distractors", type=int, default=8, help="maximum number of other products in a live clip (default 8)")
    add("--clutter", type=float, default=1.0, help="of live clips, as in simulate.py, 0 to 1 (default 1)")
    add("--workers", type=int, default=simulate.count_cores(), help="number of processes (default: all cores)")
    flags = parser.parse_args(argv)
    for name in ("train_items", "test_items", "workers"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name}={getattr(flags, name)}: expected at least 1")
    simulate.check_common(parser, flags)
    return flags


if __name__ == "__main__":
    main()

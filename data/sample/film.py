"""Films whole livestreams: videos that show products of a shop one after another, with gaps between them.

    python data/sample/film.py --products data/sample --out FILMS

README.md beside this file describes the output.
"""

import argparse
import csv
import dataclasses
import fractions
import functools
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence

import av
import numpy as np
import tqdm

if not __package__:  # Run as a script, whose relative imports need a package: PEP 366.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    __package__ = "data.sample"

from ..errors import WorkerError
from ..processes import in_workers
from . import plan, scene, shop, shots, simulate, speech
from .phrases import Language

GAPS = (  # what a gap shows, and its probability
    ("empty", 0.35),
    ("around", 0.25),
    ("other", 0.4),
)
GAP_AFTER = 0.75  # probability that a gap, not the next product, follows a product
PUT_AWAY = 0.4  # probability that a product is out of view for a while


@dataclasses.dataclass(frozen=True)
class Shop:
    """A shop with its products, other shops' products, and what its host speaks."""

    name: str
    products: tuple[shop.Product, ...]
    others: list[shop.Product]
    language: Language


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a video: a product of the shop, or, if `product` is None, a gap of one of the kinds in GAPS."""

    seconds: int
    product: str | None
    gap: str | None
    presented: str | None  # what the host shows: the product; in a gap, another shop's product or nothing
    distractors: tuple[str, ...]  # ids of the other products in view


def main(argv: list[str] | None = None) -> None:
    """Parses the flags, films every video and finally writes truth.jsonl."""
    flags = _parse(argv)
    try:
        film(flags)
    except (ValueError, WorkerError) as error:
        raise SystemExit(f"error: {error}") from None


def film(flags: argparse.Namespace) -> None:
    """Writes the videos, the shops' pictures and the truth.

    Args:
        flags: the parsed flags.

    Raises:
        ValueError: a flag or a file in the product directory is wrong, or --out is not empty.
    """
    out = pathlib.Path(flags.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out={out} is not empty: remove it or choose another directory")
    _, backgrounds, train, test = shop.load(flags)
    shops = open_shops(train if flags.split == "train" else test, flags)
    (out / "videos").mkdir(parents=True)
    _write_shops(shops[: flags.videos], backgrounds, flags, out)
    tasks = [(number, shops[number % len(shops)]) for number in range(flags.videos)]
    filmed = in_workers(functools.partial(_film_one, flags, backgrounds, out), tasks, flags.workers)
    videos = list(tqdm.tqdm(filmed, total=len(tasks), unit="video", desc="filming"))
    with (out / "truth.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(video) + "\n" for video in videos)


def open_shops(lives: Sequence[shop.Live], flags: argparse.Namespace) -> list[Shop]:
    """Makes a shop of each livestream in a split, with the first --shop_products of its products.

    Args:
        lives: the livestreams.
        flags: the parsed flags.

    Raises:
        ValueError: a shop has too few products for a video, or no other shop has products for the gaps.
    """
    shops = []
    for number, live in enumerate(lives, 1):
        own = live.products[: flags.shop_products]
        if len(own) < flags.products_per_video:
            raise ValueError(
                f"--products_per_video={flags.products_per_video}: found {len(own)} products in a shop, expected at "
                f"least as many as a video shows; choose at most {len(own)}"
            )
        others = [p for other in lives for p in other.products if other is not live or p not in own]
        if not others:
            raise ValueError(
                f"--lives=1: found no products of another shop, expected some for the gaps; choose more --lives, or "
                f"--shop_products below {len(own)}"
            )
        shops.append(Shop(f"{flags.split}-{number}", own, others, live.language))
    return shops


def plan_video(store: Shop, flags: argparse.Namespace, rng: np.random.Generator) -> list[Segment]:
    """Draws the plan of a video: its products, their times, the products around them, and the gaps.

    Args:
        store: the shop.
        flags: the parsed flags.
        rng: the only source of randomness.

    Returns:
        The segments. The first and the last are gaps, and no gap shows a product of the shop.
    """
    settings = _settings(flags)
    shop_ids, other_ids = [[p.product_id for p in products] for products in (store.products, store.others)]
    shown = [shop_ids[i] for i in rng.permutation(len(shop_ids))[: flags.products_per_video]]
    segments = [_plan_gap(other_ids, flags, rng)]
    for product in shown:
        rest = [p for p in shop_ids if p != product]
        distractors = plan.choose_distractors(rest, other_ids, settings, rng)
        seconds = _draw_seconds(flags.shown_seconds, rng)
        segments.append(Segment(seconds, product, None, product, tuple(distractors)))
        if product == shown[-1] or rng.random() < GAP_AFTER:
            segments.append(_plan_gap(other_ids, flags, rng))
    return segments


def _plan_gap(other_ids, flags, rng):
    kind = GAPS[int(rng.choice(len(GAPS), p=[p for _, p in GAPS]))][0]
    seconds = _draw_seconds(flags.gap_seconds, rng)
    order = [other_ids[i] for i in rng.permutation(len(other_ids))]
    presented = order[0] if kind == "other" else None
    around = [] if kind == "empty" else plan.choose_distractors(order[1:], [], _settings(flags), rng)
    if kind == "around" and not around:
        around = order[1:2]
    return Segment(seconds, None, kind, presented, tuple(around))


def _draw_seconds(limits, rng):
    return int(rng.integers(limits[0], limits[1] + 1))


def _settings(flags):
    return plan.Settings(1, 1, max_distractors=flags.distractors, clutter=flags.clutter)


def _film_one(flags, backgrounds, out, task):
    """Films one video and returns its line of truth.jsonl."""
    number, store = task
    rng = np.random.default_rng([flags.seed, 4, number])  # 1 to 3 are those of simulate.py and shop.py
    settings = _settings(flags)
    segments = plan_video(store, flags, rng)
    total = sum(s.seconds for s in segments)
    on = scene.draw_set(backgrounds, settings, total, rng)
    name, start, lines = f"videos/{store.name}-{number:03d}.mp4", 0, []
    with _Mp4(out / name, flags.frame_rate, quality=int(rng.integers(23, 33))) as video:
        for segment in segments:
            shown = _shown(segment, rng)
            views = scene.load_views(str(flags.products), segment.presented) if segment.presented else [None]
            path = plan.plan_intended(len(views), segment.seconds, 1, rng, shown)
            seen = 0
            for picture, in_view in scene.act(
                segment.presented, path, list(segment.distractors), on, start, flags.products, settings, rng
            ):
                video.write(picture)
                seen += in_view
            line = {"start": start, "end": start + segment.seconds, "product": segment.product}
            lines.append(line | ({"gap": segment.gap} if segment.gap else {"seen": seen}))
            start += segment.seconds
    spoken = _speech(store, segments, np.random.default_rng([flags.seed, 5, number]))
    (out / name).with_suffix(".srt").write_text(speech.subtitles(spoken), encoding="utf-8")
    return {"video": name, "gallery": store.name, "seconds": total, "segments": lines}


def _speech(store, segments, rng):
    """Draws what the host says in the video: up to two seconds before or after what it is about."""
    products = {p.product_id: p for p in (*store.products, *store.others)}
    spoken, start, silent = [], 0, 0.0
    for segment in segments:
        presented = products.get(segment.presented)
        others = [p for p in store.products if p is not presented]
        shift = start + rng.uniform(-2, 2)
        for said in speech.sentences(segment.seconds, presented, others, store.language, rng):
            begin, end = max(shift + said.start, silent), shift + said.end
            if end > begin:
                spoken.append(speech.Sentence(begin, end, said.text))
                silent = end
        start += segment.seconds
    return spoken


def _shown(segment, rng):
    """Draws the seconds in which the presented product is in view: all, or all but one run in which it is put away."""
    shown = np.full(segment.seconds, segment.presented is not None)
    if segment.seconds >= 6 and rng.random() < PUT_AWAY:
        length = int(rng.integers(1, 1 + max(1, round(0.3 * segment.seconds))))
        start = int(rng.integers(1, segment.seconds - length))
        shown[start : start + length] = False
    return shown


class _Mp4:
    """A video file that is written one picture per second."""

    def __init__(self, path, frame_rate, quality):
        self.path, self.frame_rate, self.quality = path, frame_rate, quality

    def __enter__(self):
        self.file = av.open(str(self.path), "w")
        options = {"crf": str(self.quality), "preset": "veryfast", "threads": "1", "g": str(10 * self.frame_rate)}
        self.stream = self.file.add_stream("libx264", rate=self.frame_rate, options=options)
        self.stream.width, self.stream.height, self.stream.pix_fmt = plan.WIDTH, plan.HEIGHT, "yuv420p"
        self.stream.codec_context.time_base = fractions.Fraction(1, self.frame_rate)
        self.count = 0
        return self

    def write(self, picture):
        """Appends a second that shows the picture."""
        frame = av.VideoFrame.from_image(picture)
        for _ in range(self.frame_rate):
            frame.pts = self.count
            self.count += 1
            self.file.mux(self.stream.encode(frame))

    def __exit__(self, *_):
        self.file.mux(self.stream.encode(None))
        self.file.close()


def _write_shops(shops, backgrounds, flags, out):
    """Writes the shops' pictures, their titles to shop.csv, and their creators to attribution.csv."""
    with (
        (out / "shop.csv").open("w", newline="", encoding="utf-8") as titles,
        (out / "attribution.csv").open("w", newline="", encoding="utf-8") as attribution,
    ):
        titles = csv.DictWriter(titles, ["id", "path", "gallery", "title"], lineterminator="\n")
        titles.writeheader()
        attribution = csv.DictWriter(attribution, list(shops[0].products[0].row), lineterminator="\n")
        attribution.writeheader()
        for number, store in enumerate(shops):
            rng = np.random.default_rng([flags.seed, 6, number])
            for product in store.products:
                name = product.product_id
                title = speech.title(product, store.language, flags.seed)
                for path in _write_pictures(f"shop/{store.name}/{name}", name, backgrounds, flags, out, rng):
                    titles.writerow({"id": name, "path": path, "gallery": store.name, "title": title})
                attribution.writerow(product.row)


def _write_pictures(stem, name, backgrounds, flags, out, rng):
    """Writes the pictures of a product, the catalog's first, and returns their paths, relative to the output."""
    least, most = flags.pictures
    further = shots.further(name, int(rng.integers(least, most + 1)) - 1, backgrounds, flags.products, rng)
    paths = [f"{stem}.jpg", *(f"{stem}/{number}.jpg" for number in range(2, 2 + len(further)))]
    for path in paths:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shop.image_path(flags.products, name), out / paths[0])
    for path, picture in zip(paths[1:], further, strict=True):
        (out / path).write_bytes(picture)
    return paths


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, limits = parser.add_argument, ("MIN", "MAX")
    shop.add_flags(parser)
    add("--out", required=True, help="directory to write; must be new or empty")
    add("--videos", type=int, default=20, help="number of videos, which take turns among the shops (default 20)")
    add("--products_per_video", type=int, default=8, help="number of different products in a video (default 8)")
    add("--shop_products", type=int, help="number of products in a shop (default: its livestream's whole gallery)")
    add(
        "--pictures",
        type=int,
        nargs=2,
        default=(1, 1),
        metavar=limits,
        help="number of pictures of a product: the catalog's, and others as on a product's page (default 1 1)",
    )
    add("--split", choices=("train", "test"), default="test", help="split of the shops' products (default test)")
    add(
        "--shown_seconds",
        type=int,
        nargs=2,
        default=(8, 40),
        metavar=("MIN", "MAX"),
        help="how long a product is shown (default 8 40)",
    )
    add("--gap_seconds", type=int, nargs=2, default=(5, 20), metavar=limits, help="how long a gap lasts (default 5 20)")
    add("--distractors", type=int, default=8, help="maximum number of other products in view (default 8)")
    add(
        "--clutter",
        type=float,
        default=1.0,
        help="amount of blur, hands, banners and color casts, 0 to 1 (default 1)",
    )
    add(
        "--frame_rate",
        type=int,
        default=4,
        help="frames per second, all showing one picture (default 4)",
    )
    add("--workers", type=int, default=simulate.count_cores(), help="number of processes (default: all cores)")
    flags = parser.parse_args(argv)
    for name in ("videos", "products_per_video", "shop_products", "frame_rate", "workers"):
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            parser.error(f"--{name}={getattr(flags, name)}: expected at least 1")
    for name in ("shown_seconds", "gap_seconds", "pictures"):
        least, most = getattr(flags, name)
        if not 1 <= least <= most:
            parser.error(f"--{name} {least} {most}: expected a minimum of at least 1 and no larger than the maximum")
    simulate.check_common(parser, flags)
    return flags


if __name__ == "__main__":
    main()

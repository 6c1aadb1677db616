"""Makes more products from a shop's training products: other colors, other proportions, sets of two.

    python data/sample/variants.py --products data/sample --out VARIANTS

The output is a product directory like the input (README.md beside this file), for `simulate.py --products`. An encoder
that is trained on few products memorizes them; with more products it has to learn more. The test products of the split
are left out, so that the output is safe to train on.
"""

import argparse
import csv
import functools
import pathlib
import shutil
import sys
from collections.abc import Sequence

import numpy as np
import tqdm
from PIL import Image, ImageChops

if not __package__:  # Run as a script, whose relative imports need a package: PEP 366.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    __package__ = "data.sample"

from ..errors import WorkerError
from ..processes import in_workers
from . import shop, simulate
from .scene import load_views

SIDE = 160  # side of a picture and of a view in pixels, as in the products of this directory
QUALITY = 92
SETS = 0.3  # share of variants that show two products side by side


def main(argv: list[str] | None = None) -> None:
    """Writes the training products and their variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    shop.add_flags(parser)
    add("--out", required=True, help="directory to write; must be new or empty")
    add("--variants", type=int, default=5, help="number of variants per product (default 5)")
    add("--workers", type=int, default=simulate.count_cores(), help="number of processes (default: all cores)")
    flags = parser.parse_args(argv)
    for name in ("variants", "workers"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name}={getattr(flags, name)}: expected at least 1")
    shop.check_flags(parser, flags)
    try:
        make_variants(flags)
    except (ValueError, WorkerError) as error:
        raise SystemExit(f"error: {error}") from None


def make_variants(flags: argparse.Namespace) -> None:
    """Writes a product directory.

    Args:
        flags: the parsed flags.

    Raises:
        ValueError: the product directory is wrong, or --out is not empty.
    """
    source, out = pathlib.Path(flags.products), pathlib.Path(flags.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out={out} is not empty: remove it or choose another directory")
    _, backgrounds, lives, _ = shop.load(flags)
    products = sorted((p for live in lives for p in live.products), key=lambda p: p.product_id)
    for folder in ("images", "views", "backgrounds"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for path in backgrounds:
        shutil.copyfile(path, out / "backgrounds" / path.name)
    write = functools.partial(_write, source, out, products, flags)
    with (out / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*products[0].row, "made_from"], lineterminator="\n")
        writer.writeheader()
        written = in_workers(write, range(len(products)), flags.workers, chunksize=4)
        for rows in tqdm.tqdm(written, total=len(products), unit="product"):
            writer.writerows(rows)


def _write(source, out, products, flags, number):
    """Writes the pictures of a product and its variants, and returns their rows."""
    product = products[number]
    for path_of in (shop.image_path, shop.views_path):
        shutil.copyfile(path_of(source, product.product_id), path_of(out, product.product_id))
    rows = [{**product.row, "made_from": ""}]
    for variant in range(flags.variants):
        rng = np.random.default_rng([flags.seed, number, variant])
        parts = [product.product_id]
        if rng.random() < SETS:
            parts.append(products[int(rng.integers(len(products)))].product_id)
        name = f"{product.product_id}-{variant}"
        image, views = draw_variant(source, parts, rng)
        image.save(shop.image_path(out, name), quality=QUALITY)
        views.save(shop.views_path(out, name), quality=QUALITY)
        rows.append({**product.row, "product_id": name, "made_from": " ".join(parts)})
    return rows


def draw_variant(
    directory: pathlib.Path, product_ids: Sequence[str], rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """Draws a product like the given ones, in other colors and proportions.

    Args:
        directory: the product directory.
        product_ids: one product, or two that are shown side by side.
        rng: the only source of randomness.

    Returns:
        (the shop's picture, RGB, SIDE x SIDE; the views, RGBA, side by side).
    """
    images, strips = [], []
    for product_id in product_ids:
        colors, stretch = _colors(rng), float(np.exp(rng.uniform(-0.3, 0.3)))
        picture = Image.open(shop.image_path(directory, product_id)).convert("RGB")
        images.append(_stretched(colors(_trimmed(picture)), stretch))
        strips.append([_stretched(colors(view), stretch) for view in load_views(str(directory), product_id)])
    share = rng.uniform(0.35, 0.65)  # the first product's share of the width
    image = Image.new("RGB", (SIDE, SIDE), "white")
    _place(image, images, share)
    count = min(len(strip) for strip in strips)
    views = Image.new("RGBA", (SIDE * count, SIDE))
    for i in range(count):
        view = Image.new("RGBA", (SIDE, SIDE))
        _place(view, [strip[i] for strip in strips], share)
        views.paste(view, (SIDE * i, 0))
    return image, views


def _colors(rng):
    """Draws a change of hue, saturation, brightness and channels that preserves white, as a function of a picture."""
    turn = rng.uniform(-np.pi, np.pi) if rng.random() < 0.6 else rng.uniform(-0.3, 0.3)
    saturation, gamma = rng.uniform(0.6, 1.4), np.exp(rng.uniform(-0.5, 0.5, 3) * 0.4 + rng.uniform(-0.4, 0.4))
    gray = np.full((3, 3), 1 / 3)
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    matrix = gray + saturation * (np.cos(turn) * (np.eye(3) - gray) + np.sin(turn) * axis)

    def change(picture):
        rgb = np.asarray(picture.convert("RGB"), np.float32) / 255
        rgb = np.clip(rgb @ matrix.T.astype(np.float32), 0, 1) ** gamma.astype(np.float32)
        changed = Image.fromarray(np.rint(rgb * 255).astype(np.uint8))
        if picture.mode == "RGBA":
            changed.putalpha(picture.getchannel("A"))
        return changed

    return change


def _trimmed(picture):
    """Returns a picture without its white border."""
    box = (
        ImageChops.difference(picture, Image.new("RGB", picture.size, "white"))
        .convert("L")
        .point(lambda difference: 255 * (difference > 8))
        .getbbox()
    )
    return picture.crop(box) if box else picture


def _stretched(picture, stretch):
    return picture.resize((max(1, round(picture.width * stretch)), picture.height), Image.Resampling.BICUBIC)


def _place(canvas, pictures, share):
    """Pastes one picture into the center of a square canvas, or two side by side with aligned bottoms."""
    widths = [SIDE] if len(pictures) == 1 else [share * SIDE, (1 - share) * SIDE]
    fitted = []
    for picture, width in zip(pictures, widths, strict=True):
        scale = min(width / picture.width, SIDE / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        fitted.append(picture.resize(size, Image.Resampling.BICUBIC))
    height = max(picture.height for picture in fitted)
    x = (SIDE - sum(picture.width for picture in fitted)) // 2
    for picture in fitted:
        canvas.paste(picture, (x, (SIDE + height) // 2 - picture.height))
        x += picture.width


if __name__ == "__main__":
    main()

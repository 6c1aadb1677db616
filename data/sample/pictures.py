"""Makes pairs of plain pictures of the same product: training data for an encoder that learns from a larger one.

    python data/sample/pictures.py --products VARIANTS --out RAW

The input is a directory of products (README.md beside this file), for example the output of `variants.py`; all its
products count as training products. The output has the raw layout of LPR4M: each training row is an image of its own
and a clip of one frame, two pictures of a product from different sides. Their ids name no product twice, so that a
teacher can embed every picture by its id. There are no test files. If the output is a raw directory with training rows,
as `simulate.py` writes it, the pairs are added to it as a further part.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import tqdm
from PIL import Image

if not __package__:  # Run as a script, whose relative imports need a package: PEP 366.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    __package__ = "data.sample"

from ..atomic import replacing
from . import props, shop
from .scene import load_views

SIDE = 160  # of a picture, pixels, as in the products of this directory
QUALITY = 90
SHOP_PICTURES = 0.25  # share of the images that are the shop's picture; the others show a view
WHITE = 0.3  # share of the other images that are on white
START_MS = 1_667_916_122_888
PART = "training_videoinfo_full_part_{}.txt"


def main(argv: list[str] | None = None) -> None:
    """Writes the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--products", required=True, help="directory with products.csv, images/, views/ and backgrounds/")
    add("--out", required=True, help="directory to write, or a raw directory to add to")
    add("--pairs", type=int, default=8, help="number of pairs of each product (default 8)")
    add("--seed", type=int, default=0, help="equal seeds give equal pictures (default 0)")
    flags = parser.parse_args(argv)
    try:
        make_pairs(flags)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def make_pairs(flags: argparse.Namespace) -> None:
    """Writes a raw data directory with training rows only.

    Args:
        flags: the parsed flags.

    Raises:
        ValueError: the product directory is wrong, or --out has other content or these pairs already.
    """
    out = pathlib.Path(flags.out)
    parts = sorted(out.glob(PART.format("*")))
    if not parts and out.exists() and any(out.iterdir()):
        raise ValueError(f"--out={out} is not empty and has no training rows: remove it or choose another directory")
    if flags.pairs < 1:
        raise ValueError(f"--pairs={flags.pairs}: expected at least 1")
    products = shop.read_products(flags.products)
    backgrounds = shop.read_backgrounds(flags.products)
    categories = sorted({product.category for product in products})
    live = shop.new_uuid(np.random.default_rng([flags.seed, 0]))
    if any(line.startswith(f"{live}-") for part in parts for line in part.read_text(encoding="utf-8").splitlines()):
        raise ValueError(f"--out={out} has pairs of --seed={flags.seed} already: choose another seed or directory")
    (out / "images").mkdir(parents=True, exist_ok=True)
    with replacing(out / PART.format(f"{len(parts):02d}")) as part, part.open("w", encoding="utf-8") as rows:
        for number, product in enumerate(tqdm.tqdm(products, unit="product")):
            rng = np.random.default_rng([flags.seed, 1, number])
            shown = Image.open(shop.image_path(flags.products, product.product_id)).convert("RGB")
            views = load_views(str(flags.products), product.product_id)
            for pair in range(flags.pairs):
                image_id = shop.new_uuid(rng)
                start = START_MS + 1000 * (number * flags.pairs + pair)
                clip_id = f"{live}-{start}-{start + 1000}"
                first, second = rng.choice(len(views), 2, replace=len(views) < 2)
                if rng.random() < SHOP_PICTURES:
                    image = shown.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                else:
                    image = draw(views[first], None if rng.random() < WHITE else backgrounds, rng)
                image.save(out / "images" / f"{image_id}.jpg", quality=QUALITY)
                frame = out / "frames" / clip_id / f"{clip_id}-0000.jpg"
                frame.parent.mkdir(parents=True, exist_ok=True)  # a run that was stopped has drawn it
                draw(views[second], backgrounds, rng).save(frame, quality=QUALITY)
                category = categories.index(product.category) + 1001
                whole = [[0, 0, SIDE, SIDE]]
                texts = [product.name, str(category), product.category, "null", "large", "long", "few"]
                columns = [clip_id, json.dumps([frame.stem]), json.dumps(whole), image_id, *texts]
                rows.write("\t".join(columns) + "\n")


def draw(view: Image.Image, backgrounds: list[pathlib.Path] | None, rng: np.random.Generator) -> Image.Image:
    """Draws a product.

    Args:
        view: RGBA, cropped to the product.
        backgrounds: photographs, a part of which is behind the product; None = white.
        rng: the only source of randomness.

    Returns:
        RGB, SIDE x SIDE.
    """
    if backgrounds is None:
        picture = Image.new("RGB", (SIDE, SIDE), "white")
    else:
        picture, _ = props.background(backgrounds, SIDE, SIDE, rng)
    scale = rng.uniform(0.45, 0.95) * SIDE / max(view.size)
    size = max(1, round(view.width * scale)), max(1, round(view.height * scale))
    sprite = props.lit(view.resize(size, Image.Resampling.LANCZOS), rng.uniform(0.8, 1.1))
    place = int(rng.integers(SIDE - size[0] + 1)), int(rng.integers(SIDE - size[1] + 1))
    picture.paste(sprite, place, sprite)
    return picture


if __name__ == "__main__":
    main()

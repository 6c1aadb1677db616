"""Reads a directory of products and arranges them into livestreams.

The directory's format is described in README.md beside this file.
"""

import csv
import dataclasses
import pathlib
import uuid

import numpy as np
from PIL import Image

REQUIRED_COLUMNS = ("product_id", "name", "category")
GALLERY_MIN, GALLERY_MAX, GALLERY_USUAL = 20, 40, 30


@dataclasses.dataclass(frozen=True)
class Product:
    """One line of products.csv; `row` keeps every column, for the attribution."""

    product_id: str
    name: str
    category: str
    row: dict


@dataclasses.dataclass(frozen=True)
class Live:
    """One livestream: its id, its products in gallery order and their image ids."""

    live_id: str
    products: tuple
    image_ids: tuple


def read_products(directory):
    """Reads products.csv and checks that every product has its pictures.

    Args:
      directory: path of a directory in the format of README.md.

    Returns:
      list of Product, in the order of the file.

    Raises:
      ValueError: the file, a column, a value or a picture is missing; the message names file and line.
    """
    directory = pathlib.Path(directory)
    path = directory / "products.csv"
    if not path.is_file():
        raise ValueError(f"{path}: not found; expected a CSV file with the columns {', '.join(REQUIRED_COLUMNS)}")
    products, seen = [], {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = [c for c in REQUIRED_COLUMNS if c not in columns]
        if missing:
            raise ValueError(
                f"{path}:1: found the columns {columns}, expected at least {list(REQUIRED_COLUMNS)}; "
                f"add {', '.join(missing)} to the first line"
            )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(columns)} fields; quote a field that holds a comma")
            empty = [c for c in REQUIRED_COLUMNS if not row[c].strip()]
            if empty:
                raise ValueError(f"{where}: {', '.join(empty)} is empty; every product needs one")
            product_id = row["product_id"]
            if product_id in seen:
                raise ValueError(f"{where}: product_id {product_id} is also on line {seen[product_id]}; make it unique")
            seen[product_id] = reader.line_num
            image, views = image_path(directory, product_id), views_path(directory, product_id)
            for picture in (image, views):
                if not picture.is_file():
                    raise ValueError(
                        f"{where}: product {product_id} has no {picture}; add the picture or drop the line"
                    )
            _check_views(views)
            products.append(Product(product_id, row["name"].strip(), row["category"].strip(), row))
    return products


def _check_views(path):
    """Raises ValueError unless the file starts like a strip of square RGBA views."""
    try:
        with Image.open(path) as strip:
            mode, (width, height) = strip.mode, strip.size
    except OSError as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None
    if mode != "RGBA" or width % height:
        raise ValueError(f"{path}: found {width}x{height} {mode}, expected square RGBA views side by side")


def read_backgrounds(directory):
    """Lists the background photographs of a directory of products, sorted by name.

    Raises:
      ValueError: there is none.
    """
    paths = sorted((pathlib.Path(directory) / "backgrounds").glob("*.jpg"))
    if not paths:
        raise ValueError(f"{directory}/backgrounds: no *.jpg found; at least one photograph is needed")
    return paths


def image_path(directory, product_id):
    return pathlib.Path(directory) / "images" / f"{product_id}.jpg"


def views_path(directory, product_id):
    return pathlib.Path(directory) / "views" / f"{product_id}.webp"


def arrange(products, *, train_products, test_products, lives, split_seed, seed):
    """Splits products into disjoint training and test livestreams, each a mix of few categories.

    Args:
      products: list of Product.
      train_products: number of products for training; None = all that are left.
      test_products: number of test products, the sum over the test galleries.
      lives: number of test livestreams; None = galleries of about 30.
      split_seed: int, decides which products are for training and which share a livestream.
      seed: int, decides ids and the order of a gallery.

    Returns:
      (training lives, test lives), lists of Live; a training live has about 30 products.

    Raises:
      ValueError: too few products, or galleries outside of 20-40 images.
    """
    if train_products is None:
        train_products = max(0, len(products) - test_products)
    if train_products < 1:
        raise ValueError(f"--train_products={train_products}: expected at least 1 ({len(products)} products in all)")
    if train_products + test_products > len(products):
        raise ValueError(
            f"--train_products={train_products} and --test_products={test_products} need "
            f"{train_products + test_products} products, found {len(products)}: lower one of them"
        )
    lives = lives or max(1, round(test_products / GALLERY_USUAL))
    sizes = [test_products // lives + (i < test_products % lives) for i in range(lives)]
    if min(sizes) < GALLERY_MIN or max(sizes) > GALLERY_MAX:
        raise ValueError(
            f"--test_products={test_products} in --lives={lives} gives galleries of {min(sizes)} to {max(sizes)} "
            f"images, expected {GALLERY_MIN} to {GALLERY_MAX}: choose {GALLERY_MIN * lives} to "
            f"{GALLERY_MAX * lives} test products, or other --lives"
        )
    rng = np.random.default_rng([split_seed, 0])
    pools = _shuffled_pools(products, rng)
    whole = {category: len(pool) for category, pool in pools.items()}
    test = [_draw_live(pools, whole, size, rng) for size in sizes]
    rest = [p for pool in pools.values() for p in pool]
    rest = [rest[i] for i in sorted(rng.permutation(len(rest))[:train_products])]  # still grouped by category
    parts = np.array_split(np.arange(len(rest)), max(1, round(len(rest) / GALLERY_USUAL)))
    train = [[rest[i] for i in part] for part in parts]
    rng = np.random.default_rng([seed, 3])
    return [_live(group, rng) for group in train], [_live(group, rng) for group in test]


def _shuffled_pools(products, rng):
    """Groups products by category; the order of the categories and within them is drawn from rng."""
    names = sorted({p.category for p in products})
    pools = {names[i]: [] for i in rng.permutation(len(names))}
    for i in rng.permutation(len(products)):
        pools[products[i].category].append(products[i])
    return pools


def _draw_live(pools, whole, size, rng):
    """Takes `size` products of two to four categories out of pools.

    A category gives at most half of its products to the test, so that training sees its like; only where that is not
    enough the rest comes from anywhere.
    """
    spare = {c: max(0, len(pool) - (whole[c] + 1) // 2) for c, pool in pools.items()}
    categories = [c for c in spare if spare[c] > 0]
    wanted = int(rng.integers(2, 5))
    taken = []
    if categories:
        weights = np.array([spare[c] for c in categories], float)
        count = min(wanted, len(categories))
        chosen = [categories[i] for i in rng.choice(len(categories), count, replace=False, p=weights / weights.sum())]
        remaining = sorted((c for c in categories if c not in chosen), key=lambda c: -spare[c])
        while sum(spare[c] for c in chosen) < size and remaining:
            chosen.append(remaining.pop(0))
        while len(taken) < size and any(spare[c] for c in chosen):
            for category in chosen:
                if spare[category] and len(taken) < size:
                    taken.append(pools[category].pop())
                    spare[category] -= 1
    for pool in sorted(pools.values(), key=len, reverse=True):
        while len(taken) < size and pool:
            taken.append(pool.pop())
    return taken


def _live(products, rng):
    order = rng.permutation(len(products))
    return Live(
        live_id=new_uuid(rng),
        products=tuple(products[i] for i in order),
        image_ids=tuple(new_uuid(rng) for _ in products),
    )


def new_uuid(rng):
    """Draws a UUID's text from a numpy generator."""
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))

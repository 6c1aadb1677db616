"""Reads a product directory and arranges its products into livestreams.

README.md beside this file describes the format of the directory.
"""

import argparse
import csv
import dataclasses
import pathlib
import uuid
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .phrases import CHINESE, ENGLISH, Language

REQUIRED_COLUMNS = ("product_id", "name", "category")
GALLERY_COLUMN = "gallery"  # the livestream of a product that is not for training
USUAL_GALLERIES = "test"  # beginning of the names of those that are for testing
GALLERY_MIN, GALLERY_MAX, GALLERY_USUAL = 20, 40, 30
USUAL_TEST_PRODUCTS = 60  # if they are drawn


@dataclasses.dataclass(frozen=True)
class Product:
    """One line of products.csv; `row` holds every column, for the attribution."""

    product_id: str
    name: str
    category: str
    row: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Live:
    """A livestream: its id, its products in gallery order, their image ids, and what its host speaks."""

    live_id: str
    products: tuple[Product, ...]
    image_ids: tuple[str, ...]
    language: Language


def read_products(directory: str | pathlib.Path) -> list[Product]:
    """Reads products.csv and checks that every product has its pictures.

    Args:
        directory: path of a product directory.

    Returns:
        The products, in the order of the file.

    Raises:
        ValueError: the file, a column, a value or a picture is missing; the message names file and line.
    """
    directory = pathlib.Path(directory)
    path = directory / "products.csv"
    if not path.is_file():
        raise ValueError(f"{path}: not found; expected a CSV file with the columns {', '.join(REQUIRED_COLUMNS)}")
    products: list[Product] = []
    seen: dict[str, int] = {}
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
                raise ValueError(
                    f"{where}: found another number of fields, expected {len(columns)}; quote fields with commas"
                )
            empty = [c for c in REQUIRED_COLUMNS if not row[c].strip()]
            if empty:
                raise ValueError(f"{where}: found no {', '.join(empty)}, expected one for each product; fill it in")
            product_id = row["product_id"]
            if product_id in seen:
                raise ValueError(
                    f"{where}: found product_id {product_id} of line {seen[product_id]} again, expected unique ids; "
                    "change one of them"
                )
            seen[product_id] = reader.line_num
            image, views = image_path(directory, product_id), views_path(directory, product_id)
            for picture in (image, views):
                if not picture.is_file():
                    raise ValueError(
                        f"{where}: found no {picture}, expected it for product {product_id}; add it or remove the line"
                    )
            _check_views(views)
            products.append(Product(product_id, row["name"].strip(), row["category"].strip(), row))
    return products


def _check_views(path):
    """Raises ValueError unless the file is a strip of square RGBA views, according to its header."""
    try:
        with Image.open(path) as strip:
            mode, (width, height) = strip.mode, strip.size
    except OSError as error:
        raise ValueError(f"{path}: not a readable picture ({error}); replace it") from None
    if mode != "RGBA" or width % height:
        raise ValueError(f"{path}: found {width}x{height} {mode}, expected square RGBA views side by side")


def read_backgrounds(directory: str | pathlib.Path) -> list[pathlib.Path]:
    """Lists the background photographs in a product directory, sorted by name.

    Raises:
        ValueError: there are none.
    """
    paths = sorted((pathlib.Path(directory) / "backgrounds").glob("*.jpg"))
    if not paths:
        raise ValueError(f"{directory}/backgrounds: found no *.jpg, expected at least one photograph; add one")
    return paths


def image_path(directory: str | pathlib.Path, product_id: str) -> pathlib.Path:
    """Returns the path of the shop's picture of a product."""
    return pathlib.Path(directory) / "images" / f"{product_id}.jpg"


def views_path(directory: str | pathlib.Path, product_id: str) -> pathlib.Path:
    """Returns the path of the views of a product."""
    return pathlib.Path(directory) / "views" / f"{product_id}.webp"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `load`."""
    add = parser.add_argument
    add("--products", required=True, help="directory with products.csv, images/, views/ and backgrounds/")
    add("--seed", type=int, default=0, help="equal seeds give equal bytes (default 0)")
    add("--galleries", help="products of galleries whose names begin with this are for testing (default test)")
    add("--test_products", type=int, help="number of test products to draw instead, 20 to 40 per livestream")
    add("--lives", type=int, help="number of test livestreams to draw (default: galleries of about 30 images)")
    add("--split_seed", type=int, help="of the draw (default 0)")
    add("--train_products", type=int, help="number of training products (default: all that are not in a gallery)")


def check_flags(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Ends the program if a flag of `add_flags` is out of range."""
    for name in ("seed", "split_seed"):
        if (getattr(flags, name) or 0) < 0:
            parser.error(f"--{name}={getattr(flags, name)}: expected at least 0")
    if flags.lives is not None and flags.lives < 1:
        parser.error(f"--lives={flags.lives}: expected at least 1")


def load(flags: argparse.Namespace) -> tuple[list[Product], list[pathlib.Path], list[Live], list[Live]]:
    """Reads a product directory and splits its products as the flags of a program say.

    Args:
        flags: those of `add_flags`.

    Returns:
        (products, backgrounds, training livestreams, test livestreams).

    Raises:
        ValueError: a flag or a file in the product directory is wrong.
    """
    products, backgrounds = read_products(flags.products), read_backgrounds(flags.products)
    names = ("train_products", "test_products", "lives", "split_seed", "galleries", "seed")
    return products, backgrounds, *arrange(products, **{name: getattr(flags, name) for name in names})


def arrange(
    products: Sequence[Product],
    *,
    train_products: int | None = None,
    test_products: int | None = None,
    lives: int | None = None,
    split_seed: int | None = None,
    galleries: str | None = None,
    seed: int = 0,
) -> tuple[list[Live], list[Live]]:
    """Splits products into disjoint training and test livestreams, each with few categories.

    The column `gallery` of the products says which are for testing, and which of them share a livestream. Without it,
    and with `test_products`, `lives`, or `split_seed`, they are drawn.

    Args:
        products: all products.
        train_products: number of products for training; None = all that are neither in a gallery nor drawn for testing.
        test_products: number of products to draw for testing; None = 60.
        lives: number of test livestreams to draw; None = as many as give galleries of about 30.
        split_seed: decides what is drawn; None = 0.
        galleries: what the names of the galleries for testing begin with; None = "test". Products of other galleries
            are in neither split.
        seed: decides the ids and the order of a gallery.

    Returns:
        (training livestreams, test livestreams); a training livestream has about 30 products. Every second livestream
        is in Chinese if its products have Chinese names.

    Raises:
        ValueError: there are too few products, no gallery has the name, or one would not have 20 to 40 images.
    """
    drawn = any(value is not None for value in (test_products, lives, split_seed))
    if drawn and galleries is not None:
        raise ValueError(
            f"--galleries={galleries}: found --test_products, --lives, or --split_seed beside it, which draw other "
            "test products; leave it or them out"
        )
    rng = np.random.default_rng([split_seed or 0, 0])
    if drawn or (galleries is None and not any(map(_gallery, products))):
        sizes = _drawn_sizes(USUAL_TEST_PRODUCTS if test_products is None else test_products, lives)
        pools = _shuffled_pools(products, rng)
        whole = {category: len(pool) for category, pool in pools.items()}
        test = [_draw_live(pools, whole, size, rng) for size in sizes]
    else:
        test = _named_lives(products, USUAL_GALLERIES if galleries is None else galleries)
        sizes = [len(live) for live in test]
        pools = _shuffled_pools([product for product in products if not _gallery(product)], rng)
    rest = [p for pool in pools.values() for p in pool]
    found = len(rest) + sum(map(len, test))
    if train_products is None:
        train_products = max(0, found - sum(sizes))
    if train_products < 1:
        raise ValueError(f"--train_products={train_products}: expected at least 1 ({found} products in all)")
    if train_products + sum(sizes) > found:
        raise ValueError(
            f"--train_products={train_products} and {sum(sizes)} test products need {train_products + sum(sizes)} "
            f"products, found {found}; lower one of them"
        )
    rest = [rest[i] for i in sorted(rng.permutation(len(rest))[:train_products])]  # still grouped by category
    parts = np.array_split(np.arange(len(rest)), max(1, round(len(rest) / GALLERY_USUAL)))
    train = [[rest[i] for i in part] for part in parts]
    rng = np.random.default_rng([seed, 3])
    return [_live(*item, rng) for item in enumerate(train)], [_live(*item, rng) for item in enumerate(test)]


def _named_lives(products, galleries):
    """Groups the products of the galleries whose names begin with `galleries`."""
    lives = {}
    for product in filter(_gallery, products):
        lives.setdefault(_gallery(product), []).append(product)
    chosen = [live for name, live in sorted(lives.items()) if name.startswith(galleries)]
    if not chosen:
        raise ValueError(
            f"--galleries={galleries}: found {', '.join(sorted(lives)) or 'none'} in the column {GALLERY_COLUMN} of "
            "products.csv, expected the beginning of one; or draw test products with --split_seed=0"
        )
    for live in chosen:
        if not GALLERY_MIN <= len(live) <= GALLERY_MAX:
            raise ValueError(
                f"gallery {_gallery(live[0])}: found {len(live)} products, expected {GALLERY_MIN} to {GALLERY_MAX}; "
                f"change the column {GALLERY_COLUMN} of products.csv, or draw test products with --split_seed=0"
            )
    return chosen


def _gallery(product):
    return (product.row.get(GALLERY_COLUMN) or "").strip()


def _drawn_sizes(test_products, lives):
    """How many test products each livestream has."""
    lives = lives or max(1, round(test_products / GALLERY_USUAL))
    sizes = [test_products // lives + (i < test_products % lives) for i in range(lives)]
    if min(sizes) < GALLERY_MIN or max(sizes) > GALLERY_MAX:
        raise ValueError(
            f"--test_products={test_products} in --lives={lives} gives galleries of {min(sizes)} to {max(sizes)} "
            f"images, expected {GALLERY_MIN} to {GALLERY_MAX}; choose {GALLERY_MIN * lives} to "
            f"{GALLERY_MAX * lives} test products, or other --lives"
        )
    return sizes


def _shuffled_pools(products, rng):
    """Groups products by category, in random order of and within the categories."""
    names = sorted({p.category for p in products})
    pools = {names[i]: [] for i in rng.permutation(len(names))}
    for i in rng.permutation(len(products)):
        pools[products[i].category].append(products[i])
    return pools


def _draw_live(pools, whole, size, rng):
    """Removes `size` products of two to four categories from the pools and returns them.

    At most half of a category's products are for testing, so that training sees similar ones. If that is not enough,
    the rest is taken from any category.
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


def _live(number, products, rng):
    order = rng.permutation(len(products))
    chinese = number % 2 == 1 and all((product.row.get(CHINESE.name_column) or "").strip() for product in products)
    return Live(
        live_id=new_uuid(rng),
        products=tuple(products[i] for i in order),
        image_ids=tuple(new_uuid(rng) for _ in products),
        language=CHINESE if chinese else ENGLISH,
    )


def new_uuid(rng: np.random.Generator) -> str:
    """Draws a UUID as text."""
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))

"""Reads a product directory and arranges its products into livestreams.

README.md beside this file describes the format of the directory.
"""

import csv
import dataclasses
import pathlib
import uuid
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .phrases import CHINESE, ENGLISH, Language

REQUIRED_COLUMNS = ("product_id", "name", "category")
GALLERY_COLUMN = "gallery"  # of the default split: the livestream of a product that is not for training
GALLERY_MIN, GALLERY_MAX, GALLERY_USUAL = 20, 40, 30
DEFAULT_TEST_PRODUCTS = 60


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


def arrange(
    products: Sequence[Product],
    *,
    train_products: int | None,
    test_products: int | None,
    lives: int | None,
    split_seed: int | None,
    galleries: str,
    seed: int,
) -> tuple[list[Live], list[Live]]:
    """Splits products into disjoint training and test livestreams, each with few categories.

    Args:
        products: all products.
        train_products: number of products for training; None = all that are not for testing.
        test_products: number of test products in all galleries; None = 60, or those in `galleries`.
        lives: number of test livestreams; None = as many as give galleries of about 30.
        split_seed: decides the training products, and the products that share a livestream; None = 0. If neither this
            nor `test_products` nor `lives` is given, the column `gallery` decides, if the products have it.
        galleries: beginning of the names in that column whose products are for testing. Those of other galleries are in
            neither split.
        seed: decides the ids and the order of a gallery.

    Returns:
        (training livestreams, test livestreams); a training livestream has about 30 products. Every second livestream
        is in Chinese if its products have Chinese names.

    Raises:
        ValueError: there are too few products, or a gallery would not have 20 to 40 images.
    """
    marked = []
    if test_products is lives is split_seed is None:
        marked = _marked(products, galleries)
        products = [p for p in products if not _gallery(p) or any(p in live for live in marked)]
    test_products = sum(map(len, marked)) or (DEFAULT_TEST_PRODUCTS if test_products is None else test_products)
    if train_products is None:
        train_products = max(0, len(products) - test_products)
    if train_products < 1:
        raise ValueError(f"--train_products={train_products}: expected at least 1 ({len(products)} products in all)")
    if train_products + test_products > len(products):
        raise ValueError(
            f"--train_products={train_products} and --test_products={test_products} need "
            f"{train_products + test_products} products, found {len(products)}; lower one of them"
        )
    lives = lives or max(1, round(test_products / GALLERY_USUAL))
    sizes = [len(live) for live in marked] or [
        test_products // lives + (i < test_products % lives) for i in range(lives)
    ]
    if min(sizes) < GALLERY_MIN or max(sizes) > GALLERY_MAX:
        raise ValueError(
            f"--test_products={test_products} in --lives={lives} gives galleries of {min(sizes)} to {max(sizes)} "
            f"images, expected {GALLERY_MIN} to {GALLERY_MAX}; choose {GALLERY_MIN * lives} to "
            f"{GALLERY_MAX * lives} test products, or other --lives"
        )
    rng = np.random.default_rng([split_seed or 0, 0])
    taken = {p.product_id for live in marked for p in live}
    pools = _shuffled_pools([p for p in products if p.product_id not in taken], rng)
    whole = {category: len(pool) for category, pool in pools.items()}
    test = marked or [_draw_live(pools, whole, size, rng) for size in sizes]
    rest = [p for pool in pools.values() for p in pool]
    rest = [rest[i] for i in sorted(rng.permutation(len(rest))[:train_products])]  # still grouped by category
    parts = np.array_split(np.arange(len(rest)), max(1, round(len(rest) / GALLERY_USUAL)))
    train = [[rest[i] for i in part] for part in parts]
    rng = np.random.default_rng([seed, 3])
    return [_live(*item, rng) for item in enumerate(train)], [_live(*item, rng) for item in enumerate(test)]


def _marked(products, galleries):
    """Groups the products whose gallery's name begins with `galleries`, by gallery."""
    lives = {}
    for product in products:
        if _gallery(product).startswith(galleries):
            lives.setdefault(_gallery(product), []).append(product)
    return [lives[gallery] for gallery in sorted(lives)]


def _gallery(product):
    return (product.row.get(GALLERY_COLUMN) or "").strip()


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

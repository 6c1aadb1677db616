"""Tests of data/sample/variants.py, run as its users run it."""

import csv
import hashlib
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SAMPLE = pathlib.Path(__file__).parents[2] / "data" / "sample"
PRODUCTS, TEST = 26, 20


def run(program, *flags):
    return subprocess.run([sys.executable, SAMPLE / program, *flags], capture_output=True, text=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A shop of few products, and the rows that it writes."""
    directory = tmp_path_factory.mktemp("variants") / "shop"
    for folder in ("images", "views", "backgrounds"):
        (directory / folder).mkdir(parents=True)
    lines = (SAMPLE / "products.csv").read_text().splitlines()[: PRODUCTS + 1]
    (directory / "products.csv").write_text("\n".join(lines) + "\n")
    for name in (line.split(",")[0] for line in lines[1:]):
        shutil.copy(SAMPLE / "images" / f"{name}.jpg", directory / "images")
        shutil.copy(SAMPLE / "views" / f"{name}.webp", directory / "views")
    shutil.copy(next((SAMPLE / "backgrounds").glob("*.jpg")), directory / "backgrounds")
    return directory


@pytest.fixture(scope="module")
def made(shop):
    out = shop.parent / "made"
    done = run("variants.py", "--products", shop, "--out", out, "--variants=4", f"--test_products={TEST}")
    assert done.returncode == 0, done.stderr
    return out


def rows(directory):
    with (directory / "products.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_shop_of_training_products_and_their_variants(shop, made):
    products = rows(made)
    assert len(products) == 5 * (PRODUCTS - TEST)
    originals = {row["product_id"] for row in products if not row["made_from"]}
    assert originals <= {row["product_id"] for row in rows(shop)} and len(originals) == PRODUCTS - TEST
    parts = [row["made_from"].split() for row in products if row["made_from"]]
    assert {name for names in parts for name in names} <= originals, "made from a test product"
    assert {len(names) for names in parts} == {1, 2}
    for row in products:
        with Image.open(made / "images" / f"{row['product_id']}.jpg") as image:
            assert image.size == (160, 160)
        with Image.open(made / "views" / f"{row['product_id']}.webp") as views:
            assert views.mode == "RGBA" and views.width % views.height == 0


def test_a_variant_is_on_white_and_looks_different(made):
    for row in rows(made):
        if row["made_from"] and " " not in row["made_from"]:
            variant, original = (
                np.asarray(Image.open(made / "images" / f"{name}.jpg").convert("RGB"), np.float32)
                for name in (row["product_id"], row["made_from"])
            )
            assert np.abs(variant - original).mean() > 2
            assert variant[:3].mean() > 230 or variant[:, :3].mean() > 230, "what is around the product is white"


def test_images_and_views_show_the_same_colors(made):
    """The change of colors is one for all pictures of a variant."""
    for row in rows(made)[:10]:
        image = np.asarray(Image.open(made / "images" / f"{row['product_id']}.jpg").convert("RGB"), np.float32)
        views = np.asarray(Image.open(made / "views" / f"{row['product_id']}.webp").convert("RGBA"), np.float32)
        shown = image[(image < 240).any(axis=2)].mean(axis=0)
        rendered = views[views[..., 3] > 200][:, :3].mean(axis=0)
        # Lamps differ between a catalog's picture and the renderings, tints do not.
        assert np.abs(shown - shown.mean() - (rendered - rendered.mean())).max() < 25, row["product_id"]


def test_simulator_takes_it(made, tmp_path):
    flags = ["--train_products=8", "--test_products=20", "--max_frames=5", "--clips_per_product=1"]
    done = run("simulate.py", "--products", made, "--out", tmp_path / "raw", "--test_clips_per_product=1", *flags)
    assert done.returncode == 0, done.stderr


def test_equal_seeds_give_equal_bytes(shop, made, tmp_path):
    def digests(directory):
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.rglob("*.*"))}

    for seed, same in ((0, True), (1, False)):
        out = tmp_path / str(seed)
        flags = ["--variants=4", f"--test_products={TEST}", f"--seed={seed}", "--workers=1"]
        assert run("variants.py", "--products", shop, "--out", out, *flags).returncode == 0
        assert (digests(out) == digests(made)) == same


def test_errors(shop, made, tmp_path):
    done = run("variants.py", "--products", shop, "--out", made)
    assert done.returncode == 1 and done.stderr.startswith("error: --out=") and "is not empty" in done.stderr
    done = run("variants.py", "--products", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1 and "products.csv: not found" in done.stderr
    for flag, expected in (("--variants=0", 1), ("--workers=0", 1), ("--seed=-1", 0), ("--lives=0", 1)):
        done = run("variants.py", "--products", shop, "--out", tmp_path / "out", flag)
        assert done.returncode == 2 and f"error: {flag}: expected at least {expected}\n" in done.stderr

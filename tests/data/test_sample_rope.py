"""Tests of data/sample/rope.py: its raw files are read by ROPE's builder, and do not depend on how they were made."""

import collections
import hashlib
import itertools
import json
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from data.rope.files import DOMAINS
from data.rope.items import read_items
from data.sample import rope, shop

SAMPLE = pathlib.Path(__file__).parents[2] / "data" / "sample"
FLAGS = ("--train_products=5", "--test_products=20", "--train_items=2", "--test_items=1")


def simulate(out, *flags):
    command = [sys.executable, SAMPLE / "rope.py", "--products", SAMPLE, "--out", out, *FLAGS, *flags]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    out = tmp_path_factory.mktemp("rope") / "raw"
    done = simulate(out, "--workers=2")
    assert done.returncode == 0, done.stderr
    return out


def items(raw, split, name, tmp_path):
    domain = DOMAINS[name]
    files = {kind: raw / f"{rope.SPLITS[split]}_{kind}.txt" for kind in domain.kinds}
    return list(read_items(files, domain, 100, tmp_path))


def files_of(raw):
    return {p.relative_to(raw): hashlib.sha256(p.read_bytes()).hexdigest() for p in raw.rglob("*") if p.is_file()}


def test_the_builder_reads_every_item(raw, tmp_path):
    names = {"pages": (1, 5), "videos": (8, 16), "lives": (5, 12)}
    shown = collections.Counter()
    for split, name in itertools.product(rope.SPLITS, DOMAINS):
        found = items(raw, split, name, tmp_path)
        assert sorted(int(item.item_id) for item in found) == list(range(1, len(found) + 1))
        assert all(len(item.products) == 1 and not item.repeats for item in found)
        least, most = names[name]
        assert all(least <= len(item.pictures) <= most for item in found)
        assert 0.7 * len(found) < sum(bool(item.text) for item in found), "a few texts are unknown"
        assert not any(item.text == "null" for item in found)
        shown.update(picture for item in found for picture in item.pictures)
        size = (240, 240) if name == "pages" else (270, 480)
        with Image.open(raw / name / found[0].pictures[0]) as picture:
            assert (picture.size, picture.format) == (size, "JPEG")
    assert set(shown.values()) == {1}, "no picture is shown by two items"
    assert {p.name for name in DOMAINS for p in (raw / name).iterdir()} == set(shown), "nor is one left over"
    assert not (raw / rope.UNFINISHED).exists()


def test_products_are_apart_and_some_lack_a_domain(raw, tmp_path):
    products = {
        split: [{item.product for item in items(raw, split, name, tmp_path)} for name in DOMAINS]
        for split in rope.SPLITS
    }
    everywhere = {split: set.union(*of_domains) for split, of_domains in products.items()}
    assert (len(everywhere["train"]), len(everywhere["test"])) == (5, 20)
    assert not everywhere["train"] & everywhere["test"]
    owners = collections.Counter(product for of_domain in products["test"] for product in of_domain)
    assert set(owners.values()) == {2, 3}, "every product can be sought in another domain"
    lines = (raw / "attribution.csv").read_text().splitlines()
    assert len(lines) == 1 + 25 and lines[0].startswith("product,product_id,name,")


def test_a_product_has_several_items_that_differ(raw, tmp_path):
    for name in DOMAINS:
        found = collections.defaultdict(list)
        for item in items(raw, "train", name, tmp_path):
            found[item.product].append(item)
        assert max(map(len, found.values())) > 1
        for own in found.values():
            firsts = [hashlib.sha256((raw / name / item.pictures[0]).read_bytes()).digest() for item in own]
            assert len(set(firsts)) == len(firsts) or name == "pages", "pages may both begin with the catalog's picture"


def test_a_program_that_was_stopped_continues(raw, tmp_path):
    out = tmp_path / "raw"
    flags = rope._parse(["--products", str(SAMPLE), "--out", str(out), *FLAGS])
    rope._begin(out, flags)
    _, backgrounds, _, test = shop.load(flags)
    finished = [rope._draw(flags, backgrounds, out, task) for task in rope.plan_items(test, "test", 1, 0)[:5]]
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    assert len(times) == sum(len(item["pictures"]) for item in finished) > 5
    other = simulate(out, "--workers=1", "--seed=1")
    assert other.returncode == 1 and "found other flags than now, expected the same; remove" in other.stderr
    done = simulate(out, "--workers=1")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in times} == times, "they are not drawn again"
    assert files_of(out) == files_of(raw), "nor does the result depend on the stop or on the number of workers"
    again = simulate(out)
    assert again.returncode == 1 and again.stderr.startswith("error: --out=") and "is not empty" in again.stderr


def test_another_seed_keeps_the_split():
    products = shop.read_products(SAMPLE)
    arranged = [shop.arrange(products, train_products=5, test_products=20, seed=seed)[1] for seed in (0, 1)]
    tasks = [rope.plan_items(lives, "test", 3, seed) for seed, lives in enumerate(arranged)]
    assert {task["product"].product_id for task in tasks[0]} == {task["product"].product_id for task in tasks[1]}
    numbers = [[(task["domain"], task["item"], task["product"].product_id) for task in of_seed] for of_seed in tasks]
    assert numbers[0] != numbers[1]
    counts = collections.Counter((task["domain"], task["product"].product_id) for task in tasks[0])
    assert set(counts.values()) == {2, 3, 4}
    assert json.dumps(tasks[0][0]["seed"]) != json.dumps(tasks[1][0]["seed"])

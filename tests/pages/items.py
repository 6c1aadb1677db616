"""Tiny domains whose texts a page must escape, for tests of pages."""

import dataclasses

import numpy as np

from data.build import main as build
from rice_jax.eval.domains import DomainRanking, rank_domains, short_names, write_domain_rankings
from rice_jax.eval.results import Row, write_results
from rice_jax.input.digest import data_digest
from rice_jax.input.items import Items, read_items
from rice_jax.pages.shelf import Shelf
from tests.data.raw_rope import write_raw
from tests.pages.reports import EVIL
from tests.settings import small_config

NAMES = "rope/pages,rope/videos,rope/lives"
NUM_PRODUCTS = 5  # 1 to 5; the odd ones have two items in a domain, the others one


def build_items(directory, num_products=NUM_PRODUCTS):
    """Raw files with the texts, and the data sets; returns `data_dir`."""
    raw = write_raw(directory / "raw", num_train=1, num_test=num_products)
    for path in raw.glob("test_*_[ta]*s.txt"):  # titles and speech
        if path.stem.endswith(("titles", "asrs")):
            lines = path.read_text(encoding="utf-8").splitlines()
            path.write_text("".join(f"{line.partition(',')[0]}, {EVIL}\n" for line in lines), encoding="utf-8")
    build(["rope", "--raw_dir", str(raw), "--data_dir", str(directory / "data")])
    return directory / "data"


def read_domains(data_dir) -> tuple[dict[str, Items], Shelf]:
    """The test items, and their pictures."""
    data = dataclasses.replace(small_config().input, data_dir=str(data_dir), train="", domains=NAMES)
    items = {name: read_items(data, name) for name in data.domain_names}
    return items, Shelf(str(data_dir), items, short_names(list(items)), 3)


def rank(items: dict[str, Items], seed: int = 0, noise: float = 1.0) -> DomainRanking:
    """Rankings of random embeddings, of which those of a product resemble each other; without noise all are right."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(1000, 16))
    embeddings = {}
    for name, of_domain in items.items():
        rows = centers[[int(product) % 1000 for product in of_domain.product_ids]]
        rows = rows + noise * rng.normal(size=rows.shape)
        embeddings[name] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return rank_domains(items, embeddings)


def write_run(workdir, ranked: DomainRanking, data_dir=""):
    """The files that an evaluation writes into a workdir."""
    about = {"step": 6, "data_dir": str(data_dir), "domains": NAMES, "num_frames": 3}
    about |= {"rankings": dataclasses.asdict(Row(6))}
    if data_dir:
        about["evaluation"] = {"data": [data_digest(str(data_dir), name, "test") for name in NAMES.split(",")]}
    write_results(workdir / "results.json", {Row(6): ranked.score()}, about)
    write_domain_rankings(workdir / "rankings.jsonl", ranked)
    (workdir / "report.html").touch()
    return workdir

"""Tests of triplets of a product's items, on data sets built from raw files."""

import collections
import dataclasses
import pickle

import numpy as np
import pytest

from rice_jax.config import InputConfig
from rice_jax.config.cope import DOMAINS
from rice_jax.input import transforms
from rice_jax.input.items import ItemTriplets, list_classes
from rice_jax.input.source import Source
from rice_jax.input.tokenizer import Tokenizer
from rice_jax.input.triplets import item_batches, triplet_batches
from rice_jax.types import DataError
from tests.data.raw_rope import FILES, TEXT, edit, item_of, product_of
from tests.input.rope import BUILT, known_pictures, num_items, write_rope
from tests.input.test_pipeline import assert_same, joined, squashed, take
from tests.text_model import write_text_model

PAIRED = (1, 2, 3, 4, 6, 7)  # products of two domains or more


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Without the title of one page."""
    return write_rope(tmp_path_factory.mktemp("triplets"), lambda raw: edit(raw, "training_page_titles", _drop_title))


def _drop_title(lines: list[str]) -> None:
    lines[:] = [line for line in lines if not line.startswith(f"{item_of('pages', 3)},")]


@pytest.fixture(scope="module")
def known(raw):
    return known_pictures(raw)


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture
def rope(config, raw, tower) -> InputConfig:
    return dataclasses.replace(
        config,
        data_dir=str(raw.parent / BUILT),
        train="",
        domains=",".join(f"rope/{domain}" for domain in FILES),
        num_frames=8,
        cut_tail=False,
        text="tower",
        tokenizer=str(tower / "tokenizer"),
        text_context=12,
    )


def flat(batch: dict) -> dict:
    """{"page/video": …} in place of dicts in a dict."""
    parts = {f"{domain}/{name}": value for domain in DOMAINS for name, value in batch[domain].items()}
    return parts | {name: batch[name] for name in ("product", "index")}


def test_a_triplet_has_an_item_of_each_domain_that_has_the_product(rope, known):
    triplets = ItemTriplets(rope)
    assert len(triplets) == 6 and triplets.num_left_out == 2
    assert triplets.product_ids == [product_of(product) for product in PAIRED]
    rng, found = np.random.default_rng(0), collections.Counter()
    for index in 60 * list(range(6)):
        row, product = triplets.draw(index, rng), PAIRED[index]
        assert row["product"] == index
        assert list(row["items"]) == [place for place, name in enumerate(FILES) if num_items(name, product)]
        for place, item in row["items"].items():
            domain, name = list(FILES)[place], item["item_id"].decode()
            assert {known[picture] for picture in item["frames"]} == {(product_of(product), domain, name)}
            found[product, domain, name] += 1
    items = {(p, name, item_of(name, p, n)) for p in PAIRED for name in FILES for n in range(num_items(name, p))}
    assert set(found) == items, "each is drawn"
    one, other = (each.draw(2, np.random.default_rng(5)) for each in (triplets, pickle.loads(pickle.dumps(triplets))))
    assert one["items"][1]["item_id"] == other["items"][1]["item_id"]


def test_an_epoch_has_every_product_once_and_new_triplets(rope):
    batches = take(triplet_batches(dataclasses.replace(rope, batch_size=3), ("page",)), 8)
    many = joined([flat(batch) for batch in batches])
    assert (np.sort(many["index"].reshape(4, 6)) == np.arange(6)).all()
    assert many["page/video"].shape == (24, 1, 28, 28, 3) and many["video/video"].shape == (24, 8, 28, 28, 3)
    np.testing.assert_array_equal(many["product"], many["index"])
    of_product = many["index"] == PAIRED.index(2)  # which has three items in each domain
    assert len({picture.tobytes() for picture in many["live/video"][of_product]}) == 4
    lacks = many["index"] == PAIRED.index(1)  # has no live clip
    np.testing.assert_array_equal(many["live/real"], ~lacks)
    assert many["page/real"].all() and many["video/real"].all()
    assert not many["live/video"][lacks].any() and (many["live/frame_mask"][lacks] == (np.arange(8) < 1)).all()
    assert many["live/frame_mask"][~lacks].all(), "frames of short clips repeat"


def test_texts_are_those_of_their_domains(rope, raw, tower):
    batch = joined(
        [flat(batch) for batch in take(triplet_batches(dataclasses.replace(rope, batch_size=6), DOMAINS), 1)]
    )
    assert batch["page/text_ids"].shape == (6, 12)
    no_title = batch["index"] == PAIRED.index(3)
    for name in DOMAINS:
        expected = batch[f"{name}/real"] & ~(no_title & (name == "page"))
        np.testing.assert_array_equal(batch[f"{name}/text_token_mask"].any(axis=1), expected)
    batch = take(triplet_batches(rope, ("page",)), 1)[0]
    assert "text_ids" in batch["page"] and not {"text_ids", "text_mask"} & (set(batch["live"]) | set(batch["video"]))
    ids, _, _ = Tokenizer(str(tower / "tokenizer"), 12)([TEXT.replace("\x01", ",")])
    with_title = batch["index"] != PAIRED.index(3)
    np.testing.assert_array_equal(
        batch["page"]["text_ids"][with_title][:, :4], np.tile(ids[0, :4], (with_title.sum(), 1))
    )


def test_neither_processes_nor_a_restart_nor_workers_change_a_triplet(rope):
    rope = dataclasses.replace(rope, pair_hue=0.3, color_jitter=0.2, random_frames=True)
    read = lambda *args, **changes: [  # noqa: E731
        flat(batch) for batch in take(triplet_batches(dataclasses.replace(rope, **changes), ("page",), *args), 4)
    ]
    expected = read()
    assert_same(joined(read(8)[:2]), joined(expected[2:]))
    shares = [read(0, index, 2) for index in range(2)]
    for step, batch in enumerate(expected):
        assert_same(joined([share[step] for share in shares]), batch)
    assert_same(joined(read(num_workers=2, num_threads=2)), joined(expected))
    assert (joined(read(seed=8))["video/video"] != joined(expected)["video/video"]).any()


def test_evaluation_shows_the_main_picture_of_a_page_and_the_middles_of_clips(rope, raw):
    rope = dataclasses.replace(rope, resize=28)
    for place, domain in enumerate(DOMAINS):
        batches = list(item_batches(rope, domain, 4, with_text=domain == "page"))
        batch = joined(batches)
        assert ("text_ids" in batch) == (domain == "page")
        source = ItemTriplets(rope).sources[place]
        rows = list(Source(rope.data_dir, source.name, split="test"))
        assert batch["mask"].sum() == len(rows) and batch["index"][batch["mask"]].tolist() == list(range(len(rows)))
        frames = rows[0]["frames"]
        places = [0] if domain == "page" else [(2 * i + 1) * len(frames) // 16 for i in range(8)]
        for shown, number in zip(batch["video"][0], places, strict=True):
            np.testing.assert_array_equal(shown, squashed(frames[number], 28))


def test_the_middle_frames_of_equal_parts():
    assert transforms.middle_frames(16, 8).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert transforms.middle_frames(8, 8).tolist() == list(range(8))
    assert transforms.middle_frames(3, 8).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert transforms.middle_frames(10, 8).tolist() == [0, 1, 3, 4, 5, 6, 8, 9]


def test_numbers_of_classes_stay_when_products_come_and_go(rope, tmp_path):
    path = tmp_path / "products.txt"
    assert list_classes("", ["b", "a"]) == list_classes(str(path), ["b", "a"]) == ["a", "b"]
    path.write_text("d\na\n")
    assert list_classes(str(path), ["b", "a", "c"]) == ["d", "a", "b", "c"]
    path.write_text(f"gone\n{product_of(7)}\n{product_of(1)}\n")
    triplets = ItemTriplets(dataclasses.replace(rope, products=str(path)))
    assert triplets.classes.tolist() == [2, 3, 4, 5, 6, 1]
    for content, line in (("a\n\nb\n", "2: found ''"), ("a\nb\na\n", "3: found 'a'")):
        path.write_text(content)
        with pytest.raises(DataError, match=f"products.txt:{line}, expected the id of a product, each once"):
            list_classes(str(path), [])
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match="products.txt: found bytes that are not UTF-8 .*; restore the file"):
        list_classes(str(path), [])

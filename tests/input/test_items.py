"""Tests of pairs of items of one product from two domains, on data sets built from raw files."""

import collections
import dataclasses
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

from data.build import main as build
from rice_jax.input.items import ItemPairs, read_items
from rice_jax.input.pipeline import eval_batches, train_batches
from rice_jax.input.texts import collect, stored_texts
from rice_jax.input.views import image_key
from tests.data.raw_rope import FILES, TEXT, edit, item_of, picture_of, product_of, write_raw
from tests.input.rope import BROKEN, BUILT, known_pictures, lines_of, num_items, write_rope
from tests.input.test_pipeline import assert_same, joined, squashed, take
from tests.input.test_text_views import write

DOMAINS = list(FILES)
ODD = ["null", "a|b\x01c", "😀 Ünï 空", ""]  # the titles of the first pages


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    def set_titles(lines: list[str]) -> None:
        lines[: len(ODD)] = [f"{line.partition(',')[0]}, {title}" for line, title in zip(lines, ODD, strict=False)]

    return write_rope(tmp_path_factory.mktemp("rope"), lambda raw: edit(raw, "training_page_titles", set_titles))


@pytest.fixture
def rope(config, raw):
    names = ",".join(f"rope/{domain}" for domain in DOMAINS)
    return dataclasses.replace(config, data_dir=str(raw.parent / BUILT), train="", domains=names)


@pytest.fixture(scope="module")
def known(raw) -> dict[bytes, tuple[str, str, str]]:
    return known_pictures(raw)


def test_products_of_two_domains_are_paired(rope, raw, known):
    pairs = ItemPairs(rope)
    assert len(pairs) == 6
    rng = np.random.default_rng(0)
    found = collections.defaultdict(collections.Counter)
    for index, _ in itertools.product(range(6), range(300)):
        row = pairs.draw(index, rng)
        product, domain, item = known[row["image"]]
        others = {known[frame] for frame in row["frames"]}
        assert len(others) == 1 and row["index"] == index and row["boxes"].shape == (len(row["frames"]), 4)
        ((other_product, other_domain, other_item),) = others
        assert domain != other_domain and product == other_product == row["image_id"].decode()
        assert other_item == row["clip_id"].decode() and not row["boxes"].any()
        names = [name for it, *_, name in lines_of(raw, f"training_{FILES[other_domain][2]}") if it == other_item]
        assert set(row["frames"]) <= {(raw / other_domain / name).read_bytes() for name in names}
        found[product, "domains"][domain, other_domain] += 1
        found[product, domain][item] += 1
        found[product, "pictures", item, domain][row["image"]] += 1
    assert {key[0] for key in found} == {product_of(product) for product in (1, 2, 3, 4, 6, 7)}
    for product in (1, 2, 3, 4, 6, 7):
        present = [domain for domain in DOMAINS if num_items(domain, product)]
        drawn = found[product_of(product), "domains"]
        orders = list(itertools.permutations(present, 2))
        assert set(drawn) == set(orders)
        expected = 300 / len(orders)
        assert all(abs(count - expected) < 5 * expected**0.5 for count in drawn.values())
        for domain in present:
            counts = found[product_of(product), domain]
            assert set(counts) == {item_of(domain, product, number) for number in range(num_items(domain, product))}
            share = sum(counts.values()) / len(counts)
            assert all(abs(count - share) < 5 * share**0.5 for count in counts.values())
            for item in counts:  # 2, 7 or 12 pictures, at most 10 of them stored; 30 draws or more
                assert len(found[product_of(product), "pictures", item, domain]) >= min(2 + 5 * (product % 3), 6)


def test_texts_of_items_are_named_by_their_domain(rope, raw):
    sets = [f"rope/{domain}" for domain in DOMAINS]
    titles, speech = (collect(stored_texts(rope.data_dir, sets, kind)) for kind in ("titles", "speech"))
    pages = [line[0] for line in lines_of(raw, "training_page_titles")]
    assert [titles.texts.get(f"pages/{item}") for item in pages[:4]] == ["null", "a|b\x01c", "😀 Ünï 空", None]
    assert titles.num_missing == 1 and len(titles.texts) == len(pages) + len(lines_of(raw, "test_page_titles")) - 1
    assert {key.partition("/")[0] for key in speech.texts} == {"videos", "lives"} and not speech.num_missing
    assert speech.texts[f"lives/{item_of('lives', 2)}"] == " ".join(f"{TEXT}{item_of('lives', 2)}".split())
    assert f"lives/{BROKEN}" not in speech.texts and not (speech.num_other or titles.num_other)
    assert {key.partition("/")[2] for key in speech.texts} & set(pages), "ids are those of one domain only"


def test_pairs_bring_the_texts_of_their_own_items(rope, known):
    pairs, rng = ItemPairs(rope), np.random.default_rng(0)
    for index in 20 * list(range(6)):
        row = pairs.draw(index, rng)
        for picture, role in ((row["image"], "image"), (row["frames"][0], "clip")):
            _, domain, item = known[picture]
            assert row[f"{role}_item"].decode() == f"{domain}/{item}"
            assert row[f"{role}_text"].decode() in (f"{TEXT}{item}", *ODD)


def test_batches_of_items_have_embeddings_of_their_texts(rope, tmp_path):
    sets = [f"rope/{domain}" for domain in DOMAINS]
    for kind in ("titles", "speech"):
        keys = list(collect(stored_texts(rope.data_dir, sets, kind)).texts)
        named = {key: key.partition("/")[::2] for key in keys}
        vectors = {key: [1.0, float(item), float(DOMAINS.index(domain))] for key, (domain, item) in named.items()}
        write(tmp_path, kind, vectors)
    rope = dataclasses.replace(rope, text="embeddings", text_dim=3, texts=str(tmp_path), batch_size=3)
    trained = joined(take(train_batches(rope), 8))
    for name in ("title", "speech"):
        masked = trained[f"{name}_mask"]
        assert masked.mean() > 0.7 and not trained[name][~masked].any(), "some titles are missing"
        numbers = (trained[name][masked, 1] / trained[name][masked, 0]).round().astype(int)
        products = np.array([1, 2, 3, 4, 6, 7])[trained["index"][masked]]
        assert (numbers % 1000 // 10 == (900 + 10 * products) % 1000 // 10).all()
    for place, name in enumerate(sets):
        items = read_items(rope, name).item_ids
        (batch,) = eval_batches(rope, name, 8)
        expected = np.array([[1.0, float(item), float(place)] for item in items])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(batch["speech"][: len(items)], expected, rtol=1e-5)
        assert batch["speech_mask"].tolist() == [row < len(items) for row in range(8)]


def test_an_epoch_is_every_product_once_and_pairs_differ_between_epochs(rope):
    batches = take(train_batches(dataclasses.replace(rope, batch_size=3)), 8)
    many = joined(batches)
    assert (np.sort(many["index"].reshape(4, 6)) == np.arange(6)).all()
    assert many["image"].shape == (24, 28, 28, 3) and many["video"].shape == (24, 10, 28, 28, 3)
    keys = {int(image_key(product_of(product).encode())) for product in (1, 2, 3, 4, 6, 7)}
    assert set(many["image_key"].tolist()) == keys
    product = many["index"] == 3
    assert len({image.tobytes() for image in many["image"][product]}) == 4


def test_neither_processes_nor_a_restart_change_a_pair(rope):
    rope = dataclasses.replace(rope, batch_size=4)
    expected = take(train_batches(rope), 6)
    assert_same(joined(take(train_batches(rope, start=12), 3)), joined(expected[3:]))
    shares = [take(train_batches(rope, 0, index, 2), 6) for index in range(2)]
    for step, batch in enumerate(expected):
        assert_same(joined([share[step] for share in shares]), batch)
    other = joined(take(train_batches(dataclasses.replace(rope, seed=8)), 6))
    assert (other["video"] != joined(expected)["video"]).any()


def test_workers_change_no_pair(rope):
    expected = take(train_batches(rope), 3)
    found = take(train_batches(dataclasses.replace(rope, num_workers=2, num_threads=2)), 3)
    assert_same(joined(found), joined(expected))


def test_pairs_can_be_sent_to_another_process(rope):
    pairs = ItemPairs(rope)
    rows = [one.draw(2, np.random.default_rng(5)) for one in (pairs, pickle.loads(pickle.dumps(pairs)))]
    assert rows[0]["image"] == rows[1]["image"] and rows[0]["clip_id"] == rows[1]["clip_id"]


def test_test_items_are_read_in_the_order_of_the_batches(rope, raw):
    for domain in DOMAINS:
        name = f"rope/{domain}"
        items = read_items(rope, name)
        expected = [(product_of(p), item_of(domain, p, n)) for p in (8, 9, 10) for n in range(num_items(domain, p))]
        if domain == "lives":
            expected.remove((product_of(8), BROKEN))
        assert sorted(zip(items.product_ids, items.item_ids, strict=True)) == expected
        assert items.skipped == ([product_of(8)] if domain == "lives" else [])
        batch = joined(list(eval_batches(rope, name, 4)))
        assert batch["mask"].sum() == len(expected) and (batch["index"] == np.arange(8)).all()
        for row, item in enumerate(items.item_ids):
            product = int(items.product_ids[row]) - 99000
            count = 2 + 5 * (product % 3)
            frames = [0, 1, 2, 3, 4, 6, 7, 8, 9, 11] if count == 12 else range(count)
            assert batch["frame_mask"][row].sum() == len(frames)
            for place, frame in enumerate(frames):
                encoded = (raw / domain / picture_of(domain, item, frame)).read_bytes()
                shown = squashed(encoded, 32)[2:30, 2:30]
                assert np.abs(batch["video"][row, place] - shown).mean() < 2


def test_a_broken_pair_is_named(rope, tmp_path, shop, data_dir):
    def opened(**changes):
        return train_batches(dataclasses.replace(rope, **changes))

    with pytest.raises(FileNotFoundError, match=r"rope/pages: found no data set.*rice build rope --raw_dir RAW"):
        opened(data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"found no feature \['item_id'\].*rice build lpr4m"):
        opened(data_dir=str(shop), domains="lpr4m/train,lpr4m/train")
    with pytest.raises(ValueError, match=r"found 6 examples, expected at least one batch of 7"):
        opened(batch_size=7)
    with pytest.raises(ValueError, match=r"test_index.npy: found no such file, expected items of products"):
        read_items(dataclasses.replace(rope, data_dir=data_dir), "shop/query")


def test_domains_without_a_common_product(config, tmp_path):
    raw = write_raw(tmp_path / "raw", num_items=lambda domain, product: int(DOMAINS.index(domain) == product % 3))
    build(["rope", "--raw_dir", str(raw), "--data_dir", str(tmp_path / "built")])
    alone = dataclasses.replace(config, data_dir=str(tmp_path / "built"), domains="rope/pages,rope/videos")
    with pytest.raises(ValueError, match=r"rope/videos/1.0.0: found no product with items in two of them"):
        train_batches(alone)


def test_a_set_without_the_split(config, tmp_path):
    raw = write_raw(tmp_path / "raw")
    arguments = ["--raw_dir", str(raw), "--data_dir", str(tmp_path / "built"), "--option", "splits=train"]
    build(["rope", *arguments])
    only = dataclasses.replace(config, data_dir=str(tmp_path / "built"), domains="rope/pages,rope/videos")
    with pytest.raises(ValueError, match=r"found the splits \['train'\], expected 'test' among them"):
        eval_batches(only, "rope/pages", 4)
    with pytest.raises(ValueError, match=r"test_index.npy: found no such file, .*built for split 'test'"):
        read_items(only, "rope/pages")

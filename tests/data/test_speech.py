"""Tests of the sample's titles and speech."""

import collections

import numpy as np
import pytest

from data.sample import shop, speech
from data.sample.phrases import CHINESE, ENGLISH
from tests.data.test_simulate import SAMPLE


@pytest.fixture(scope="module")
def lives():
    return shop.arrange(shop.read_products(SAMPLE))[1]


def said(live, times, seed=0):
    """Titles of the products, and for each text heard about one its place."""
    rng = np.random.default_rng(seed)
    titles = [speech.title(product, live.language, seed) for product in live.products]
    heard = [
        (place, speech.asr(product, [p for p in live.products if p is not product], live.language, rng))
        for _ in range(times)
        for place, product in enumerate(live.products)
    ]
    return titles, heard


def test_every_product_can_be_named():
    """In both languages, also by captions in pictures, whose font has no accents and no Chinese characters."""
    for product in shop.read_products(SAMPLE):
        assert product.name.isascii() and product.row["name_zh"].strip(), product.product_id
        assert not product.row["name_zh"].isascii() and product.category in CHINESE.categories, product.product_id


def test_every_second_livestream_is_in_chinese(lives):
    assert [live.language for live in lives] == [ENGLISH, CHINESE, ENGLISH]
    products = [shop.Product(p.product_id, p.name, p.category, dict(p.row, name_zh="")) for p in lives[1].products]
    arranged, test = shop.arrange(products + list(lives[0].products), train_products=20, test_products=40, lives=2)
    assert {live.language.name_column for live in (*arranged, *test)} == {"name"}, "a product has no Chinese name"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_speech_is_a_hint(lives, number):
    """Words shared with titles rank the right one first more often than chance, but in less than half of the clips."""
    titles, heard = said(lives[number], times=8)
    assert 0.01 < np.mean([text == "null" for _, text in heard]) < 0.1
    documents = [_grams(text) for text in (*titles, *(text for _, text in heard))]
    common = collections.Counter(gram for document in documents for gram in document)
    known = [{gram: np.log(len(documents) / common[gram]) for gram in document} for document in documents]
    norms = [np.sqrt(sum(weight**2 for weight in document.values())) for document in known]
    first = 0
    for (place, _), document, norm in zip(heard, known[len(titles) :], norms[len(titles) :], strict=True):
        scores = [
            sum(weight * title.get(gram, 0) for gram, weight in document.items()) / (norm * length)
            for title, length in zip(known, norms[: len(titles)], strict=False)
        ]
        first += int(np.argmax(scores) == place)
    assert 4 / len(titles) < first / len(heard) < 0.5


def _grams(text):
    return {text[start : start + size] for size in range(1, 5) for start in range(len(text) - size + 1)}


def test_products_are_named_vaguely_and_others_mentioned(lives):
    live = lives[0]
    names = [product.name.lower() for product in live.products]
    _, heard = said(live, times=8)
    texts = [(names[place], text) for place, text in heard if text != "null"]
    assert 0.15 < np.mean([name in text for name, text in texts]) < 0.45
    assert (
        0.2 < np.mean([any(f"the {other}" in text for other in names if other != name) for name, text in texts]) < 0.7
    )


def test_misheard_words_are_few(lives):
    """Chinese characters and English words that the templates do not have."""
    plain, rng = "perfect for the living room", np.random.default_rng(0)
    heard = [speech._mishear(plain, ENGLISH, rng) for _ in range(500)]
    wrong = np.mean([word not in text.split() for text in heard for word in plain.split()])
    assert 0.03 < wrong < 0.07
    assert speech._mishear("ABC", CHINESE, np.random.default_rng(1)) == "abc"


def test_nothing_presented_and_an_only_product(lives):
    rng, product = np.random.default_rng(0), lives[0].products[0]
    fillers = {text.lower() for text in ENGLISH.fillers}
    said = [s.text for _ in range(20) for s in speech.sentences(20, None, lives[0].products, ENGLISH, rng)]
    assert np.mean([text in fillers for text in said]) > 0.6, "the rest is misheard"
    assert not any(product.name.lower() in text for text in said)
    assert speech.sentences(1, product, [], ENGLISH, rng) == []
    assert all(speech.asr(product, [], ENGLISH, rng) for _ in range(50))

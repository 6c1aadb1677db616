"""Tests of how the sample's products are arranged into livestreams."""

import collections
import dataclasses

import pytest

from data.sample import shop
from tests.data.test_simulate import SAMPLE

FIRST = 300  # products that the sample began with


@pytest.fixture(scope="module")
def products():
    return shop.read_products(SAMPLE)


@pytest.fixture(scope="module")
def galleries(products):
    """{gallery: ids of its products}, with those in no gallery as ""."""
    ids = collections.defaultdict(set)
    for product in products:
        ids[product.row["gallery"]].add(product.product_id)
    return ids


def ids(lives):
    return [{product.product_id for product in live.products} for live in lives]


def named(product, gallery):
    return dataclasses.replace(product, row=product.row | {"gallery": gallery})


def test_the_default_split(products, galleries):
    """100 test products in three galleries, 40 to choose a model by, and the rest to train on."""
    train, test = shop.arrange(products)
    assert ids(test) == [galleries["test-1"], galleries["test-2"], galleries["test-3"]]
    assert [len(live) for live in ids(test)] == [30, 30, 40]
    assert set().union(*ids(train)) == galleries[""] and len(galleries[""]) == 491
    again, validation = shop.arrange(products, galleries="validation")
    assert ids(validation) == [galleries["validation"]] and len(galleries["validation"]) == 40
    assert ids(again) == ids(train)
    assert ids(shop.arrange(products, galleries="test-2", train_products=7)[1]) == [galleries["test-2"]]


def test_the_first_products_keep_their_split(products):
    """What models that were trained on the first 300 products saw is not for testing, and the other way round."""
    before, before_test = shop.arrange(products[:FIRST], split_seed=0)
    assert products[FIRST - 1].product_id == "p299"
    train, test = shop.arrange(products)
    assert ids(before_test) == ids(test)[:2] and len(set().union(*ids(before_test))) == 60
    assert set().union(*ids(before)) <= set().union(*ids(train)) and len(set().union(*ids(before))) == 240


def test_other_splits_are_drawn(products):
    """With a split of one's own, or products without the column, any product may be for testing."""
    marked = {product.product_id for product in products if product.row["gallery"]}
    for changed in ({"split_seed": 0}, {"test_products": 60}, {"lives": 2, "test_products": 60}):
        train, test = shop.arrange(products, **changed)
        assert set().union(*ids(test)) - marked and set().union(*ids(train)) & marked
        assert sum(map(len, ids(train))) == 571 and sum(map(len, ids(test))) == 60
    plain = [named(product, "") for product in products]
    assert ids(shop.arrange(plain)[1]) == ids(shop.arrange(products, split_seed=0)[1])


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"galleries": "tests"}, "--galleries=tests: found test-1, test-2, test-3, validation in the column gallery"),
        ({"galleries": "test", "split_seed": 0}, "--galleries=test: found --test_products, --lives, or --split_seed"),
        ({"train_products": 492}, "--train_products=492 and 100 test products need 592 products, found 591"),
        ({"train_products": 0}, "--train_products=0: expected at least 1"),
    ],
)
def test_splits_that_are_not_there(products, changed, message):
    with pytest.raises(ValueError) as error:
        shop.arrange(products, **changed)
    assert message in str(error.value)


def test_galleries_of_ones_own(products):
    with pytest.raises(ValueError, match="--galleries=test: found none in the column gallery"):
        shop.arrange([named(product, "") for product in products], galleries="test")
    with pytest.raises(ValueError, match="gallery test: found 41 products, expected 20 to 40; change the column"):
        shop.arrange([named(product, "test" if i < 41 else "") for i, product in enumerate(products)])
    with pytest.raises(ValueError, match="--galleries=test: found lamps in the column gallery.* --split_seed=0"):
        shop.arrange([named(product, "lamps") for product in products])

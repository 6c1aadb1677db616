"""Tests of how the sample's products are arranged into livestreams."""

import collections

from data.sample import shop
from tests.data.test_simulate import SAMPLE

DEFAULTS = {"train_products": None, "test_products": None, "lives": None, "split_seed": None, "seed": 0}


def ids(lives):
    return [{product.product_id for product in live.products} for live in lives]


def test_the_default_split():
    """100 test products in three galleries, 40 to choose a model by, and the rest to train on."""
    products = shop.read_products(SAMPLE)
    train, test = shop.arrange(products, galleries="test", **DEFAULTS)
    galleries = collections.defaultdict(set)
    for product in products:
        galleries[product.row["gallery"]].add(product.product_id)
    assert ids(test) == [galleries["test-1"], galleries["test-2"], galleries["test-3"]]
    assert [len(live) for live in ids(test)] == [30, 30, 40]
    assert set().union(*ids(train)) == galleries[""] and len(galleries[""]) == 491
    again, validation = shop.arrange(products, galleries="validation", **DEFAULTS)
    assert ids(validation) == [galleries["validation"]] and len(galleries["validation"]) == 40
    assert ids(again) == ids(train)


def test_other_splits_are_drawn():
    """With a split of one's own, or products without the column, any product may be for testing."""
    products = shop.read_products(SAMPLE)
    marked = {product.product_id for product in products if product.row["gallery"]}
    for changed in ({"split_seed": 0}, {"test_products": 60}, {"lives": 2, "test_products": 60}):
        train, test = shop.arrange(products, galleries="test", **DEFAULTS | changed)
        assert set().union(*ids(test)) - marked and set().union(*ids(train)) & marked
        assert sum(map(len, ids(train))) == 571 and sum(map(len, ids(test))) == 60
    plain = [shop.Product(p.product_id, p.name, p.category, dict(p.row, gallery="")) for p in products]
    assert ids(shop.arrange(plain, galleries="test", **DEFAULTS)[1]) == ids(
        shop.arrange(products, galleries="test", **DEFAULTS | {"split_seed": 0})[1]
    )

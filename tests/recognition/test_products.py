"""The further columns of a shop's CSV: returned with every match, and conditions on them."""

import dataclasses
import unicodedata

import numpy as np
import pytest

from rice_jax.eval.products import group_products
from rice_jax.index.store import read_index, write_index
from rice_jax.recognition.engine import Engine, Frames
from rice_jax.recognition.products import freeze, in_gallery, parse_where
from rice_jax.recognition.recognizer import Recognizer, products_over_time
from rice_jax.types import DataError
from tests.shop import SCALE

NAMES = ["mug", "sofa", "mug", "lamp", "p4", "sofa", "mug", "p7"]
FIELDS = [
    {"Category": "", "price": "9"}, {"Category": "seat", "price": "99"}, {"Category": "cup", "price": "8"},
    {"Category": "lamp", "price": "9"}, {}, {"Category": "sofa", "price": "99"}, {"category": "cup"}, {"price": "9"},
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(live_shop, tmp_path_factory):
    directory, index = tmp_path_factory.mktemp("fields"), live_shop.index
    calibration = dataclasses.replace(index.about.calibration, scale_by_frames=2 * SCALE)
    about = dataclasses.replace(index.about, calibration=calibration)
    write_index(directory, dataclasses.replace(index, about=about, product_ids=NAMES, fields=FIELDS))
    return directory


@pytest.fixture(scope="module")
def engine(directory):
    return Engine(directory)


def encode(engine, shop, rows):
    return engine.encode(np.stack([engine.prepare(shop.pictures[row]) for row in rows]))


def test_a_match_has_the_first_text_of_each_column_of_its_images(engine, live_shop):
    found = engine.rank(encode(engine, live_shop, [2]), top=8).products
    assert {(match.gallery, match.id): match.fields for match in found} == {
        ("a", "mug"): {"Category": "cup", "price": "9"},
        ("a", "sofa"): {"Category": "seat", "price": "99"},
        ("a", "lamp"): {"Category": "lamp", "price": "9"},
        ("a", "p4"): {},
        ("b", "mug"): {"category": "cup"},
        ("b", "p7"): {"price": "9"},
    }


@pytest.mark.parametrize(
    ("gallery", "where", "expected"),
    [
        (None, {"category": "cup"}, {("a", "mug"), ("b", "mug")}),
        ("b", {"CATEGORY": "cup"}, {("b", "mug")}),
        ("a", {"category": ["cup", "lamp"]}, {("a", "mug"), ("a", "lamp")}),
        (None, {"category": ["cup", "lamp"], "Price": "9"}, {("a", "mug"), ("a", "lamp")}),
        (None, {"price": ["9", "99"]}, {("a", "mug"), ("a", "sofa"), ("a", "lamp"), ("b", "p7")}),
        ("a", {}, {("a", "mug"), ("a", "sofa"), ("a", "lamp"), ("a", "p4")}),
    ],
)
def test_conditions_choose_products_and_leave_their_scores(engine, live_shop, gallery, where, expected):
    frames = encode(engine, live_shop, [5, 9, 3])
    everything = engine.rank(frames, gallery, top=8)
    found = engine.rank(frames, gallery, top=8, where=where)
    assert {(match.gallery, match.id) for match in found.products} == expected
    own = [match for match in everything.products if (match.gallery, match.id) in expected]
    assert [match._replace(confidence=None) for match in found.products] == [
        match._replace(confidence=None) for match in own
    ]
    assert sum(match.confidence for match in found.products) + found.none == pytest.approx(1)
    again = engine.products(gallery, where)
    assert not where or again is engine.products(gallery, dict(reversed(where.items()))), "it is kept"


def test_over_time_and_pushed(directory, engine, live_shop):
    frames = encode(engine, live_shop, [3] * 6)
    assert products_over_time(engine, [*map(float, range(6))], frames)[0].products[0].id == "lamp"
    [part] = products_over_time(engine, [*map(float, range(6))], frames, where={"category": "cup"})
    assert {match.id for match in part.products} == {"mug"} and len(part.products) == 2
    recognizer = Recognizer(directory, gallery="a", where={"category": ["sofa", "seat"]})
    assert [match.id for match in recognizer.push(live_shop.pictures[3], 0.0).products] == ["sofa"]


@pytest.mark.parametrize(
    ("gallery", "where", "expected"),
    [
        (
            None,
            {"color": "red"},
            "where: found no column 'color' in the index; its further columns are: 'Category', 'price'",
        ),
        ("b", {"category": "lamp"}, "where: found no product with category=lamp among 2, whose 'Category' is 'cup'"),
        (
            None,
            {"category": ["x", "y"], "price": "9"},
            "no product with category=x or y and price=9 among 6, whose 'Category' is 'cup' or 'lamp' or 'seat' or "
            "'sofa'; 'price' is '8' or '9' or '99'",
        ),
        ("c", {"category": "lamp"}, "found no gallery 'c' in the index, which has 2: 'a', 'b'"),
    ],
)
def test_conditions_that_nothing_meets(engine, gallery, where, expected):
    with pytest.raises(DataError, match=expected):
        engine.products(gallery, where)


def test_galleries_that_an_index_does_not_have():
    of_galleries = group_products([""] * 2, ["p0", "p1"])
    assert len(in_gallery(of_galleries, None).rows) == len(in_gallery(of_galleries, "").rows) == 2
    with pytest.raises(DataError, match="^found no gallery 'live': the index is not divided into galleries; leave the"):
        in_gallery(of_galleries, "live")
    of_galleries = group_products([f"g{number:02}" for number in range(11)], ["p"] * 11)
    with pytest.raises(DataError, match="^found no gallery '' in the index, which has 11: 'g00', .*, 'g09', …$"):
        in_gallery(of_galleries, "")


def test_texts_in_either_normal_form_are_equal(directory, tmp_path):
    """ "é" is one character or two; macOS and some spreadsheets write two."""
    one, two = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    index = read_index(directory)
    fields = [{one: two}, {two: one}, *index.fields[2:]]
    engine = Engine(dataclasses.replace(index, fields=fields, product_ids=[f"p{row}" for row in range(8)]))
    assert one != two
    for column, value in [(one, one), (one, two), (two.upper(), one), (two, two)]:
        found = engine.products(None, parse_where([f"{column}={value}"]))
        assert [engine.index.product_ids[row] for row in found.rows] == ["p0", "p1"]
    with pytest.raises(DataError, match="no product with café=tea among 8"):
        engine.products(None, {two: "tea"})


def test_a_gallery_in_either_normal_form_is_ranked(directory, tmp_path):
    index = dataclasses.replace(read_index(directory), gallery_ids=["Café"] * 4 + ["b"] * 4)
    write_index(tmp_path / "index", index)
    engine = Engine(tmp_path / "index")
    frames = Frames(index.vectors[[1]], None)
    one, two = (engine.rank(frames, unicodedata.normalize(form, "Café"), top=4) for form in ("NFC", "NFD"))
    assert engine.by_frames and one == two and one.products[0].gallery == "Café"


def test_an_index_without_further_columns(live_shop):
    with pytest.raises(DataError, match="its further columns are: none. They come from the CSV"):
        Recognizer(live_shop.directory, where={"category": "lamp"})


def test_conditions_as_texts():
    assert parse_where(["Category=lamp", "category = sofa, red ", "url=http://x?a=b", "stock="]) == {
        "category": ["lamp", "sofa, red"], "url": ["http://x?a=b"], "stock": [""]
    }  # fmt: skip
    assert parse_where([]) == {} and freeze(None) == ()
    assert freeze({"a": ["x", "y"], "B": "z"}) == freeze({"b": ["z", "z"], "A": ["y", "x"]})
    for text in ("lamp", "=lamp", " =lamp"):
        with pytest.raises(DataError, match=f"where: found {text!r}, expected COLUMN=VALUE"):
            parse_where([text])

"""scripts/several_photos.py: what a product's photos give, on embeddings made by hand."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from rice_jax.recognition.products import by_gallery
from scripts import several_photos
from scripts.several_photos import SHOPS, Clip, mean_vectors, measure, paired, share, tables, take_photos
from tests.index.test_store import make_index

NAMES = [f"p{product}" for product in range(3) for _ in range(4)]


@pytest.fixture
def index():
    """Two galleries of three products with four photos each."""
    made = make_index(24, with_queries=False)
    return dataclasses.replace(
        made,
        gallery_ids=["a"] * 12 + ["b"] * 12,
        product_ids=[f"{gallery}-{name}" for gallery in "ab" for name in NAMES],
        image_ids=[f"i{row}" for row in range(24)],
    )


def test_a_shop_has_the_first_photos_of_each_product(index):
    counts = {name: len(take_photos(index, count).image_ids) for name, count in SHOPS.items()}
    assert counts == {"1 photo": 6, "2 photos": 12, "4 photos": 24, "1 or 4": 15, "1 to 4": 15}
    assert take_photos(index, SHOPS["1 or 4"]).image_ids[:6] == ["i0", "i4", "i5", "i6", "i7", "i8"]
    single = mean_vectors(index)
    assert single.product_ids == [f"{gallery}-p{product}" for gallery in "ab" for product in range(3)]
    mean = index.vectors[4:8].mean(axis=0)
    np.testing.assert_allclose(single.vectors[1], mean / np.linalg.norm(mean), atol=1e-6)


def test_clips_that_show_a_photo_are_found_by_it(index):
    clips = [Clip(index.product_ids[row], index.vectors[row], index.vectors[[row]]) for row in range(0, 24, 3)]
    products = np.array([clip.product for clip in clips])
    hits, named = measure(index, clips, products, ({"a": 2.0, "b": -2.0}, {"a": -2.0, "b": 2.0}), 1000.0)
    assert hits["best photo"].all() and hits["pooled, without subtracting the mean"].all()
    assert set(hits) >= {"pooled", "mean vector", "mean of the scores"} and len(by_gallery(index)) == 3
    assert np.array_equal(named["best photo"][:, 0], [clip.product.startswith("b") for clip in clips])
    fitted = named["pooled, less what several photos add; fitted with these photos"][:, 0]
    assert np.array_equal(fitted, [clip.product.startswith("a") for clip in clips])
    lines = tables(index, clips, {name: {"a": 0.9, "b": 0.9} for name in SHOPS}, 1000.0)
    assert len(lines) == 2 * 2 + len(hits) + len(named) and all(
        len(line.split("|")) == 8 for line in lines if "|" in line
    )


def test_intervals_are_over_products():
    one, other = np.array([1.0, 1, 1, 0]), np.zeros(4)
    assert paired(one, one, np.array([*"abcd"])) == "+0.0 (+0.0 to +0.0)"
    assert paired(one, other, np.array([*"aabb"])) == "+75.0 (+50.0 to +100.0)"
    assert share(one, np.array([*"aabb"])) == "75.0 (50.0 to 100.0)"


def test_a_photo_is_the_box_and_what_is_around_it(tmp_path):
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[40:60, 80:120] = 255
    Image.fromarray(picture).save(tmp_path / "frame.png")
    photo = np.asarray(several_photos.cut(tmp_path / "frame.png", (0.4, 0.4, 0.6, 0.6)))
    assert 30 <= photo.shape[0] <= 31 and 60 <= photo.shape[1] <= 61 and photo.sum() == picture.sum()
    assert several_photos.cut(tmp_path / "frame.png", (0, 0, 1, 0.5)).size == (201, 63)

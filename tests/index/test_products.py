"""Several pictures of a product in an index."""

import logging

import pyarrow.parquet as pq
import pytest

from rice_jax.index.store import FILE, read_index
from rice_jax.index.update import remove_pictures
from rice_jax.types import DataError
from tests.index.updates import assert_same_rows


def test_products_follow_the_csv(made, embedded, caplog):
    path = made.pictures.parent / "shop.csv"
    path.write_text("id,path,product\n1,pictures/a.jpg,mug\n2,pictures/b.jpg,mug\n3,pictures/c.jpg,\n")
    with caplog.at_level(logging.INFO, "rice_jax"):
        index = made.update(path)
    assert index.image_ids == ["1", "2", "3"] and index.product_ids == ["mug", "mug", "3"]
    assert f"{made.directory}: 3 pictures of 2 products in 1 gallery" in caplog.text
    embedded.clear()
    path.write_text("id,path,product\n2,pictures/b.jpg,cup\n")
    assert made.update(path).product_ids == ["mug", "cup", "3"] and not embedded
    assert read_index(made.directory).product_ids == ["mug", "cup", "3"]
    path.write_text("id,path\n1,pictures/a.jpg\n3,pictures/c.jpg\n")
    assert made.update(path, change="mirror").product_ids == ["1", "3"] and not embedded


def test_a_repeated_id_is_a_product_and_can_be_removed(made, embedded, caplog):
    path, gone = made.pictures.parent / "multi.csv", made.pictures.parent / "gone.csv"
    path.write_text("id,path\nsku1,pictures/a.jpg\nsku1,pictures/b.jpg\nsku2,pictures/c.jpg\n")
    index = made.update(path)
    assert index.image_ids == ["sku1", "sku1/2", "sku2"] and index.product_ids == ["sku1", "sku1", "sku2"]
    embedded.clear()
    assert_same_rows(made.update(path, change="mirror"), index)
    assert not embedded
    gone.write_text("id\nsku1\nsku3\n")
    with caplog.at_level(logging.INFO, "rice_jax"):
        assert remove_pictures(made.directory, gone).image_ids == ["sku2"]
    assert "removed 2 of 3 pictures" in caplog.text
    assert f"{gone}: 1 not in {made.directory}, and so not removed: 'sku3'" in caplog.text
    made.update(path)
    gone.write_text("id\nsku1/2\n")
    assert remove_pictures(made.directory, gone).image_ids == ["sku1", "sku2"]


def test_an_id_of_several_pictures_with_names_removes_one(made):
    path, gone = made.pictures.parent / "shop.csv", made.pictures.parent / "gone.csv"
    path.write_text("id,path,product\nmug,pictures/a.jpg,mug\nside,pictures/b.jpg,mug\nmug/c,pictures/c.jpg,cup\n")
    made.update(path)
    gone.write_text("id\nmug\n")
    assert remove_pictures(made.directory, gone).image_ids == ["mug/c", "side"]


def test_a_csv_may_name_the_products_to_remove(made, caplog):
    path, gone = made.pictures.parent / "shop.csv", made.pictures.parent / "gone.csv"
    path.write_text("id,path,product\n1,pictures/a.jpg,mug\n2,pictures/b.jpg,mug\n3,pictures/c.jpg,cup\n")
    made.update(path)
    gone.write_text("product\nsofa\n")
    with pytest.raises(DataError, match="none of its 1 products, e.g. 'sofa', is in"):
        remove_pictures(made.directory, gone)
    gone.write_text("SKU;stock\nmug;0\nsofa;0\n")
    with caplog.at_level(logging.INFO, "rice_jax"):
        assert remove_pictures(made.directory, gone).image_ids == ["3"]
    assert f"{gone}: 1 not in {made.directory}, and so not removed: 'sofa'" in caplog.text


def test_further_columns_follow_the_csv(made, embedded):
    path = made.pictures.parent / "shop.csv"
    path.write_text("id;photo;Price\n1;pictures/a.jpg;9,99\n2;pictures/b.jpg;5\n")
    assert made.update(path).fields == [{"Price": "9,99"}, {"Price": "5"}]
    embedded.clear()
    path.write_text("id;photo;Price;url\n2;pictures/b.jpg;6;http://x\n")
    changed = [{"Price": "9,99"}, {"Price": "6", "url": "http://x"}]
    assert made.update(path).fields == changed == read_index(made.directory).fields and not embedded
    assert pq.read_table(made.directory / FILE)["fields"].to_pylist()[0] == [("Price", "9,99")]
    path.write_text("id,path\n1,pictures/a.jpg\n2,pictures/b.jpg\n")
    assert made.update(path).fields == [{}, {}] == read_index(made.directory).fields and not embedded
    assert "fields" not in pq.read_table(made.directory / FILE).column_names, "as before there were any"


def test_one_picture_is_told_in_the_singular(made, embedded, caplog):
    path = made.pictures.parent / "one.csv"
    path.write_text("id,path\na,pictures/a.jpg\n")
    with caplog.at_level(logging.INFO, "rice_jax"):
        made.update(path)
    assert f"{path}: 1 picture; new or changed: 1" in caplog.text
    assert f"{made.directory}: 1 picture in 1 gallery" in caplog.text

"""LPR4M's `<image_id>-<k>`: several photos of a product, in the galleries and in training pairs."""

import json

import pytest

from rice_jax.input.ground_truth import read_gallery_index
from rice_jax.input.source import Source
from tests.data.raw_lpr4m import IMAGE_SIZE, image_id_of, jpeg, live_id_of, write_raw
from tests.data.test_lpr4m import build, open_set, report_of


def add_photo(raw, folder, product, number):
    """A photo of a product beside its image; its pixels tell its number."""
    encoded = jpeg(product, IMAGE_SIZE, noise=100 + number)
    (raw / folder / f"{image_id_of(product)}-{number}.jpg").write_bytes(encoded)
    return encoded


def gallery_of(data_dir, config):
    source, _ = open_set(data_dir, config)
    return [(row["image_id"].decode(), row["product_id"].decode(), row["image"]) for row in source]


@pytest.mark.parametrize("num_columns", [11, 13])
def test_a_product_without_further_photos_has_its_images_name(tmp_path, num_columns):
    raw = write_raw(tmp_path / "raw", num_columns=num_columns)
    config = "gallery_750k" if num_columns == 13 else "gallery"
    folder = f"gallery/{live_id_of(1000)}" if num_columns == 13 else "images"
    add_photo(raw, folder, 1001, 1)
    build(raw, tmp_path / "data", "--configs", config)
    assert all(image == product for image, product, _ in gallery_of(tmp_path / "data", config))
    assert len(gallery_of(tmp_path / "data", config)) == 8, "the photo is in no list"


@pytest.mark.parametrize("num_columns", [11, 13])
def test_photos_that_a_gallery_lists_are_of_one_product(tmp_path, num_columns):
    raw = write_raw(tmp_path / "raw", num_columns=num_columns)
    product, live = image_id_of(1001), live_id_of(1000)
    if num_columns == 13:
        config, folder, file = "gallery_750k", f"gallery/{live}", raw / "annotations" / "gallery_main.txt"
        lines = file.read_text().splitlines()
        file.write_text("\n".join([f"{live}/{product}-3.jpg", *lines, f"{live}/{product}-1.jpg"]))
    else:
        config, folder, file = "gallery", "images", next(raw.glob("test_liveid_to_gallery_*.json"))
        galleries = json.loads(file.read_text())
        galleries[live] = [f"{product}-3.jpg", *galleries[live], f"{product}-1"]
        file.write_text(json.dumps(galleries))
    first, last = add_photo(raw, folder, 1001, 3), add_photo(raw, folder, 1001, 1)
    build(raw, tmp_path / "data", "--configs", config)
    found = gallery_of(tmp_path / "data", config)
    assert len(found) == 10 and found[0] == (f"{product}-3", product, first)
    assert (f"{product}-1", product, last) in found
    main = f"{product}-0.jpg" if num_columns == 13 else f"{product}.jpg"
    assert (product, product, (raw / folder / main).read_bytes()) in found
    gallery = read_gallery_index(str(tmp_path / "data"), f"lpr4m/{config}")
    assert gallery.product_ids.count(product) == 3 and gallery.rows[live, product] == gallery.image_ids.index(product)


def test_without_the_main_photo_the_lowest_one_is_read_from_its_own_file(tmp_path):
    raw = write_raw(tmp_path / "raw")
    file = next(raw.glob("test_liveid_to_gallery_*.json"))
    galleries = json.loads(file.read_text())
    product = image_id_of(1001)
    others = [image for image in galleries[live_id_of(1000)] if product not in image]
    galleries[live_id_of(1000)] = [*others, f"{product}-2", f"{product}-1"]
    file.write_text(json.dumps(galleries))
    photos = {number: add_photo(raw, "images", 1001, number) for number in (1, 2)}
    build(raw, tmp_path / "data", "--configs", "gallery")
    found = {name: encoded for name, own, encoded in gallery_of(tmp_path / "data", "gallery") if own == product}
    assert found == {product: photos[1], f"{product}-2": photos[2]}


def test_a_photo_that_is_listed_twice_is_left_out(tmp_path):
    raw = write_raw(tmp_path / "raw")
    file = next(raw.glob("test_liveid_to_gallery_*.json"))
    galleries = json.loads(file.read_text())
    product = image_id_of(1001)
    galleries[live_id_of(1000)] += [f"{product}-1", f"{product}-0", f"{product}-1"]
    file.write_text(json.dumps(galleries))
    add_photo(raw, "images", 1001, 1)
    build(raw, tmp_path / "data", "--configs", "gallery", "--max_skipped_percent", "50")
    assert [name for name, own, _ in gallery_of(tmp_path / "data", "gallery") if own == product] == [
        product,
        f"{product}-1",
    ]
    reasons = [line["reason"] for line in report_of(tmp_path / "data", "gallery")]
    assert reasons == ["twice in its gallery"] * 2


@pytest.mark.parametrize("num_columns", [11, 13])
def test_all_photos_on_disk_are_taken_if_asked_for(tmp_path, num_columns):
    raw = write_raw(tmp_path / "raw", num_columns=num_columns)
    suffix = "_750k" if num_columns == 13 else ""
    of_gallery = f"gallery/{live_id_of(1000)}" if num_columns == 13 else "images"
    of_train = "training_image" if num_columns == 13 else "images"
    shown = [add_photo(raw, of_gallery, 1001, number) for number in (2, 10)]
    trained = [add_photo(raw, of_train, 2, number) for number in (1, 7, 12)]
    (raw / of_train / f"{image_id_of(2)}-9.jpg").write_bytes(b"")
    configs = f"train{suffix},gallery{suffix}"
    build(raw, tmp_path / "data", "--configs", configs, "--option", "photos=all", "--max_skipped_percent", "20")
    found = [entry for entry in gallery_of(tmp_path / "data", f"gallery{suffix}") if entry[1] == image_id_of(1001)]
    assert [name for name, *_ in found] == [image_id_of(1001) + end for end in ("", "-2", "-10")]
    assert [encoded for *_, encoded in found[1:]] == shown
    assert len(open_set(tmp_path / "data", f"gallery{suffix}")[0]) == 10
    rows = list(Source(str(tmp_path / "data"), f"lpr4m/train{suffix}"))
    for row in rows:
        assert list(row["photos"]) == (trained if row["image_id"].decode() == image_id_of(2) else [])
    assert [row["image_id"].decode() for row in rows].count(image_id_of(2)) == 2
    lines = [line for line in report_of(tmp_path / "data", f"train{suffix}") if line["kind"] == "pictures"]
    assert {(line["id"], line["reason"]) for line in lines} == {(f"{image_id_of(2)}-9", "zero bytes")}
    with pytest.raises(SystemExit, match="photos: found 'every', expected listed or all"):
        build(raw, tmp_path / "other", "--option", "photos=every")


def test_photos_that_img2dataset_downloaded_are_found_by_their_names(tmp_path):
    from data.lpr4m.pictures import photos_of

    class Pictures:
        def folder(self, relative):
            return tmp_path / relative

        def was_listed(self, name):
            return name in {f"{product}-1", f"{product}-2", f"{product}-4"}

    product = image_id_of(1)
    assert photos_of(Pictures(), product, "") == [(k, f"images/{product}-{k}.jpg") for k in (1, 2)]

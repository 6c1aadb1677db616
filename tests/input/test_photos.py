"""Training pairs of products that have several photos: any of them is drawn."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rice_jax.input.pipeline import train_batches
from rice_jax.losses.contrastive import different_images
from tests.input import tiny_shop
from tests.input.test_pipeline import assert_same, joined, shows, take

PHOTOS = {
    row: [tiny_shop.picture(300_000 + 10 * row + k, size=(80, 80)) for k in range(1 + row % 3)] for row in (0, 3, 8)
}


@pytest.fixture(scope="module")
def several(config, tmp_path_factory):
    """The rows of the tiny shop; three of them have one to three further photos."""
    root = tmp_path_factory.mktemp("photos")
    rows = [stored | {"photos": PHOTOS.get(row, [])} for row, stored in enumerate(tiny_shop.TRAIN)]
    tiny_shop.build(root / "shop" / "train", "train", rows, {"num_rows": len(rows)})
    return dataclasses.replace(config, data_dir=str(root), resize=28)


def test_every_photo_is_drawn(several):
    many = joined(take(train_batches(several), 44))  # each row 16 times
    for row, further in PHOTOS.items():
        photos = [tiny_shop.TRAIN[row]["image"], *further]
        drawn = [[shows(image, photo) for photo in photos] for image in many["image"][many["index"] == row]]
        assert (np.sum(drawn, axis=1) == 1).all(), "one photo of the product itself"
        counts = np.sum(drawn, axis=0)
        assert counts.sum() == 16 and counts.min() > 0


def test_rows_with_one_photo_keep_their_draws(several, config):
    before = joined(take(train_batches(dataclasses.replace(config, resize=28)), 11))
    found = joined(take(train_batches(several), 11))
    alone = ~np.isin(found["index"], list(PHOTOS))
    assert alone.sum() == 32
    assert_same({name: rows[alone] for name, rows in found.items()}, {k: rows[alone] for k, rows in before.items()})
    assert not np.array_equal(found["image"], before["image"])


def test_the_draw_follows_from_seed_and_position(several):
    whole = take(train_batches(several), 9)
    assert_same(joined(take(train_batches(several, start=16), 5)), joined(whole[4:]))
    shares = [take(train_batches(several, 0, process, 2), 9) for process in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert_same(joined(parts), batch)
    workers = dataclasses.replace(several, num_threads=3)
    assert_same(joined(take(train_batches(workers), 9)), joined(whole))


def test_pairs_with_photos_of_one_product_are_no_negatives(several):
    """Rows 8 and 9 have one image id; their masks do not depend on the photo that was drawn."""
    many = joined(take(train_batches(several), 11))
    kept = np.asarray(different_images(jnp.asarray(many["image_key"])))
    same = np.flatnonzero(np.isin(many["index"], (8, 9)))
    assert len(same) == 8 and not kept[np.ix_(same, same)].any()
    assert kept[same][:, many["index"] < 8].all()

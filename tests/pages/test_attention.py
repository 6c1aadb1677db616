"""What a page shows of the decoder's attention."""

import dataclasses

import numpy as np
import pytest

from rice_jax.input.ground_truth import read_gallery_index, read_query_index
from rice_jax.input.transforms import Box
from rice_jax.pages.album import Album
from rice_jax.pages.attention import Attention
from tests.settings import small_config


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({}, (0.1, 0.1, 0.9, 0.9)),
        ({"ipd": "boxes", "ipd_use": "mask"}, (0.1, 0.1, 0.9, 0.9)),
        # Around the box 0.4 wide and 0.2 high with a quarter of 0.4 on each side, then the middle of that.
        ({"ipd": "boxes", "ipd_use": "crop", "ipd_margin": 0.25}, (0.16, 0.26, 0.64, 0.74)),
    ],
)
def test_windows_are_what_the_model_sees(shop, settings, window):
    data = dataclasses.replace(small_config().input, data_dir=str(shop), **settings)
    queries, gallery = read_query_index(data), read_gallery_index(data.data_dir, data.gallery)
    pictures = Album(data.data_dir, data.query, data.gallery, gallery.rows, 3)
    weights = np.arange(4 * 3 * 4, dtype=np.uint8).reshape(1, 4, 3, 4)
    seen = Attention(data, {1: queries[1].image_ids[0]}, weights)
    frames = [{"truths": [Box(0.2, 0.4, 0.6, 0.6)], "found": []}, {"truths": [], "found": []}]
    shown = seen.of(1, queries[1].gallery_id, frames, pictures)
    assert seen.of(0, queries[0].gallery_id, frames, pictures) is None
    assert shown["grid"] == 2 and shown["image"]["thumbnail"]
    assert shown["windows"][0][:4] == pytest.approx(window)
    assert shown["windows"][1][:4] == shown["window"][:4] == pytest.approx((0.1, 0.1, 0.9, 0.9))

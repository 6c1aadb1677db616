"""Uploaded pictures are measured before they are decoded, and seen as a viewer shows them."""

import io
import tempfile

import numpy as np
import pytest
from fastapi import HTTPException
from PIL import Image

from rice_jax.index.pictures import show
from rice_jax.serving import uploads
from rice_jax.serving.forms import File
from rice_jax.serving.limits import Limits
from rice_jax.serving.uploads import prepare_picture, read_pictures
from tests.shop import draw, png

LIMITS = Limits(pixels=40_000)


def encode(picture, format="PNG", **options):
    picture.save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def refusal(*files):
    """The status and the reason with which the frames of a form are refused."""
    with tempfile.TemporaryFile() as stored, pytest.raises(HTTPException) as error:
        opened = [File("", stored, stored.tell(), stored.write(file)) for file in files]
        next(read_pictures(opened, LIMITS, 1.0, lambda file: pytest.fail("decoded before all are measured")))
    return error.value.status_code, error.value.detail


def test_the_pictures_of_a_request_are_limited_together(monkeypatch):
    monkeypatch.setattr(uploads, "NUM_LARGEST", 2)
    large, jpeg = encode(Image.new("1", (200, 200))), encode(Image.new("RGB", (200, 200)), "JPEG")
    assert refusal(large, jpeg, large) == (413, "frame 3 exceeds the limit of 80,000 pixels in a request")
    assert refusal(*[jpeg] * 60) == (413, "frame 51 exceeds the limit of 80,000 pixels in a request")


def test_pictures_that_are_cheap_to_send_and_dear_to_decode_are_refused():
    assert refusal(encode(Image.new("1", (65_536, 1)))) == (
        413,
        "frame 1: it has 65,536 × 1 pixels, which exceeds the limit of 65,535 on a side",
    )
    file = encode(Image.new("L", (16, 16)), "JPEG", progressive=True)
    end, start = file.rindex(b"\xff\xd9"), file.rindex(b"\xff\xda")
    assert refusal(file[:end] + file[start:end] * 50 + file[end:]) == (
        413,
        "frame 1: it exceeds the limit of 50 scans in a JPEG",
    )


def test_a_picture_is_seen_as_a_viewer_shows_it(live_shop):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it clockwise
    turned = encode(Image.fromarray(np.ascontiguousarray(np.rot90(draw(1)))), exif=exif)
    found, upright = (
        prepare_picture(file, Limits(), lambda file: show(file, live_shop.index.about), "frame 1")
        for file in (turned, png(draw(1)))
    )
    assert np.abs(found.astype(int) - upright).max() <= 3

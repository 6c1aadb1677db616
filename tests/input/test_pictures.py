"""Pictures are seen as a viewer shows them, and those that cost too much are refused."""

import io
import os
import time

import numpy as np
import pytest
from PIL import Image, ImageCms

from rice_jax.input import pictures, transforms
from rice_jax.input.decode import WHOLE, decode_jpeg
from rice_jax.input.pictures import TooLarge, as_shown, is_plain, open_picture, read_file
from rice_jax.input.transforms import Crop, as_stored
from tests.input.drawn import FORMATS, SIDE, difference, encode, profile, scene

ORIENTATION = 0x0112


def stored_for(picture, number):
    """The pixels that a camera stores with an orientation; by EXIF's table, without the code's."""
    pixels = np.asarray(picture)  # row 0 is shown at the top, column 0 at the left
    rows_are = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}[number]
    columns_are = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[number]
    if rows_are in ("left", "right"):
        pixels = pixels.swapaxes(0, 1)
    if rows_are in ("bottom", "right"):
        pixels = pixels[::-1]
    if columns_are in ("bottom", "right"):
        pixels = pixels[:, ::-1]
    return Image.fromarray(np.ascontiguousarray(pixels))


def turned(picture, number, format="JPEG"):
    exif = Image.Exif()
    exif[ORIENTATION] = number
    extra = {"save_all": True, "append_images": [picture]} if format == "MPO" else {}
    return encode(stored_for(picture, number), format, exif=exif, **FORMATS[format], **extra)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("number", range(1, 9))
def test_a_picture_stands_upright(format, number):
    upright, file = scene(), turned(scene(), number, format)
    for crop in (WHOLE, Crop(0.1, 0.2, 0.55, 0.9, flip=True)):
        found = transforms.render(file, crop, SIDE)
        assert difference(found, transforms.render(encode(upright), crop, SIDE)) <= 8
    assert difference(as_shown(open_picture(file)), upright) <= 12


@pytest.mark.parametrize("number", range(1, 9))
def test_a_large_jpeg_stands_upright_without_full_decoding(number):
    large = scene(1081, 723)  # the sides are not multiples of the reduction
    found = transforms.render(turned(large, number), Crop(0.0, 0.1, 0.8, 1.0, flip=False), SIDE)
    expected = transforms.render(encode(large), Crop(0.0, 0.1, 0.8, 1.0, flip=False), SIDE)
    assert difference(found, expected) <= 4


@pytest.mark.parametrize("number", range(1, 9))
def test_windows_of_stored_pixels(number):
    crop = Crop(0.25, 0.5, 0.75, 0.625, flip=False)
    window = Image.new("L", (64, 64))
    window.paste(255, (16, 32, 48, 40))
    left, top, right, bottom = stored_for(window, number).getbbox()
    assert as_stored(crop, number) == Crop(left / 64, top / 64, right / 64, bottom / 64, flip=False)


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_damaged_exif_data_do_not_cost_the_picture(exif):
    file = encode(scene(), "JPEG", exif=exif, quality=95)
    np.testing.assert_array_equal(
        transforms.render(file, WHOLE, SIDE), transforms.render(encode(scene(), "JPEG", quality=95), WHOLE, SIDE)
    )


def test_the_first_picture_of_an_animation():
    for format in ("GIF", "WEBP", "PNG"):
        colors = [Image.new("RGB", (40, 40), color) for color in ("red", "lime", "blue")]
        file = encode(colors[0], format, save_all=True, append_images=colors[1:], duration=100)
        assert Image.open(io.BytesIO(file)).n_frames == 3
        assert difference(transforms.render(file, WHOLE, SIDE), np.full((1, 1, 3), [255, 0, 0])) <= 3


def test_a_jpeg_that_a_viewer_shows_otherwise_is_not_decoded_as_it_is():
    pixels = np.zeros((100, 100, 3), np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = encode(scene(), "JPEG"), turned(scene(), 1), encode(scene(), "JPEG", icc_profile=srgb)
    other = (
        turned(scene(), 6),
        encode(scene(), "JPEG", icc_profile=profile()),
        encode(scene(), "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
    )
    assert [is_plain(file) for file in plain] == [True] * 3 and not any(map(is_plain, other))
    assert [decode_jpeg(file, WHOLE, SIDE, pixels) for file in plain] == [(32, 48)] * 3
    assert [decode_jpeg(file, WHOLE, SIDE, pixels) for file in other] == [None] * 3


def test_only_what_precedes_the_pixels_turns_a_jpeg():
    file = turned(scene(), 6)
    comment = b"\xff\xfe\x00\x06\xff\xda\xff\xd9"  # of two bytes, as a scan begins
    assert not any(map(is_plain, (file[:2] + comment + file[2:], file[:2] + b"\xff\xff" + file[2:], file[:-200])))
    assert is_plain(encode(scene(), "JPEG") + file), "the pixels are those of the first picture"
    assert is_plain(b"") and is_plain(b"\xff\xd8\xff\xe0"), "the decoder tells that these are no pictures"


def scan_bomb(num_scans):
    """A progressive JPEG with further scans that change nothing."""
    file = encode(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    end, start = file.rindex(b"\xff\xd9"), file.rindex(b"\xff\xda")
    return file[:end] + file[start:end] * num_scans + file[end:]


def test_a_jpeg_of_many_scans_is_refused():
    with pytest.raises(TooLarge, match="it exceeds the limit of 50 scans in a JPEG"):
        open_picture(scan_bomb(50))
    assert as_shown(open_picture(scan_bomb(20))).size == (64, 64)
    film = os.urandom(64) + b"\xff\xda" * 1000  # phones append one to a picture
    assert as_shown(open_picture(encode(scene(), "JPEG", progressive=True) + film)).size == (96, 64)


def test_a_jpeg_costs_less_by_its_scans():
    for options, cost in (({}, 96 * 64 // 25), ({"progressive": True}, 96 * 64 * 10 // 25)):
        file = encode(scene(), "JPEG", **options)
        assert pictures.decoding_cost(open_picture(file), file) == cost
    file = encode(scene())
    assert pictures.decoding_cost(open_picture(file), file) == 96 * 64


def test_many_scans_are_counted_quickly():
    file = scan_bomb(100_000)
    start = time.process_time()
    with pytest.raises(TooLarge):
        open_picture(file)
    assert time.process_time() - start < 1


def test_too_many_pixels_are_refused(monkeypatch):
    assert pictures.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 // 2 - 1)
    with pytest.raises(TooLarge, match="^it exceeds the limit of 178,956,970 pixels$"):
        open_picture(encode(scene()))


def test_a_long_side_is_refused():
    with pytest.raises(TooLarge, match="65,536 × 1 pixels, which exceeds the limit of 65,535 on a side"):
        transforms.render(encode(Image.new("1", (65_536, 1))), WHOLE, SIDE)
    assert transforms.render(encode(Image.new("1", (65_535, 1))), WHOLE, SIDE).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("format", ["EPS", "PPM", "TGA", "ICO", "PDF", "JPEG2000"])
def test_other_formats_are_not_opened(format, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)
    with pytest.raises(
        OSError, match="it is not a picture that can be read; expected AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP"
    ):
        transforms.render(encode(scene(64, 64), format), WHOLE, SIDE)


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for name in ("fifo.jpg", "endless.jpg", "."):
        with pytest.raises(OSError, match="it is not a regular file"):
            read_file(tmp_path / name)
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    (tmp_path / "large.jpg").write_bytes(b"x" * 11)
    with pytest.raises(TooLarge, match="it exceeds the limit of 10 bytes"):
        read_file(tmp_path / "large.jpg")


def test_a_name_that_no_file_can_have(tmp_path):
    with pytest.raises(OSError, match="no file can have this name"):
        read_file(tmp_path / "a\0.jpg")

import io
import itertools
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from rice_jax.input import transforms
from rice_jax.input.transforms import Box, Crop
from tests.input import tiny_shop

RECORDED = json.loads((pathlib.Path(__file__).parent / "frames.json").read_text())
WHOLE = Crop(0.0, 0.0, 1.0, 1.0, flip=False)


def encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, cell: int = 6, seed: int = 0) -> Image.Image:
    """Noise with details about `cell` pixels wide, and a contrast low enough for interpolation to stay in 0..255."""
    cells = np.random.default_rng(seed).integers(60, 196, (height // cell + 1, width // cell + 1, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def gray_levels(a, b) -> np.ndarray:
    return np.abs(np.asarray(a, int) - np.asarray(b, int))


@pytest.mark.parametrize("count", range(1, 26))
def test_frames_are_those_of_the_reference(count):
    np.testing.assert_array_equal(transforms.sample_frames(count, 10), RECORDED["frames"][str(count)])


def test_tail_is_cut_as_often_as_in_the_reference():
    rng = np.random.default_rng(0)
    kept = np.bincount([len(transforms.cut_tail(rng, np.arange(10), 10)) for _ in range(20_000)], minlength=11)
    assert kept[0] == 0
    np.testing.assert_allclose(kept[1:] / 20_000, RECORDED["tail_cut"], atol=0.012)  # over 3 standard deviations


def test_tail_cut_of_other_lengths():
    rng = np.random.default_rng(0)
    kept = np.bincount([len(transforms.cut_tail(rng, np.arange(4), 4)) for _ in range(20_000)], minlength=5)
    np.testing.assert_allclose(kept[1:] / 20_000, [0.125, 0.125, 0.125, 0.625], atol=0.012)
    frames = np.array([2, 5, 7])
    assert all(transforms.cut_tail(rng, frames, 10) is frames for _ in range(50)), "short clips are never cut"
    assert all(len(transforms.cut_tail(rng, np.arange(1), 1)) == 1 for _ in range(50))
    cut = transforms.cut_tail(np.random.default_rng(1), np.array([2, 5, 7, 8]), 4)
    np.testing.assert_array_equal(cut, [2, 5, 7, 8][: len(cut)])


def test_random_frames_are_ordered_and_equally_likely():
    rng = np.random.default_rng(0)
    drawn = [tuple(transforms.random_frames(rng, 5, 2).tolist()) for _ in range(5000)]
    counts = {pair: drawn.count(pair) for pair in itertools.combinations(range(5), 2)}
    assert sum(counts.values()) == 5000, "every draw is an ascending pair"
    assert min(counts.values()) > 400 and max(counts.values()) < 600
    np.testing.assert_array_equal(transforms.random_frames(rng, 3, 10), [0, 1, 2])


@pytest.mark.parametrize("source", [(270, 480), (61, 97), (54, 96), (300, 40)])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_while_resizing_equals_resize_then_crop(source, flip):
    picture, resize, size = noise(*source), 64, 56
    squashed = picture.resize((resize, resize), Image.Resampling.BICUBIC)
    for left, top in [(0, 0), (8, 8), (3, 5), (0, 8)]:
        expected = np.asarray(squashed.crop((left, top, left + size, top + size)))
        crop = Crop(left / resize, top / resize, (left + size) / resize, (top + size) / resize, flip)
        found = transforms.render(encode(picture), crop, size)
        assert found.shape == (size, size, 3) and found.dtype == np.uint8
        assert gray_levels(found[:, ::-1] if flip else found, expected).max() <= 1


@pytest.mark.parametrize("source", [(256, 455), (455, 256), (256, 256), (258, 455)])
@pytest.mark.parametrize(("left", "top"), [(0, 0), (17, 32), (32, 5)])
def test_crops_at_whole_pixels_equal_those_of_pillow(source, left, top):
    picture = noise(*source)
    crop = Crop(left / 256, top / 256, (left + 224) / 256, (top + 224) / 256, flip=True)
    width, height = source
    box = crop.left * width, crop.top * height, crop.right * width, crop.bottom * height
    expected = picture.resize((224, 224), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(transforms.render(encode(picture), crop, 224)[:, ::-1], expected)


def test_center_crop():
    picture = noise(90, 160)
    expected = picture.resize((32, 32), Image.Resampling.BICUBIC).crop((2, 2, 30, 30))
    assert gray_levels(transforms.render(encode(picture), transforms.center_crop(32, 28), 28), expected).max() <= 1
    assert transforms.center_crop(28, 28) == WHOLE


def test_a_large_jpeg_is_decoded_small_without_harm():
    for size in [(540, 960), (800, 800), (1081, 723)]:  # the last size is not a multiple of the reduction
        encoded = encode(noise(*size, cell=16), "JPEG", quality=85)
        full = Image.open(io.BytesIO(encoded)).resize((128, 128), Image.Resampling.BICUBIC)
        difference = gray_levels(transforms.render(encoded, WHOLE, 128), full)
        assert 0 < difference.mean() < 1


def test_a_jpeg_is_decoded_whole_where_its_pixels_are_needed():
    encoded = encode(noise(270, 480), "JPEG", quality=85)
    decoded = Image.open(io.BytesIO(encoded)).convert("RGB")
    for crop, size in [(WHOLE, 136), (Crop(0.2, 0.1, 0.7, 0.6, flip=False), 68)]:
        np.testing.assert_array_equal(
            transforms.render(encoded, crop, size), transforms.render(encode(decoded), crop, size)
        )


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_every_kind_of_picture_becomes_rgb(mode):
    picture = noise(40, 40).convert(mode)
    encoded = encode(picture, "JPEG" if mode in ("L", "CMYK") else "PNG")
    assert transforms.render(encoded, WHOLE, 16).shape == (16, 16, 3)


@pytest.mark.parametrize("encoded", [b"", b"not a picture", tiny_shop.picture(0)[:400]])
def test_a_broken_picture_is_an_error(encoded):
    with pytest.raises(OSError):
        transforms.render(encoded, WHOLE, 16)


def test_plain_crops_are_at_whole_pixels_and_equally_likely():
    rng = np.random.default_rng(0)
    crops = [transforms.random_crop(rng, 32, 28, (1.0, 1.0)) for _ in range(10_000)]
    assert all(crop.right - crop.left == 28 / 32 == crop.bottom - crop.top for crop in crops)
    offsets = np.array([(crop.left * 32, crop.top * 32) for crop in crops])
    counts = np.histogram2d(*offsets.T, bins=np.arange(6) - 0.5)[0]
    assert counts.sum() == 10_000 and counts.min() > 320 and counts.max() < 480  # 25 places, 400 each
    assert 0.48 < np.mean([crop.flip for crop in crops]) < 0.52


def test_random_area_crops_stay_inside_and_keep_area_and_aspect():
    rng = np.random.default_rng(0)
    crops = np.array([transforms.random_crop(rng, 32, 28, (0.4, 1.0)) for _ in range(5000)])
    left, top, right, bottom, flip = crops.T
    assert crops.min() >= 0 and crops.max() <= 1
    width, height = right - left, bottom - top
    area, aspect = width * height, width / height
    assert 0.4 <= area.min() < 0.41 and 0.99 < area.max() <= 1
    assert 0.69 < area.mean() < 0.71, "uniform in 0.4..1"
    assert aspect.min() >= 0.75 - 1e-9 and aspect.max() <= 4 / 3 + 1e-9
    assert abs(np.log(aspect).mean()) < 0.01
    assert 0.48 < flip.mean() < 0.52
    assert left.min() < 0.01 and right.max() > 0.99 and bottom.max() > 0.99


@pytest.mark.parametrize(
    "box", [(0.1, 0.6, 0.3, 0.9), (0.0, 0.0, 1.0, 1.0), (0.95, 0.0, 1.0, 0.02), (0.2, 0.1, 0.9, 0.2)]
)
def test_a_crop_contains_the_box(box):
    rng = np.random.default_rng(0)
    crops = np.array([transforms.random_crop(rng, 32, 28, (0.05, 1.0), Box(*box)) for _ in range(2000)])
    left, top, right, bottom, _ = crops.T
    assert crops.min() >= 0 and crops.max() <= 1
    slack = 1e-9
    assert (left <= box[0] + slack).all() and (top <= box[1] + slack).all()
    assert (right >= box[2] - slack).all() and (bottom >= box[3] - slack).all()
    share = (right - left) * (bottom - top)
    assert share.min() >= (box[2] - box[0]) * (box[3] - box[1]) - slack
    if box != (0.0, 0.0, 1.0, 1.0):
        assert share.min() < 0.7 and len(np.unique(left)) > 100, "windows differ in size and place"


@pytest.mark.parametrize(
    ("box", "grid", "expected"),
    [
        (Box(0.0, 0.0, 1.0, 1.0), 7, "1" * 49),  # each patch has an IoU of 1/49 = 0.0204
        (Box(0.0, 0.0, 1.0, 1.0), 14, "1" * 196),  # 1/196, although the whole picture shows the product
        (Box(0.0, 0.0, 0.5, 1.0), 2, "1010"),
        (Box(0.26, 0.26, 0.49, 0.49), 4, "0000010000000000"),
        (Box(0.25, 0.25, 0.75, 0.5), 4, "0000011000000000"),  # patches that only touch the box share no area with it
        (Box(0.25, 0.25, 0.501, 0.5), 4, "0000010000000000"),  # 0.4 % of a patch is too little: IoU 0.002
        (Box(0.25, 0.25, 0.52, 0.5), 4, "0000011000000000"),  # 0.005 of 0.125 is enough: IoU 0.04
        (Box(0.5, 0.5, 0.505, 0.505), 4, "1" * 16),  # too small for any patch: all patches are kept
        (None, 3, "1" * 9),
    ],
)
def test_patches_that_show_the_product(box, grid, expected):
    mask = transforms.patch_mask(box, grid)
    assert mask.dtype == bool and "".join(map(str, mask.astype(int))) == expected


def test_a_box_goes_through_windows_and_mirrors():
    box, window = Box(0.2, 0.4, 0.6, 0.8), Crop(0.1, 0.5, 0.5, 0.9, flip=False)
    assert transforms.box_inside(box, WHOLE) == box
    assert transforms.box_inside(box, window) == pytest.approx((0.25, 0.0, 1.0, 0.75))
    assert transforms.box_inside(box, window._replace(flip=True)) == pytest.approx((0.0, 0.0, 0.75, 0.75))
    assert transforms.box_inside(box, Crop(0.6, 0.0, 1.0, 1.0, flip=False)) is None, "they only touch"
    assert transforms.inside(WHOLE, window) == window
    inner = transforms.inside(window, Crop(0.25, 0.0, 0.75, 1.0, flip=True))
    assert inner == pytest.approx((0.2, 0.5, 0.4, 0.9, True))


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        (Box(0.4, 0.3, 0.6, 0.7), 0.0, (0.3, 0.3, 0.7, 0.7)),  # as high as wide: the aspect ratio of the picture
        (Box(0.4, 0.3, 0.6, 0.7), 0.25, (0.2, 0.2, 0.8, 0.8)),
        (Box(0.0, 0.3, 0.2, 0.7), 0.0, (0.0, 0.3, 0.4, 0.7)),  # moved into the picture
        (Box(0.8, 0.9, 1.0, 1.0), 0.5, (0.6, 0.6, 1.0, 1.0)),
        (Box(0.1, 0.2, 0.9, 0.3), 0.5, (0.0, 0.0, 1.0, 1.0)),  # no larger than the picture
    ],
)
def test_the_window_around_a_product(box, margin, expected):
    assert transforms.around_box(box, margin) == pytest.approx((*expected, False))


def test_color_matrix():
    picture = noise(40, 40)
    pixels = np.asarray(picture.resize((24, 24), Image.Resampling.BICUBIC), float)
    for seed in range(20):
        color = transforms.random_color(np.random.default_rng(seed), 0.4)
        matrix = np.reshape(color, (3, 4))
        expected = np.clip(pixels @ matrix[:, :3].T + matrix[:, 3], 0, 255)
        assert gray_levels(transforms.render(encode(picture), WHOLE, 24, color), expected).max() <= 1


def test_hues_turn_about_gray():
    rng = np.random.default_rng(0)
    for share in (0.2, 1.0):
        turned = []
        for _ in range(500):
            matrix = transforms.random_hue(rng, share)
            np.testing.assert_allclose(matrix @ [90, 90, 90], [90, 90, 90], atol=1e-9)
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
            red = matrix @ [1.0, 0.0, 0.0] - 1 / 3
            turned.append(
                np.degrees(np.arctan2((red[1] - red[2]) / np.sqrt(2), (red[0] * 2 - red[1] - red[2]) / np.sqrt(6)))
            )
        assert 0.97 * 180 * share < np.abs(turned).max() <= 180 * share + 1e-6
    assert (transforms.random_hue(rng, 0.0) == np.eye(3)).all()


def test_color_strength():
    np.testing.assert_allclose(
        np.reshape(transforms.random_color(np.random.default_rng(0), 0.0), (3, 4)), np.eye(3, 4), atol=1e-12
    )
    matrices = [np.reshape(transforms.random_color(np.random.default_rng(seed), 0.4), (3, 4)) for seed in range(500)]
    mid_gray = np.array([matrix @ [127.5, 127.5, 127.5, 1] for matrix in matrices])
    # Contrast and saturation leave mid-gray where it is; brightness changes it by up to 1.4, a channel by up to 1.1
    # more, and contrast enlarges the change by up to 1.4.
    assert np.abs(mid_gray - 127.5).max() <= 127.5 * (1.4 * 1.1 - 1) * 1.4
    assert np.std(mid_gray.mean(1)) > 10, "brightness varies"
    assert np.std(mid_gray - mid_gray.mean(1, keepdims=True)) > 3, "the cast varies"

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rice_jax.input.decode import Collate, Encoded, recycled
from rice_jax.input.transforms import Crop, random_color, render
from rice_jax.models.resample import resample, show, weights
from rice_jax.types import DataError, Decoded
from tests.settings import small_config

SIDE = 28
WHOLE = Crop(0.0, 0.0, 1.0, 1.0, flip=False)
CROPS = [WHOLE, Crop(0.1, 0.05, 0.975, 0.925, flip=False), Crop(0.3, 0.2, 0.6, 0.35, flip=True)]


def encode(picture: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0, low: int = 0, high: int = 256) -> Image.Image:
    cells = np.random.default_rng(seed).integers(low, high, (height // 5 + 1, width // 5 + 1, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encoded(files, crops, color=None, shape=None) -> Encoded:
    names = [f"picture {i}" for i in range(len(files))]
    return Encoded(
        shape or (len(files),), files, names, crops, color, lambda name, error: DataError(f"{name}: {error}")
    )


def decoded(examples, **settings) -> Decoded:
    changed = {"device_resize_height": 96, "device_resize_width": 54, "image_size": SIDE, **settings}
    data = dataclasses.replace(small_config().input, **changed)
    return Collate(data)([{"video": example} for example in examples])["video"]


compiled = jax.jit(resample)


def resampled(batch: Decoded) -> np.ndarray:
    return np.asarray(compiled(batch))


def difference(found, expected) -> np.ndarray:
    return np.abs(np.asarray(found, int) - np.asarray(expected, int))


@pytest.mark.parametrize("size", [(54, 96), (40, 70), (28, 28), (54, 54)])
@pytest.mark.parametrize("crop", CROPS)
def test_the_device_shows_what_the_host_renders(size, crop):
    files = [encode(noise(*size, seed=seed)) for seed in range(3)]
    found = resampled(decoded([encoded(files, [crop] * 3)]))
    assert found.shape == (1, 3, SIDE, SIDE, 3) and found.dtype == np.uint8
    expected = [render(file, crop, SIDE) for file in files]
    # The host rounds once more, between across and down, and cuts what overshoots there.
    assert difference(found[0], expected).max() <= 4
    assert difference(found[0], expected).mean() < 0.3


def test_crops_at_whole_pixels_are_the_pixels_themselves():
    file = encode(noise(54, 96))
    crop = Crop(13 / 54, 20 / 96, 41 / 54, 48 / 96, flip=False)
    found = resampled(decoded([encoded([file], [crop])]))
    pixels = np.asarray(Image.open(io.BytesIO(file)))
    assert difference(found[0, 0], pixels[20:48, 13:41]).max() == 0
    mirrored = resampled(decoded([encoded([file], [crop._replace(flip=True)])]))
    assert difference(mirrored[0, 0], pixels[20:48, 13:41][:, ::-1]).max() == 0


def test_large_pictures_are_decoded_at_half_their_size():
    file, crop = encode(noise(108, 192, low=60, high=196)), CROPS[1]
    batch = decoded([encoded([file], [crop])])
    assert batch.size.tolist() == [[[96, 54]]]
    assert difference(resampled(batch)[0, 0], render(file, crop, SIDE)).mean() < 1


@pytest.mark.parametrize(
    ("file", "most"),
    [
        (encode(noise(60, 100)), 0),  # larger than there is room, and half its size would be too little
        (encode(noise(40, 70), "PNG"), 0),
        (encode(noise(40, 70).convert("CMYK")), 4),  # which both can read
        (encode(noise(40, 70).convert("L")), 4),
    ],
)
def test_every_kind_of_picture_is_shown(file, most):
    crop = Crop(0.25, 0.25, 0.75, 0.75, flip=True)
    found = resampled(decoded([encoded([file], [crop])], device_resize_height=80))
    assert difference(found[0, 0], render(file, crop, SIDE)).max() <= most


def test_colors_are_changed_after_resizing():
    file, color = encode(noise(54, 96)), random_color(np.random.default_rng(3), 0.4)
    batch = decoded([encoded([file], [CROPS[2]], color), encoded([file], [CROPS[2]])], color_jitter=0.4)
    found = resampled(batch)
    assert difference(found[0, 0], render(file, CROPS[2], SIDE, color)).max() <= 6
    assert difference(found[1, 0], render(file, CROPS[2], SIDE)).max() <= 4, "no color is no change"


def test_padding_is_zero_and_what_lies_behind_a_picture_does_not_show():
    file = encode(noise(40, 70))
    batch = decoded([encoded([file], [WHOLE], shape=(2,))])
    assert not resampled(batch)[0, 1].any()
    dirty = batch._replace(pixels=batch.pixels.copy())
    dirty.pixels[0, 0, 70:] = dirty.pixels[0, 0, :, 40:] = 255
    np.testing.assert_array_equal(resampled(dirty), resampled(batch))


def test_matrix_products_in_bfloat16_cost_a_grey_level():
    batch = jax.tree.map(jnp.asarray, decoded([encoded([encode(noise(54, 96))], [CROPS[1]])]))
    down, across = (
        weights(centers, size, pixels).astype(jnp.bfloat16)
        for centers, size, pixels in (
            (batch.rows, batch.size[..., 0], 96),
            (batch.columns, batch.size[..., 1], 54),
        )
    )
    half = jnp.einsum("...ih,...hwc->...iwc", down, jnp.asarray(batch.pixels, jnp.bfloat16))
    found = jnp.einsum("...jw,...iwc->...ijc", across, half, preferred_element_type=jnp.float32)
    found = np.clip(np.round(np.asarray(found, np.float32)), 0, 255)
    assert difference(found, resampled(batch)).max() <= 3 and difference(found, resampled(batch)).mean() < 0.7


def test_a_truncated_picture_is_named():
    file = encode(noise(54, 96))
    with pytest.raises(DataError, match="picture 1: image file is truncated"):
        decoded([encoded([file, file[:900]], [WHOLE] * 2)])


def test_memory_is_used_again_when_no_view_is_left():
    first = recycled(7, 11)
    view, address = first[3:].reshape(-1), first.ctypes.data
    del first
    assert recycled(7, 11).ctypes.data != address, "a view is left"
    del view
    assert address in [array.ctypes.data for array in [recycled(7, 11), recycled(7, 11)]]
    assert recycled(77).ctypes.data != recycled(7, 12).ctypes.data


def test_show_replaces_nothing_else():
    batch = {"video": decoded([encoded([encode(noise(40, 70))], [WHOLE])]), "index": np.arange(1)}
    shown = jax.jit(show)(jax.tree.map(jnp.asarray, batch))
    assert shown["video"].shape == (1, 1, SIDE, SIDE, 3)
    np.testing.assert_array_equal(shown["index"], [0])

"""Colors, clear pixels, and levels are seen as a viewer shows them; those that would be seen wrong are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from rice_jax.input import transforms
from rice_jax.input.decode import WHOLE
from rice_jax.input.pictures import as_shown, open_picture
from tests.input.drawn import ADOBE, FORMATS, SIDE, SRGB, cutout, difference, encode, in_srgb, profile, scene


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_clear_pixels_are_white(format, mode):
    if mode == "PA":
        picture = cutout("RGBA").quantize(64)
        assert picture.mode == "P" and picture.has_transparency_data
    else:
        picture = cutout(mode)
    found = np.asarray(as_shown(open_picture(encode(picture, format, **FORMATS[format]))))
    color, alpha = np.split(np.asarray(picture.convert("RGBA"), float), [3], axis=-1)
    assert difference(found, (color * alpha + 255 * (255 - alpha)) / 255) <= 1
    assert (found[0, 0] == 255).all()


def test_a_clear_color_is_white():
    for mode, clear in [("RGB", (0, 0, 0)), ("L", 0), ("P", 0), ("1", 0), ("I;16", 0)]:
        gray = np.tile(np.uint8([[0, 255]]), (8, 4))
        picture = (
            Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
        )
        picture.info["transparency"] = clear
        file = encode(picture, transparency=clear)
        assert (np.asarray(as_shown(open_picture(file))) == 255).all(), mode


def png(rows, bits, color, *chunks, width=None):
    """A PNG of packed rows; `chunks` are the names and contents of further chunks."""
    header = struct.pack(">IIBB", width or len(rows[0]), len(rows), bits, color) + bytes(3)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    )


@pytest.mark.parametrize(("bits", "row"), [(2, 0b00_01_10_11), (4, 0x015F)])
def test_a_clear_gray_of_few_bits_is_white(bits, row):
    file = png([row.to_bytes(bits // 2, "big")] * 4, bits, 0, (b"tRNS", b"\0\x01"), width=4)
    levels = [0, 255, 170, 255] if bits == 2 else [0, 255, 5 * 17, 255]
    assert np.asarray(as_shown(open_picture(file)))[0, :, 0].tolist() == levels


def test_a_clear_color_of_sixteen_bits_is_white():
    clear = struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)
    file = png([clear + struct.pack(">3H", 0x3400, 0x7800, 0xBC00)] * 2, 16, 2, (b"tRNS", clear), width=2)
    assert np.asarray(as_shown(open_picture(file)))[0].tolist() == [[255] * 3, [0x34, 0x78, 0xBC]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_gray_of_sixteen_bits_is_scaled(format):
    gray = np.asarray(scene().convert("L"))
    picture = Image.fromarray(gray.astype("<u2") * 257)
    assert picture.mode == "I;16"
    found = np.asarray(as_shown(open_picture(encode(picture, format))))
    np.testing.assert_array_equal(found, np.stack([gray] * 3, -1))


def tiff(levels, bits, photometric, order="<", tags=()):
    """A gray TIFF of one strip; `tags` are further tags or other values of its tags."""
    rows = ["".join(format(level, f"0{bits}b") for level in row) for row in levels]
    pixels = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    if bits == 16:
        pixels = np.frombuffer(pixels, ">u2").astype(f"{order}u2").tobytes()
    tags = {
        256: len(levels[0]),
        257: len(levels),
        258: bits,
        259: 1,
        262: photometric,
        277: 1,
        278: len(levels),
    } | dict(tags)
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags |= {273: start, 279: len(pixels)}
    table = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    magic = b"II" if order == "<" else b"MM"
    return struct.pack(f"{order}2sHIH", magic, 42, 8, len(tags)) + table + bytes(4) + pixels


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 1), (16, 0), (8, 1), (8, 0)])
def test_gray_of_tiffs(bits, photometric):
    shares = [[0.0, 0.25, 0.5, 1.0]] * 2
    levels = [[round(share * (2**bits - 1)) for share in row] for row in shares]
    found = np.asarray(as_shown(open_picture(tiff(levels, bits, photometric))))[..., 0] / 255
    np.testing.assert_allclose(found if photometric else 1 - found, shares, atol=0.003)


def planes(levels, order):
    """An RGB TIFF of 16 bits, a strip for each color."""
    channels, height, width = levels.shape
    size, start = height * width * 2, 8 + 2 + 12 * 10 + 4
    strips = start + 2 * channels * 4 + channels * 2
    counts = [strips + size * channel for channel in range(channels)] + [size] * channels
    short, long = 3, 4
    fields = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, channels, start + 2 * channels * 4),
        (259, long, 1, 1),
        (262, long, 1, 2),
        (273, long, channels, start),
        (277, long, 1, channels),
        (278, long, 1, height),
        (279, long, channels, start + channels * 4),
        (284, long, 1, 2),
    ]
    return (
        struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(fields))
        + b"".join(struct.pack(f"{order}HHII", *field) for field in fields)
        + bytes(4)
        + struct.pack(f"{order}{2 * channels}I", *counts)
        + struct.pack(f"{order}{channels}H", *[16] * channels)
        + levels.astype(f"{order}u2").tobytes()
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_of_sixteen_bits(order):
    picture = np.asarray(scene())
    found = as_shown(open_picture(planes(np.moveaxis(picture, 2, 0).astype(np.uint16) * 257, order)))
    np.testing.assert_array_equal(found, picture)
    found = as_shown(open_picture(tiff([[0, 0x1234, 0x8000, 0xFFFF]], 16, 1, order, {284: 2})))
    assert np.asarray(found)[0, :, 0].tolist() == [0, 0x12, 0x80, 0xFF]


def test_signed_numbers_are_refused():
    with pytest.raises(OSError, match="its pixels are signed numbers; expected numbers without a sign"):
        open_picture(tiff([[0, 1, 128, 255]], 8, 1, tags={339: 2}))


@pytest.mark.parametrize("transfer", [16, 18])
def test_a_high_dynamic_range_is_refused(transfer):
    row = [bytes(range(12))]
    with pytest.raises(OSError, match="its dynamic range is high \\(PQ or HLG\\); expected sRGB"):
        open_picture(png(row, 8, 2, (b"cICP", bytes([9, transfer, 0, 1])), width=4))
    assert open_picture(png(row, 8, 2, (b"cICP", bytes([1, 13, 0, 1])), width=4))
    file = encode(scene(), "AVIF")
    place = file.index(b"colrnclx") + len(b"colrnclx")
    high = file[:place] + struct.pack(">HH", 9, transfer) + file[place + 4 :]
    with pytest.raises(OSError, match="its dynamic range is high"):
        open_picture(high)


def test_long_texts_and_large_profiles_of_pngs():
    history = PngImagePlugin.PngInfo()
    history.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    large = profile()
    large = large[:128] + large[128:].ljust(3_000_000, b"\0")
    large = struct.pack(">I", len(large)) + large[4:]
    for options in ({"pnginfo": history}, {"icc_profile": large}):
        found = as_shown(open_picture(encode(scene(), **options)))
        plain = {} if "pnginfo" in options else {"icc_profile": profile()}
        np.testing.assert_array_equal(found, as_shown(open_picture(encode(scene(), **plain))))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused(mode):
    with pytest.raises(OSError, match=f"its pixels are numbers of 32 bits \\(mode {mode}\\); expected 8 or 16"):
        transforms.render(encode(scene().convert(mode), "TIFF"), WHOLE, SIDE)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colors_become_those_of_srgb(format):
    file = encode(scene(), format, icc_profile=profile(), **FORMATS[format])
    stored = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) / 255
    expected = in_srgb(stored ** ADOBE[1] @ (np.linalg.inv(SRGB) @ ADOBE[0]).T)
    found = np.asarray(as_shown(open_picture(file)))
    # Dark colors out of the gamut differ the most, as the steps of 8 bits are large there.
    assert np.abs(found - expected).mean() < 0.5 and np.percentile(np.abs(found - expected), 99) < 3
    assert np.abs(found - 255 * stored).mean() > 3


def test_gray_becomes_that_of_srgb():
    file = encode(scene().convert("L"), icc_profile=profile(gamma=1.8, space=b"GRAY"))
    expected = in_srgb((np.asarray(scene().convert("L")) / 255) ** 1.8)
    assert difference(np.asarray(as_shown(open_picture(file)))[..., 0], expected) <= 2
    # The profile of a color picture does not fit gray, but as R = G = B it does.
    file = encode(scene().convert("L"), icc_profile=profile(SRGB, 1.8))
    assert difference(np.asarray(as_shown(open_picture(file)))[..., 1], expected) <= 2


def test_a_profile_of_gray_with_clear_pixels():
    gray, options = cutout("LA"), {"icc_profile": profile(gamma=1.0, space=b"GRAY")}
    level, alpha = np.asarray(gray, float).transpose(2, 0, 1)
    found = np.asarray(as_shown(open_picture(encode(gray, **options))))[..., 0]
    assert (found[alpha == 0] == 255).all()
    assert difference(found, in_srgb((level * alpha + 255 * (255 - alpha)) / 255 / 255)) <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA"])
def test_the_gamma_of_a_png(mode):
    picture = cutout("LA") if mode == "LA" else scene().convert(mode)
    file = encode(picture)
    shown, clear = np.asarray(as_shown(open_picture(file)), float), np.asarray(picture.convert("RGBA"))[..., 3:]

    def with_chunks(*chunks):
        added = (
            struct.pack(">I", len(text)) + name + text + struct.pack(">I", zlib.crc32(name + text))
            for name, text in chunks
        )
        return as_shown(open_picture(file[:33] + b"".join(added) + file[33:]))

    linear, usual = ((b"gAMA", struct.pack(">I", value)) for value in (100_000, 45_455))
    assert difference(with_chunks(linear), in_srgb(shown / 255)) <= 1
    assert (np.asarray(with_chunks(linear))[clear[..., 0] == 0] == 255).all()
    for chunks in ([usual], [(b"sRGB", b"\0"), linear], [(b"gAMA", bytes(4))]):
        np.testing.assert_array_equal(with_chunks(*chunks), shown)
    own = (b"iCCP", b"own\0\0" + zlib.compress(profile()))
    np.testing.assert_array_equal(with_chunks(own, linear), with_chunks(own))


def cmyk_profile():
    """A color profile of CMYK, in which cyan and yellow have changed places."""
    grid = np.linspace(0, 1, 9)
    ink = np.stack(np.meshgrid(*[grid] * 4, indexing="ij"), -1)
    light = ((1 - ink[..., 2::-1]) * (1 - ink[..., 3:])) ** 2.2 @ SRGB.T / SRGB.sum(1)
    root = np.where(light > 0.008856, np.cbrt(light), 7.787 * light + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    lab = np.stack([(116 * y - 16) * 652.8, (500 * (x - y) + 128) * 256, (200 * (y - z) + 128) * 256], -1)
    unchanged = struct.pack(">HH", 0, 65535)
    table = (
        b"mft2\0\0\0\0\x04\x03\x09\0"
        + struct.pack(">9i", *(np.eye(3, dtype=int).ravel() * 65536))
        + struct.pack(">HH", 2, 2)
        + unchanged * 4
        + np.clip(np.rint(lab), 0, 65535).astype(">u2").tobytes()
        + unchanged * 3
    )
    header = struct.pack(">I4sI4s4s4s", 144 + len(table), b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    header = header.ljust(36, b"\0") + b"acsp"
    header = (header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0")
    return header + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_colors_of_cmyk_become_those_of_srgb(format):
    picture = scene().convert("CMYK")
    options = {**FORMATS[format], "icc_profile": cmyk_profile()}
    found = np.asarray(as_shown(open_picture(encode(picture, format, **options))))
    assert difference(found, np.asarray(scene())[..., ::-1]) < 12
    assert difference(found, scene()) > 30


def test_a_profile_of_transparent_pictures():
    file = encode(cutout("RGBA"), icc_profile=profile())
    found = np.asarray(as_shown(open_picture(file)))
    assert (found[0, 0] == 255).all() and difference(found, as_shown(open_picture(encode(cutout("RGBA"))))) > 10


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "damaged", [b"no profile", profile()[:200], profile(space=b"Lab "), profile(gamma=2.2, space=b"GRAY"), b"\0" * 128]
)
def test_a_damaged_profile_does_not_cost_the_picture(mode, damaged):
    if mode == "L" and b"GRAY" in damaged:
        return  # it fits
    picture = scene().convert(mode)
    plain, with_profile = encode(picture, "JPEG"), encode(picture, "JPEG", icc_profile=damaged)
    np.testing.assert_array_equal(as_shown(open_picture(with_profile)), as_shown(open_picture(plain)))


def test_pictures_in_srgb_keep_their_values():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = encode(scene(), "JPEG", icc_profile=srgb)
    np.testing.assert_array_equal(as_shown(open_picture(file)), Image.open(io.BytesIO(file)))

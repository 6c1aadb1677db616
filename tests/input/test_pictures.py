"""Pictures are seen as a viewer shows them, and those that cost too much are refused."""

import io
import os
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from rice_jax.input import pictures, transforms
from rice_jax.input.decode import WHOLE, decode_jpeg
from rice_jax.input.pictures import TooLarge, as_shown, is_plain, open_picture, read_file
from rice_jax.input.transforms import Crop, as_stored

ORIENTATION = 0x0112
SIDE = 32
FORMATS = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "MPO": {}}


def scene(width=96, height=64):
    """A smooth picture without any symmetry."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    return Image.fromarray(np.uint8(np.stack([255 * x, 255 * y, 255 * (x * y)], -1)))


def encode(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


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


def difference(picture, other):
    return np.abs(np.asarray(picture, int) - np.asarray(other, int)).max()


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


def cutout(mode):
    """A picture whose clear pixels hold black, in a mode with transparency."""
    picture = scene()
    alpha = Image.new("L", picture.size, 0)
    alpha.paste(255, (20, 10, 70, 50))
    alpha.paste(128, (30, 20, 40, 30))
    picture.paste(0, mask=alpha.point(lambda level: 255 if level == 0 else 0))
    picture.putalpha(alpha)
    return picture.convert(mode)


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


# Columns of red, green and blue in XYZ, adapted to D50, and the exponent; of Adobe RGB (1998) and of sRGB.
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]), 2.19921875
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def profile(matrix=ADOBE[0], gamma=ADOBE[1], space=b"RGB "):
    """An ICC profile of primaries and an exponent, or for gray of an exponent."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {name + b"XYZ": xyz(column) for name, column in zip((b"r", b"g", b"b"), matrix.T, strict=True)}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(content))
        data += content
    header = struct.pack(">I4sI4s4s4s", 132 + 12 * len(tags) + len(data), b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    header = header.ljust(36, b"\0") + b"acsp"
    return (header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0") + table + data


def in_srgb(linear):
    """sRGB, 0 to 255, of linear light, 0 to 1."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


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

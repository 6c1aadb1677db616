"""Pictures, files and color profiles for tests."""

import io
import struct

import numpy as np
from PIL import Image

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


def difference(picture, other):
    return np.abs(np.asarray(picture, int) - np.asarray(other, int)).max()


def cutout(mode):
    """A picture whose clear pixels hold black, in a mode with transparency."""
    picture = scene()
    alpha = Image.new("L", picture.size, 0)
    alpha.paste(255, (20, 10, 70, 50))
    alpha.paste(128, (30, 20, 40, 30))
    picture.paste(0, mask=alpha.point(lambda level: 255 if level == 0 else 0))
    picture.putalpha(alpha)
    return picture.convert(mode)


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

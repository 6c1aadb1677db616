"""Opens pictures of any documented kind, and makes sRGB of what their files hold."""

import contextlib
import errno
import functools
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # other decoders of Pillow start programs
MAX_BYTES = 1 << 30
# Pillow's resize takes memory in proportion to a side, so a line of 25 million pixels would take a gigabyte.
MAX_SIDE = 65_535  # the longest side of a JPEG
MAX_PIXELS = 2 * 89_478_485  # Pillow's limit
# Each scan of a JPEG costs a pass over all its pixels, even if it is empty. Encoders write 1 to about 20.
MAX_SCANS = 50
SCANS_PER_DECODING = 25  # that take as long as decoding a PNG or WebP of the same size

# Pillow refuses a PNG with a larger text or color profile; editors write a megabyte of history.
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20

# Of macOS's archives, Windows, and Synology's and QNAP's disks.
_HIDDEN = {"__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "@eaDir", "#recycle", "@Recycle"}
# A segment of a JPEG; 00 and D0 to D7 after FF belong to the pixels.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
# Where a JPEG may hold a turn or a profile: cheaper to look for than to open each JPEG by Pillow.
_MARKS = b"Exif\0\0", b"tiff:Orientation", b"ICC_PROFILE\0"
# The transfer characteristics of H.273 that an AVIF and a PNG name: 16 = PQ, 18 = HLG. They stand near the beginning.
_HIGH_RANGE = {
    "AVIF": re.compile(rb"colrnclx..\0[\x10\x12]", re.DOTALL),
    "PNG": re.compile(rb"cICP.[\x10\x12]", re.DOTALL),
}
_HEAD = 1 << 16
_LEVELS = {"L;2": 85, "L;4": 17}  # {Pillow's name of a PNG's gray of few bits: what it multiplies the levels by}
_SRGB = ImageCms.createProfile("sRGB")
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # {a profile's color space: Pillow's mode}
_SRGB_TOLERANCE = 2  # levels by which sRGB profiles of various makers differ
_SRGB_GAMMA, _GAMMA_TOLERANCE = 2.2, 0.05  # PNGs in sRGB name 1 / 2.2, or a little more or less


# How the stored pixels become those that a viewer shows, by EXIF's number.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class TooLarge(OSError):
    """A picture beyond a limit."""


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Makes an OSError of whatever Pillow raises on a damaged file."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def is_hidden(name: str) -> bool:
    """Whether an operating system or a file server put a file or directory of this name among pictures."""
    return name.startswith(".") or name in _HIDDEN


def read_file(path: str | os.PathLike) -> bytes:
    """Reads a picture's file.

    Raises:
        OSError: it cannot be read, is not a regular file (devices and pipes may never end), or exceeds `MAX_BYTES`.
    """
    path = Path(path)
    try:
        status = path.stat()
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, f"no file can have this name ({error})", str(path)) from error
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if status.st_size > MAX_BYTES:
        raise TooLarge(errno.EFBIG, f"it exceeds the limit of {MAX_BYTES:,} bytes", str(path))
    return path.read_bytes()


def open_picture(encoded: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Opens a picture without decoding it; of an animation, the first picture.

    Args:
        encoded: content of the file.
        formats: Pillow's names of the formats that it may have.

    Raises:
        TooLarge: it has too many pixels, too long a side, or too many scans.
        OSError: it is not a picture of these formats, or of a high dynamic range.
    """
    try:
        picture = Image.open(io.BytesIO(encoded), formats=formats)
    except Image.DecompressionBombError as error:
        raise TooLarge(f"it exceeds the limit of {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow may raise anything on a damaged file
        found = "it is not a picture that can be read" if encoded else "it is empty"
        raise OSError(f"{found}; expected {', '.join(formats)}") from error
    require_size(picture)
    if picture.format in ("JPEG", "MPO") and _count_scans(encoded) > MAX_SCANS:
        raise TooLarge(f"it exceeds the limit of {MAX_SCANS} scans in a JPEG")
    high_range = _HIGH_RANGE.get(picture.format or "")
    # With "tmap", it is that of a second version of the picture, which Pillow does not read.
    if high_range and high_range.search(encoded, 0, _HEAD) and b"tmap" not in encoded[:_HEAD]:
        raise OSError("its dynamic range is high (PQ or HLG); expected sRGB or a color profile")
    _correct(picture)
    return picture


@decoding()
def _correct(picture: Image.Image) -> None:
    """Corrects what Pillow gets wrong about an open picture that it has not decoded yet.

    Raises:
        OSError: its pixels are signed numbers.
    """
    if isinstance(picture, PngImagePlugin.PngImageFile) and "transparency" in picture.info:
        raw, clear = picture.tile[0].args, picture.info["transparency"]  # Pillow scales the pixels, but not the color
        if raw in _LEVELS:
            picture.info["transparency"] = clear * _LEVELS[raw]
        elif raw == "RGB;16B":
            picture.info["transparency"] = tuple(level >> 8 for level in clear)
    elif isinstance(picture, TiffImagePlugin.TiffImageFile):
        tags, bits = picture.tag_v2, picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
        if picture.mode == "L" and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 2:
            raise OSError("its pixels are signed numbers; expected numbers without a sign")
        if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and bits == 16:
            # Pillow takes planes of 16 bits for planes of 8, unless they are compressed.
            order = "B" if tags.prefix == TiffImagePlugin.MM else "L"
            for place, tile in enumerate(picture.tile):
                if tile.codec_name == "raw" and isinstance(tile.args, tuple):
                    raw = picture.mode if picture.mode.startswith("I;16") else f"{tile.args[0]};16{order}"
                    picture.tile[place] = tile._replace(args=(raw, *tile.args[1:]))


def require_size(picture: Image.Image) -> None:
    """Raises `TooLarge` if a side is too long."""
    if max(picture.size) > MAX_SIDE:
        width, height = picture.size
        raise TooLarge(f"it has {width:,} × {height:,} pixels, which exceeds the limit of {MAX_SIDE:,} on a side")


def decoding_cost(picture: Image.Image, encoded: bytes) -> int:
    """The work of decoding a picture, as the number of pixels of a PNG that takes as long.

    Args:
        picture: from `open_picture`.
        encoded: content of its file.
    """
    pixels = picture.width * picture.height
    return pixels * _count_scans(encoded) // SCANS_PER_DECODING if picture.format in ("JPEG", "MPO") else pixels


def _count_scans(encoded: bytes) -> int:
    """The scans of a JPEG, at most; above `MAX_SCANS`, what follows its end, such as a phone's film, does not count."""
    place, scans = 2, encoded.count(b"\xff\xda")
    if scans <= MAX_SCANS:
        return scans
    scans = 0
    while (marker := _MARKER.search(encoded, place)) and marker[0] != b"\xff\xd9" and scans <= MAX_SCANS:
        scans += marker[0] == b"\xff\xda"
        place = _segment_end(encoded, marker)
    return scans


def _segment_end(encoded: bytes, marker: re.Match[bytes]) -> int:
    return marker.end() + int.from_bytes(encoded[marker.end() : marker.end() + 2], "big")


def orientation(picture: Image.Image) -> int:
    """EXIF's number for how a viewer turns the stored pixels, 1..8; 1 = not at all, or the EXIF data are damaged.

    A picture other than a JPEG must be loaded: Pillow turns a TIFF itself, and a PNG's EXIF may follow its pixels.
    """
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow may raise anything on damaged EXIF data
        return 1
    return found if found in range(1, 9) else 1


@decoding()
def as_shown(picture: Image.Image) -> Image.Image:
    """The pixels of an open picture as a viewer shows them on white: RGB, in sRGB, and turned.

    Raises:
        OSError: it cannot be decoded.
    """
    shown = to_rgb(picture)
    turn = orientation(picture)
    return shown.transpose(TURNS[turn]) if turn in TURNS else shown


def to_rgb(picture: Image.Image) -> Image.Image:
    """The pixels of a picture as a viewer shows them on white, in sRGB, but not turned.

    Args:
        picture: of any mode. Its color profile is ignored if it is damaged or does not fit the picture.

    Returns:
        RGB; `picture` itself if it is RGB already.

    Raises:
        OSError: its pixels are numbers without a defined white, or it cannot be decoded.
    """
    picture.load()
    if picture.mode.startswith("I;16"):
        picture = _scaled(picture)
    elif picture.mode in ("I", "F"):
        raise OSError(f"its pixels are numbers of 32 bits (mode {picture.mode}); expected 8 or 16 bits")
    profile = picture.info.get("icc_profile")
    gamma = None if profile or "srgb" in picture.info else picture.info.get("gamma")
    if picture.has_transparency_data:
        opaque = "L" if picture.mode in ("L", "LA") else "RGB"  # a profile of gray fits gray only
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(opaque)
    if profile:
        picture = _to_srgb(picture, profile)
    elif gamma and abs(gamma * _SRGB_GAMMA - 1) > _GAMMA_TOLERANCE:
        picture = picture.convert("RGB").point(_gamma_levels(gamma) * 3)
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # convert() would copy an RGB picture


def _scaled(picture: Image.Image) -> Image.Image:
    """Gray of 8 bits from gray of 16, or of 12 in a TIFF, where 0 may be white."""
    levels, tags = np.asarray(picture).astype(np.uint32), getattr(picture, "tag_v2", {})
    white = 2 ** tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        levels = white - levels
    scaled = Image.fromarray(((levels * 255 + white // 2) // white).astype(np.uint8))
    scaled.info = {name: value for name, value in picture.info.items() if name != "transparency"}
    if "transparency" in picture.info:  # the level that is clear
        scaled.putalpha(Image.fromarray(np.where(levels == picture.info["transparency"], 0, 255).astype(np.uint8)))
    return scaled


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    mode, convert = _conversion(profile)
    if convert is None:
        return picture
    if mode == "RGB" and picture.mode != "CMYK":
        picture = picture.convert("RGB")
    return convert.apply(picture) if picture.mode == mode else picture


@functools.lru_cache(maxsize=8)
def _gamma_levels(gamma: float) -> list[int]:
    """What the levels of a PNG that names an exponent are in sRGB."""
    linear = (np.arange(256) / 255) ** (1 / gamma)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * srgb).astype(int).tolist()


def is_plain(encoded: bytes) -> bool:
    """Whether the decoded pixels of a JPEG are those that a viewer shows: it is not turned, and in sRGB."""
    end = _first_scan(encoded)
    if not any(encoded.find(mark, 0, end) >= 0 for mark in _MARKS):
        return True
    try:
        picture = open_picture(encoded)
    except OSError:
        return False
    profile = picture.info.get("icc_profile")
    return orientation(picture) == 1 and (not profile or _conversion(profile)[1] is None)


def _first_scan(encoded: bytes) -> int:
    """Where a JPEG's first scan begins, or the end of the file if what should be a segment before it is none."""
    place = 2
    while (marker := _MARKER.match(encoded, place)) and marker[0] != b"\xff\xda":
        place = _segment_end(encoded, marker)
    return place if marker else len(encoded)


@functools.lru_cache(maxsize=8)
def _conversion(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode of a profile's pictures and what turns them into sRGB.

    Returns:
        None in place of a conversion for sRGB itself, so that its pictures keep their values, and a damaged profile.
    """
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES[opened.profile.xcolor_space]
        convert = ImageCms.buildTransform(opened, _SRGB, mode, "RGB")
        if mode == "RGB":
            probe = np.mgrid[0:256:17, 0:256:17, 0:256:17].reshape(3, 64, 64).transpose(1, 2, 0).astype(np.uint8)
            change = np.asarray(convert.apply(Image.fromarray(np.ascontiguousarray(probe)))) - probe.astype(int)
            if np.abs(change).max() <= _SRGB_TOLERANCE:
                return mode, None
        return mode, convert
    except Exception:  # a damaged profile must not cost the picture
        return "", None

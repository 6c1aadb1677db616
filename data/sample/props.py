"""Draws the surroundings of the products in a clip: set, light, hands, price banners."""

import functools
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

_ARM = 380  # pixels from the grip to the end of the arm, which must lie outside the frame
NOISE_ROOM = 64
SOLID = [255 * (a > 96) for a in range(256)]  # pixels with a larger alpha belong to the object
_SKIN = ((255, 219, 190), (241, 194, 160), (224, 172, 125), (190, 130, 90), (141, 85, 54), (95, 60, 42))


def background(
    paths: Sequence[pathlib.Path], width: int, height: int, rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[float, float]]]:
    """Crops a set from a photograph, with a table or shelves in front of it.

    Args:
        paths: photographs.
        width: in pixels.
        height: in pixels.
        rng: the only source of randomness.

    Returns:
        (RGB picture of width x height, list of (min y, max y) on which objects can stand).
    """
    picture = _cut(_any_photo(paths, rng), width, height, rng)
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.3, 1.2))
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.65, 1.25))
    if rng.random() < 0.4:  # a plain wall with the photograph as a faint pattern
        wall = tuple(int(c) for c in rng.uniform(60, 235) * rng.uniform(0.75, 1, 3))
        picture = Image.blend(picture, Image.new("RGB", picture.size, wall), rng.uniform(0.3, 0.85))
    blur = rng.uniform(0, 7)
    if blur > 0.5:
        picture = picture.filter(ImageFilter.BoxBlur(blur))
    if rng.random() < 0.5:
        return picture, [_add_table(picture, paths, rng)]
    shares = [rng.uniform(0.2, 0.3), rng.uniform(0.86, 0.97)]
    if rng.random() < 0.6:
        shares.insert(1, rng.uniform(0.48, 0.62))
    color = rng.uniform(50, 235) * np.array([1, rng.uniform(0.7, 1), rng.uniform(0.5, 1)])
    return picture, [_add_shelf(picture, round(height * share), color, rng) for share in shares]


def _add_table(picture, paths, rng):
    """Draws a table over the lower part: a plain color with reflections of another photograph."""
    far = int(picture.height * rng.uniform(0.45, 0.7))
    top = _cut(_any_photo(paths, rng), picture.width, picture.height - far, rng)
    top = ImageEnhance.Color(top).enhance(0.25).filter(ImageFilter.BoxBlur((14, 5)))
    color = Image.new("RGB", top.size, tuple(int(c) for c in rng.uniform(60, 235) * rng.uniform(0.85, 1, 3)))
    edge = Image.new("L", top.size, 255)
    edge.paste(120, (0, 0, top.width, 2))
    picture.paste(Image.blend(color, top, rng.uniform(0.1, 0.4)), (0, far), edge)
    return far + 6, picture.height


def _add_shelf(picture, y, color, rng):
    """Draws a shelf with its shadow."""
    thickness = int(rng.integers(4, 10))
    dark = np.repeat(np.linspace(110, 0, 18)[:, None], picture.width, 1).astype(np.uint8)
    picture.paste((10, 8, 8), (0, y + thickness), Image.fromarray(dark))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, y, picture.width, y + thickness), fill=tuple(int(c) for c in color * 0.8))
    draw.line((0, y, picture.width, y), fill=tuple(int(c) for c in color), width=2)
    return y + 1, y + 1


def _any_photo(paths, rng):
    return _photo(str(paths[int(rng.integers(len(paths)))]))


def _cut(photo, width, height, rng):
    zoom = rng.uniform(1.0, 2.2)
    scale = max(width / photo.width, height / photo.height) * zoom
    w, h = width / scale, height / scale
    x, y = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
    picture = photo.resize((width, height), Image.Resampling.BILINEAR, (x, y, x + w, y + h))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


@functools.lru_cache(maxsize=32)
def _photo(path):
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None


class Tone:
    """The color cast, saturation, contrast and exposure of a clip."""

    def __init__(self, clutter: float, rng: np.random.Generator):
        cast = 1 + clutter * np.array([rng.uniform(-0.1, 0.1), rng.uniform(-0.05, 0.05), rng.uniform(-0.12, 0.12)])
        saturation = 1 + clutter * rng.uniform(-0.3, 0.2)
        gray = np.array([0.299, 0.587, 0.114])
        mix = saturation * np.eye(3) + (1 - saturation) * gray
        self.matrix = tuple(float(v) for v in np.hstack([cast[:, None] * mix, np.zeros((3, 1))]).ravel())
        self.exposure = 1 + clutter * rng.uniform(-0.22, 0.2)
        self.gamma = 1 + clutter * rng.uniform(-0.15, 0.2)
        self.black = clutter * rng.uniform(0, 18)

    def apply(self, picture: Image.Image, exposure: float) -> Image.Image:
        """Returns an RGB picture in this tone; `exposure` is a factor for this frame."""
        x = np.arange(256) / 255 * self.exposure * exposure
        curve = self.black + (255 - self.black) * np.clip(x, 0, 1) ** self.gamma
        return picture.convert("RGB", self.matrix).point([int(v) for v in np.rint(curve)] * 3)


def noise(width: int, height: int, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Draws sensor noise around 128, NOISE_ROOM pixels larger than a frame so that each frame uses another part."""
    shape = (height + NOISE_ROOM, width + NOISE_ROOM)
    gray, color = rng.standard_normal((*shape, 1), np.float32), rng.standard_normal((*shape, 3), np.float32)
    values = 128 + sigma * gray + sigma / 2 * color
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def lit(sprite: Image.Image, gain: float) -> Image.Image:
    """Brightens or darkens an RGBA picture."""
    curve = [min(255, round(gain * v)) for v in range(256)]
    return sprite.point(curve * 3 + list(range(256)))


def soften(picture: Image.Image, share: float) -> Image.Image:
    """Scales a picture down to a share of its size and up again, as a stream does."""
    small = (round(picture.width * share), round(picture.height * share))
    return picture.resize(small, Image.Resampling.BILINEAR).resize(picture.size, Image.Resampling.BILINEAR)


def smear(sprite: Image.Image, length: int, angle: float) -> Image.Image:
    """Blurs an RGBA picture along a line, as motion does."""
    steps = max(2, length // 2 + 1)
    shifts = np.rint(np.outer(np.linspace(0, length, steps), [math.cos(angle), math.sin(angle)])).astype(int)
    shifts -= shifts.min(0)
    room_x, room_y = shifts.max(0)
    source = np.asarray(sprite.convert("RGBa"), np.uint16)
    height, width = source.shape[:2]
    total = np.zeros((height + room_y, width + room_x, 4), np.uint16)
    for x, y in shifts:
        total[y : y + height, x : x + width] += source
    mean = (total // steps).astype(np.uint8)
    return Image.frombuffer("RGBa", (mean.shape[1], mean.shape[0]), mean.tobytes(), "raw", "RGBa", 0, 1).convert("RGBA")


def shadow(picture: Image.Image, x: float, bottom: float, width: float) -> None:
    """Darkens the ground below an object."""
    mask = _shadow_mask().resize((max(4, round(width * 1.15)), max(4, round(width * 0.2))))
    picture.paste((12, 10, 10), (round(x - mask.width / 2), round(bottom - mask.height * 0.6)), mask)


@functools.cache
def _shadow_mask():
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    return Image.fromarray((150 * np.clip(1 - np.hypot(x, y), 0, 1)).astype(np.uint8))


class Host:
    """The person who shows the products: the colors of skin and sleeve."""

    def __init__(self, rng: np.random.Generator):
        self.skin = np.array(_SKIN[int(rng.integers(len(_SKIN)))]) * rng.uniform(0.85, 1.0)
        self.sleeve = rng.uniform(20, 235, 3) if rng.random() < 0.6 else None

    def hand(self, product_size: float, rng: np.random.Generator) -> "Hand":
        """Draws a hand and arm in a size that suits the product."""
        length = float(np.clip(product_size * rng.uniform(0.5, 0.7), 46, 110))
        side = 1 if rng.random() < 0.5 else -1
        turn = rng.uniform(-15, 65)
        layers = []
        for picture in (_draw_hand(length, self.skin, self.sleeve), _draw_thumb(length, self.skin)):
            picture = picture.filter(ImageFilter.BoxBlur(0.6)).rotate(turn, Image.Resampling.BILINEAR)
            layers.append(picture if side > 0 else picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        return Hand(layers, side)


class Hand:
    """A hand in two layers: the complete hand, and the thumb, which covers the held product.

    The center of a layer is the grip.
    """

    def __init__(self, layers: Sequence[Image.Image], side: int):
        self.layers, self.side = layers, side

    def paste(self, frame: Image.Image, ids: Image.Image, x: float, y: float, thumb_only: bool) -> None:
        """Pastes the hand with its grip at x, y, and clears the pixels that it covers in `ids`."""
        layer = self.layers[thumb_only]
        x, y = round(x) - layer.width // 2, round(y) - layer.height // 2
        box = (max(0, -x), max(0, -y), min(layer.width, frame.width - x), min(layer.height, frame.height - y))
        if box[0] >= box[2] or box[1] >= box[3]:
            return
        part = layer.crop(box)
        alpha = part.getchannel("A")
        frame.paste(part, (x + box[0], y + box[1]), alpha)
        ids.paste(0, (x + box[0], y + box[1]), alpha.point(SOLID))


def _draw_hand(length, skin, sleeve):
    """Draws a right hand from below, fingers up; `length` is the length of palm and fingers in pixels."""
    unit, far = length / 10, 10 * _ARM / length
    picture, limb = _canvas(_ARM, unit)
    dark = skin * 0.84
    limb([(0.3, 4.5), (0.6, far)], 3.0, dark)
    limb([(0.2, 4.5), (0.5, far)], 2.7, skin)
    if sleeve is not None:
        limb([(0.5, 9.0), (0.6, far)], 4.2, sleeve * 0.85)
        limb([(0.4, 9.0), (0.5, far)], 3.8, sleeve)
    for x, top, lean in ((-1.5, -4.6, -0.5), (-0.4, -5.2, -0.1), (0.7, -4.9, 0.2), (1.7, -3.8, 0.6)):
        limb([(x, 0.5), (x + lean, top)], 1.25, dark)
        limb([(x, 0.5), (x + lean, top)], 1.0, skin)
    limb([(-0.6, 0.8), (0.9, 0.8), (0.8, 3.2), (-0.5, 3.2)], 3.0, skin)
    limb([(-1.6, 3.0), (-2.6, 1.0)], 1.5, skin)
    return picture


def _draw_thumb(length, skin):
    unit = length / 10
    picture, limb = _canvas(round(4 * unit), unit)
    limb([(-1.9, 2.2), (-2.6, 0.0), (-1.9, -1.8)], 1.5, skin * 0.84)
    limb([(-1.9, 2.2), (-2.55, 0.0), (-1.9, -1.8)], 1.25, skin)
    return picture


def _canvas(radius, unit):
    """Returns an empty square picture and a function that draws rounded polylines, in units from its center."""
    picture = Image.new("RGBA", (2 * radius, 2 * radius), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)

    def limb(points, width, color):
        points = [(radius + unit * x, radius + unit * y) for x, y in points]
        color = (*(int(c) for c in color), 255)
        draw.line(points, fill=color, width=round(unit * width), joint="curve")
        for x, y in points:
            end = unit * width / 2
            draw.ellipse((x - end, y - end, x + end, y + end), fill=color)

    return picture, limb


def banner(width: int, rng: np.random.Generator) -> Image.Image:
    """Draws a price banner, an overlay of the streaming software."""
    price = int(rng.integers(9, 400))
    text = ("NOW {}.90", "ONLY {}", "LIVE OFFER {}.00", "-30%  {}.50", "BUY 1 GET 1  {}")[int(rng.integers(5))].format(
        price
    )
    size = int(rng.integers(14, 30))
    font = _font(size)
    left, top, right, bottom = font.getbbox(text)
    w, h = min(width - 8, int(right - left) + 2 * size), int(bottom - top) + size
    picture = Image.new("RGBA", (w, h), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    back = tuple(int(c) for c in rng.permutation([rng.uniform(180, 255), rng.uniform(20, 90), rng.uniform(20, 200)]))
    draw.rounded_rectangle((0, 0, w - 1, h - 1), int(rng.integers(0, h // 2)), fill=(*back, 235))
    fill = (255, 255, 255) if sum(back) < 500 else (30, 20, 20)
    draw.text(((w - (right - left)) / 2 - left, (h - (bottom - top)) / 2 - top), text, fill=fill, font=font)
    return picture


@functools.cache
def _font(size):
    return ImageFont.load_default(size)

"""Draws the pictures of product pages, and edits short videos out of shots of a product."""

import functools
import io
import math
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import plan, props, scene, shop
from .phrases import ENGLISH

SIDE = 240  # of a page's picture, pixels
MAX_PICTURES = 5  # of a page
PICTURES = (  # of a page after the first, each with its probability
    ("packshot", 0.35),
    ("room", 0.25),
    ("detail", 0.2),
    ("collage", 0.2),
)
CATALOG = 0.3  # probability that a page begins with the catalog's own picture
OFFER = 0.35  # probability that its first picture has an offer printed on it
MIN_FRAMES, MAX_FRAMES = 8, 16  # of a short video, one a second
MAX_SHOTS = 4
SHOTS = (  # of a short video, each with its probability
    ("close", 0.45),
    ("turn", 0.25),
    ("set", 0.3),
)
TITLE_CARD = 0.3  # probability that a video begins with a second of text and nothing else
CAPTION = 0.7  # probability that a shot has a caption


def page(
    product_id: str,
    name: str,
    backgrounds: Sequence[pathlib.Path],
    directory: str | pathlib.Path,
    rng: np.random.Generator,
) -> list[bytes]:
    """Draws the pictures of a product page: one that shows the whole product, and up to four others.

    Args:
        product_id: the product.
        name: what offers call it.
        backgrounds: paths of photographs.
        directory: the product directory.
        rng: the only source of randomness.

    Returns:
        JPEG files, square.

    Raises:
        ValueError: a picture is damaged or shows nothing.
    """
    views = scene.load_views(str(directory), product_id)
    if rng.random() < CATALOG:
        catalog = Image.open(shop.image_path(directory, product_id)).convert("RGB")
        first = catalog.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    else:
        first = _packshot(views, backgrounds, rng)
    if rng.random() < OFFER:
        _write(first, _offer(name, rng), 0.88 if rng.random() < 0.7 else 0.1, rng)
    others = _others(int(rng.integers(MAX_PICTURES)), views, backgrounds, rng)
    quality = int(rng.integers(75, 93))
    return [_jpeg(picture, quality) for picture in (first, *others)]


def further(
    product_id: str,
    count: int,
    backgrounds: Sequence[pathlib.Path],
    directory: str | pathlib.Path,
    rng: np.random.Generator,
) -> list[bytes]:
    """Draws pictures of a product as they follow the first one of its page.

    Args:
        product_id: the product.
        count: number of pictures, 0 or more.
        backgrounds: paths of photographs.
        directory: the product directory.
        rng: the only source of randomness.

    Returns:
        JPEG files, square.

    Raises:
        ValueError: a picture is damaged or shows nothing.
    """
    pictures = _others(count, scene.load_views(str(directory), product_id), backgrounds, rng)
    return [_jpeg(picture, int(rng.integers(75, 93))) for picture in pictures]


def _others(count, views, backgrounds, rng):
    draw = {"packshot": _packshot, "room": _room, "detail": _detail, "collage": _collage}
    return [draw[_choose(PICTURES, rng)](views, backgrounds, rng) for _ in range(count)]


def short_video(
    product_id: str,
    name: str,
    nearby: Sequence[str],
    backgrounds: Sequence[pathlib.Path],
    directory: str | pathlib.Path,
    rng: np.random.Generator,
) -> list[bytes]:
    """Draws the frames of a short video: shots of a product, cut hard, with captions in the picture.

    Args:
        product_id: the product.
        name: what captions call it.
        nearby: other products, of which some shots have one or two.
        backgrounds: paths of photographs.
        directory: the product directory.
        rng: the only source of randomness.

    Returns:
        JPEG files, 270×480.

    Raises:
        ValueError: a picture is damaged or shows nothing.
    """
    views = scene.load_views(str(directory), product_id)
    count = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
    cuts = np.sort(rng.choice(np.arange(1, count), int(rng.integers(1, MAX_SHOTS)), replace=False))
    frames: list[Image.Image] = []
    for start, end in zip([0, *cuts], [*cuts, count], strict=True):
        kind, length = _choose(SHOTS, rng), int(end - start)
        if kind == "set":
            shot = _on_set(product_id, views, nearby, length, backgrounds, directory, rng)
        else:
            shot = (_close if kind == "close" else _turn)(views, length, backgrounds, rng)
        caption = _caption(name, rng) if rng.random() < CAPTION else ""
        place = 0.8 if rng.random() < 0.7 else 0.14
        style = rng.spawn(1)[0].bit_generator.state  # all frames of a shot have its caption in one style
        for picture in shot:
            if caption:
                _write(picture, caption, place, _generator(style))
            frames.append(picture)
    if rng.random() < TITLE_CARD:
        frames[0] = _backdrop((plan.WIDTH, plan.HEIGHT), rng)
        _write(frames[0], _offer(name, rng), 0.45, rng)
    tone, softness, quality = props.Tone(0.5, rng), rng.uniform(0.7, 1), int(rng.integers(50, 86))
    return [_jpeg(tone.apply(props.soften(picture, softness), 1), quality) for picture in frames]


def _on_set(product_id, views, nearby, length, backgrounds, directory, rng):
    """The product in a hand or standing, as in a livestream, but with little around it."""
    settings = plan.Settings(1, 1, max_distractors=2, clutter=0.3)
    on = scene.draw_set(backgrounds, settings, length, rng)
    path = plan.plan_intended(len(views), length, 1, rng, np.ones(length, bool))
    others = plan.choose_distractors(nearby, [], settings, rng)
    for picture, _ in scene.act(product_id, path, others, on, 0, directory, settings, rng):
        yield picture


def _close(views, length, backgrounds, rng) -> Iterator[Image.Image]:
    """A view that is larger than the picture or nearly so, while the camera moves along it."""
    size = (plan.WIDTH, plan.HEIGHT)
    back = _behind(size, backgrounds, rng)
    view, start, pace = _any(views, rng), rng.uniform(0.85, 1.5), rng.uniform(-0.06, 0.1)
    sway, angle = plan.wave(np.arange(length), 0.12, rng), rng.uniform(-12, 12)
    rise = rng.uniform(0.42, 0.58)
    for t in range(length):
        picture = back.copy()
        _paste(picture, view, (start + pace * t) * plan.WIDTH, (0.5 + sway[t], rise), angle)
        yield picture


def _turn(views, length, backgrounds, rng) -> Iterator[Image.Image]:
    """The product turning on a plain backdrop."""
    back, first = _backdrop((plan.WIDTH, plan.HEIGHT), rng), int(rng.integers(len(views)))
    side, rise, step = rng.uniform(0.5, 0.8) * plan.WIDTH, rng.uniform(0.4, 0.6), 1 if rng.random() < 0.5 else -1
    for t in range(length):
        picture = back.copy()
        _paste(picture, views[(first + step * t) % len(views)], side, (0.5, rise), 0, shadow=True)
        yield picture


def _packshot(views, backgrounds, rng):
    picture = _backdrop((SIDE, SIDE), rng)
    _paste(picture, _any(views, rng), rng.uniform(0.5, 0.8) * SIDE, (0.5, 0.5), 0, shadow=True)
    return picture


def _room(views, backgrounds, rng):
    picture, stands = props.background(backgrounds, SIDE, SIDE, rng)
    low, high = stands[int(rng.integers(len(stands)))]
    view, side = _any(views, rng), rng.uniform(0.35, 0.6) * SIDE
    bottom = max(rng.uniform(low, high), 0.55 * SIDE)
    height = side * math.sqrt(view.height / view.width)
    _paste(picture, view, side, (rng.uniform(0.35, 0.65), (bottom - height / 2) / SIDE), 0, shadow=True)
    return picture


def _detail(views, backgrounds, rng):
    picture = _backdrop((SIDE, SIDE), rng)
    center = (rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75))
    _paste(picture, _any(views, rng), rng.uniform(1.2, 1.9) * SIDE, center, rng.uniform(-8, 8))
    return picture


def _collage(views, backgrounds, rng):
    picture = _backdrop((SIDE, SIDE), rng)
    for place, number in enumerate(rng.integers(0, len(views), 4)):
        center = (0.26 + 0.48 * (place % 2), 0.26 + 0.48 * (place // 2))
        _paste(picture, views[int(number)], 0.36 * SIDE, center, 0)
    return picture


def _behind(size, backgrounds, rng):
    return _backdrop(size, rng) if rng.random() < 0.4 else props.background(backgrounds, *size, rng)[0]


def _backdrop(size, rng):
    """A studio's backdrop: white, or a color that fades from top to bottom."""
    if rng.random() < 0.45:
        return Image.new("RGB", size, (int(rng.integers(240, 256)),) * 3)
    color = rng.uniform(120, 250) * rng.uniform(0.8, 1, 3)
    fade = np.linspace(1.05, rng.uniform(0.75, 1), size[1])[:, None, None]
    return Image.fromarray(np.broadcast_to(np.clip(color * fade, 0, 255), (size[1], size[0], 3)).astype(np.uint8))


def _paste(picture, view, side, center, angle, shadow=False):
    """Pastes a view with sides of geometric mean `side`; its center is given in shares of the picture."""
    scale = side / math.sqrt(view.width * view.height)
    if shadow:  # then it stands, and must fit
        scale = min(scale, 0.92 * picture.width / view.width, 0.92 * picture.height / view.height)
    shape = (max(2, round(view.width * scale)), max(2, round(view.height * scale)))
    sprite = view.resize(shape, Image.Resampling.BICUBIC)
    if angle:
        sprite = sprite.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    x, y = (share * length for share, length in zip(center, picture.size, strict=True))
    if shadow:
        props.shadow(picture, x, y + sprite.height / 2, sprite.width)
    picture.paste(sprite, (round(x - sprite.width / 2), round(y - sprite.height / 2)), sprite.getchannel("A"))


def _caption(name, rng):
    """What a caption says. Captions are in English: Pillow's own font has no Chinese characters."""
    quality = ENGLISH.qualities[int(rng.integers(len(ENGLISH.qualities)))]
    captions = ("{name}", "so {quality}!", "{quality} {name}", "look at this", "every detail", "my favorite {name}")
    return captions[int(rng.integers(len(captions)))].format(name=name, quality=quality)


def _offer(name, rng):
    price = int(rng.integers(9, 400))
    return ("NEW: {name}", "ONLY {price}.90", "{name} -30%", "FREE SHIPPING")[int(rng.integers(4))].format(
        name=name, price=price
    )


def _write(picture, text, place, rng):
    """Writes a text around the height `place`, a share of the picture's, in as many lines as it needs."""
    font = _font(int(picture.width * rng.uniform(0.075, 0.11)))
    fill = ("white", "#ffe14d", "#222222")[int(rng.choice(3, p=(0.6, 0.25, 0.15)))]
    draw, lines = ImageDraw.Draw(picture), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if draw.textlength(longer, font) < 0.9 * picture.width else [*lines, word]
    draw.multiline_text(
        (picture.width / 2, place * picture.height),
        "\n".join(filter(None, lines)),
        fill=fill,
        font=font,
        anchor="mm",
        align="center",
        stroke_width=2,
        stroke_fill="white" if fill == "#222222" else "#222222",
    )


@functools.cache
def _font(size):
    return ImageFont.load_default(size)


def _generator(state):
    bits = np.random.PCG64()
    bits.state = state
    return np.random.Generator(bits)


def _jpeg(picture, quality):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _choose(choices, rng):
    return choices[int(rng.choice(len(choices), p=[share for _, share in choices]))][0]


def _any(views, rng):
    return views[int(rng.integers(len(views)))]

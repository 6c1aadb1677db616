"""Renders a livestream clip: an intended product, other products, hands and banners in front of a photograph."""

import dataclasses
import functools
import io
import math
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from . import props, shop
from .plan import HEIGHT, WIDTH, Path, Settings, choose_distractors, plan_intended, run, wave

MARGIN = 16  # the camera drifts by at most this many pixels
VISIBLE_SHARE = 0.15  # a product has a box if more of it is visible
_ATTEMPTS = 10  # hand, banner and blur may hide a thin product in a whole clip


@dataclasses.dataclass(frozen=True)
class Clip:
    """Encoded frames and a list of boxes per frame, the intended product's first; empty if it is out of view."""

    frames: list[bytes]
    boxes: list[list[list[int]]]


@dataclasses.dataclass(frozen=True)
class VideoSet:
    """The properties of a video that are the same for all its products."""

    back: Image.Image  # with a MARGIN on all sides, in which the camera moves
    stands: list[tuple[float, float]]
    tone: props.Tone
    host: props.Host
    softness: float
    noise: Image.Image | None
    camera_x: np.ndarray  # [frames] int
    camera_y: np.ndarray
    exposure: np.ndarray


def render(
    product_id: str,
    shop_ids: Sequence[str],
    elsewhere_ids: Sequence[str],
    backgrounds: Sequence[pathlib.Path],
    directory: str | pathlib.Path,
    settings: Settings,
    annotated_every: int,
    rng: np.random.Generator,
) -> Clip:
    """Renders a clip.

    Args:
        product_id: the intended product.
        shop_ids: other products of the same livestream, from which most distractors are drawn.
        elsewhere_ids: products of other livestreams.
        backgrounds: paths of photographs.
        directory: the product directory.
        settings: the settings of all clips.
        annotated_every: the product is in view in at least one of the frames 0, annotated_every, ...
        rng: the only source of randomness.

    Raises:
        ValueError: a picture is damaged or shows nothing.
    """
    views = load_views(str(directory), product_id)
    for _ in range(_ATTEMPTS):
        count = int(rng.integers(settings.min_frames, settings.max_frames + 1))
        distractors = choose_distractors(shop_ids, elsewhere_ids, settings, rng)
        path = plan_intended(len(views), count, annotated_every, rng)
        stage = _Stage(path, distractors, backgrounds, directory, settings, count, rng)
        clip = _film(stage, views, count)
        if any(clip.boxes[::annotated_every]):
            return clip
    raise ValueError(
        f"{shop.views_path(directory, product_id)}: found the product hidden in every frame of {_ATTEMPTS} clips, "
        f"expected it to be visible; check whether its views are nearly transparent"
    )


def draw_set(backgrounds: Sequence[pathlib.Path], settings: Settings, count: int, rng: np.random.Generator) -> VideoSet:
    """Draws the set of a video.

    Args:
        backgrounds: paths of photographs.
        settings: the settings of all clips.
        count: number of frames.
        rng: the only source of randomness.
    """
    clutter, time = settings.clutter, np.arange(count)
    back, stands = props.background(backgrounds, WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN, rng)
    drift = clutter * MARGIN * rng.uniform(0, 0.9)
    return VideoSet(
        back=back,
        stands=stands,
        tone=props.Tone(clutter, rng),
        host=props.Host(rng),
        softness=rng.uniform(0.6, 0.95),
        noise=props.noise(WIDTH, HEIGHT, rng.uniform(1.5, 5), rng) if rng.random() < 0.4 * clutter else None,
        camera_x=np.rint(MARGIN + drift * wave(time, 1, rng)).astype(int),
        camera_y=np.rint(MARGIN + drift * wave(time, 1, rng)).astype(int),
        exposure=1 + clutter * wave(time, 0.06, rng),
    )


def act(
    product_id: str | None,
    path: Path,
    distractors: Sequence[str],
    video_set: VideoSet,
    start: int,
    directory: str | pathlib.Path,
    settings: Settings,
    rng: np.random.Generator,
) -> Iterator[tuple[Image.Image, bool]]:
    """Renders a part of a video.

    Args:
        product_id: the product that is shown; None = none.
        path: the product's path, which has the length of the part.
        distractors: ids of the other products.
        video_set: the set of the video.
        start: the part's first frame in the video.
        directory: the product directory.
        settings: the settings of all clips.
        rng: the only source of randomness.

    Yields:
        (RGB picture, whether the product counts as in view).
    """
    views = load_views(str(directory), product_id) if product_id else ()
    count = len(path.shown)
    stage = _Stage(path, distractors, None, directory, settings, count, rng, video_set, start)
    for t in range(count):
        picture, ids, full = stage.draw(t, views)
        yield picture, bool(_boxes(ids, full))


def _film(stage, views, count):
    frames, boxes = [], []
    for t in range(count):
        picture, ids, full = stage.draw(t, views)
        boxes.append(_boxes(ids, full))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=stage.quality)
        frames.append(buffer.getvalue())
    return Clip(frames, boxes)


@functools.lru_cache(maxsize=160)
def load_views(directory: str, product_id: str) -> tuple[Image.Image, ...]:
    """Loads a product's views, each cropped to its opaque part.

    Returns:
        RGBA pictures.

    Raises:
        ValueError: the file is damaged or shows nothing.
    """
    path = shop.views_path(directory, product_id)
    try:
        strip = Image.open(path)
        strip.load()
    except OSError as error:
        raise ValueError(f"{path}: not a readable picture ({error}); replace it") from None
    side = strip.height
    views = []
    for i in range(strip.width // side):
        view = strip.crop((i * side, 0, (i + 1) * side, side))
        box = view.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
        if box and (box[2] - box[0]) * (box[3] - box[1]) > 64:
            views.append(view.crop(box))
    if not views:
        raise ValueError(f"{path}: found only transparent views, expected one that shows the product")
    return tuple(views)


class _Stage:
    """The constant properties of a clip: set, lighting, hands; `draw` adds the intended product in one frame.

    The clip may be a part of a video, from its frame `start`; `video_set` is then the set of the video.
    """

    def __init__(self, path, distractors, backgrounds, directory, settings, count, rng, video_set=None, start=0):
        self.path = path
        self.quality = int(rng.integers(40, 81))
        clutter = settings.clutter
        if video_set is None:
            self.back, stands = props.background(backgrounds, WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN, rng)
        else:
            self.back, stands = video_set.back.copy(), video_set.stands
        self.ids = Image.new("L", self.back.size, 0)
        self.full = {}
        self.front, self.moving = [], []
        self.ground = None if path.held else _choose_ground(stands, path.size.mean(), rng)
        self._place_distractors(distractors, directory, stands, count, rng)
        time = np.arange(count)
        drift = clutter * MARGIN * rng.uniform(0, 0.9)
        self.camera_x = np.rint(MARGIN + drift * wave(time, 1, rng)).astype(int)
        self.camera_y = np.rint(MARGIN + drift * wave(time, 1, rng)).astype(int)
        self.tone = props.Tone(clutter, rng)
        self.exposure = 1 + clutter * wave(time, 0.06, rng)
        host = props.Host(rng) if video_set is None else video_set.host
        size = path.size.mean()
        self.hand = host.hand(size, rng) if path.held and rng.random() < 0.75 else None
        self.cover = host.hand(0.9 * size, rng) if rng.random() < 0.35 * clutter else None
        self.cover_at = run(count, 0.25, rng)
        self.cover_offset = rng.uniform(-0.45, 0.45, 2)
        self.banner = props.banner(WIDTH, rng) if rng.random() < 0.4 * clutter else None
        self.banner_at = run(count, rng.uniform(0.3, 1.0), rng)
        self.banner_y = int(HEIGHT * (rng.uniform(0.06, 0.16) if rng.random() < 0.4 else rng.uniform(0.66, 0.86)))
        self.defocus_at = run(count, 0.2, rng) if rng.random() < 0.35 * clutter else np.zeros(count, bool)
        self.defocus = rng.uniform(1.0, 2.6)
        self.softness = rng.uniform(0.6, 0.95)
        self.smear = (rng.random(count) < 0.2 * clutter) * rng.integers(3, 10, count)
        self.smear_angle = rng.uniform(0, math.pi, count)
        self.gain = rng.uniform(0.82, 1.1)  # the light on the product differs from that of the set
        self.noise = props.noise(WIDTH, HEIGHT, rng.uniform(1.5, 5), rng) if rng.random() < 0.4 * clutter else None
        self.noise_shift = rng.integers(0, props.NOISE_ROOM, (count, 2))
        if video_set is not None:
            part = slice(start, start + count)
            self.camera_x, self.camera_y = video_set.camera_x[part], video_set.camera_y[part]
            self.exposure = video_set.exposure[part]
            self.tone, self.softness, self.noise = video_set.tone, video_set.softness, video_set.noise

    def draw(self, t, views):
        """Draws frame t.

        Returns:
            (picture, map of product numbers with 1 = intended, {number: pixels of the product if nothing covered it}).
        """
        corner = (int(self.camera_x[t]), int(self.camera_y[t]))
        box = (*corner, corner[0] + WIDTH, corner[1] + HEIGHT)
        frame, ids, full = self.back.crop(box), self.ids.crop(box), dict(self.full)
        for number, item in self.moving:
            item.draw(frame, ids, full, number, t)
        if self.path.shown[t]:
            center = self._draw_intended(frame, ids, full, views, t)
        for number, sprite, x, y in self.front:
            _paste(frame, ids, full, number, sprite, x - corner[0], y - corner[1])
        if self.cover is not None and self.cover_at[t] and self.path.shown[t]:
            reach = self.path.size[t] * self.cover_offset
            self.cover.paste(frame, ids, center[0] + reach[0], center[1] + reach[1], thumb_only=False)
        blurred = (
            frame.filter(ImageFilter.BoxBlur(self.defocus))
            if self.defocus_at[t]
            else props.soften(frame, self.softness)
        )
        frame = self.tone.apply(blurred, self.exposure[t])
        if self.noise is not None:
            x, y = (int(v) for v in self.noise_shift[t])
            frame = ImageChops.add(frame, self.noise.crop((x, y, x + WIDTH, y + HEIGHT)), 1, -128)
        if self.banner is not None and self.banner_at[t]:
            _paste(frame, ids, {}, 0, self.banner, (WIDTH - self.banner.width) // 2, self.banner_y)
        return frame, ids, full

    def _draw_intended(self, frame, ids, full, views, t):
        """Draws the intended product, held or standing, and returns its center."""
        path = self.path
        view = views[path.view[t]]
        sprite = _scaled(view, path.size[t], path.width_limit, HEIGHT * 1.02)
        if abs(path.angle[t]) > 1:
            sprite = sprite.rotate(path.angle[t], Image.Resampling.BILINEAR, expand=True)
        sprite = props.lit(sprite, self.gain)
        if self.smear[t]:
            sprite = props.smear(sprite, int(self.smear[t]), self.smear_angle[t])
        x, y = path.x[t] - sprite.width / 2, path.y[t] - sprite.height / 2
        if self.ground is not None:
            y = self.ground - self.camera_y[t] - sprite.height
            props.shadow(frame, path.x[t], y + sprite.height, sprite.width)
        grip = (
            (path.x[t] + self.hand.side * sprite.width * 0.3, path.y[t] + sprite.height * 0.36) if self.hand else None
        )
        if self.hand:
            self.hand.paste(frame, ids, *grip, thumb_only=False)
        _paste(frame, ids, full, 1, sprite, round(x), round(y))
        if self.hand:
            self.hand.paste(frame, ids, *grip, thumb_only=True)
        return x + sprite.width / 2, y + sprite.height / 2

    def _place_distractors(self, distractors, directory, stands, count, rng):
        """Places each distractor where it covers least: on the set, in the foreground, or moving across the picture."""
        path = self.path
        size = path.size.mean()
        middle_y = path.y.mean() + MARGIN if self.ground is None else self.ground - size / 2
        middle = (path.x.mean() + MARGIN, middle_y, size * 0.95)
        area = min(0.5 * size**2, 0.07 * WIDTH * HEIGHT)
        taken = [_square(*middle)]
        placed = []
        for number, product_id in enumerate(distractors, start=2):
            views = load_views(str(directory), product_id)
            side = math.sqrt(max(0.012 * WIDTH * HEIGHT, area * rng.uniform(0.35, 1.0)))
            if rng.random() < 0.12:
                self.moving.append((number, _Passer(views, side, count, rng)))
                continue
            view = views[int(rng.integers(len(views)))]
            sprite = props.lit(_scaled(view, side, WIDTH * 0.6, HEIGHT * 0.4), rng.uniform(0.75, 1.05))
            best = None
            for _ in range(14):
                x = rng.uniform(MARGIN - 0.1 * sprite.width, MARGIN + WIDTH - 0.9 * sprite.width)
                y = rng.uniform(*stands[int(rng.integers(len(stands)))]) - sprite.height
                spot = (x, y, x + sprite.width, y + sprite.height)
                hidden = sum(_overlap(spot, other) for other in taken) / (sprite.width * sprite.height)
                if best is None or hidden < best[0]:
                    best = (hidden, spot)
            taken.append(best[1])
            placed.append((best[1][3], number, sprite, best[1]))
        for bottom, number, sprite, (x, y, _, _) in sorted(placed, key=lambda p: p[0]):
            if bottom > MARGIN + HEIGHT * 0.9 and size > 110:
                self.front.append((number, sprite, round(x), round(y)))
                continue
            props.shadow(self.back, x + sprite.width / 2, bottom, sprite.width)
            _paste(self.back, self.ids, self.full, number, sprite, round(x), round(y))


class _Passer:
    """A distractor that moves through the picture."""

    def __init__(self, views, size, count, rng):
        self.sprites = [_scaled(views[int(i)], size, WIDTH, HEIGHT) for i in rng.integers(0, len(views), 3)]
        steps = int(rng.integers(2, 6))
        self.begin = int(rng.integers(0, count))
        self.x = WIDTH * np.linspace(-0.1, 1.1, steps)[:: 1 if rng.random() < 0.5 else -1]
        self.y = HEIGHT * rng.uniform(0.2, 0.85) + wave(np.arange(steps), 30, rng)

    def draw(self, frame, ids, full, number, t):
        """Draws the distractor in frame t, if it is in the picture then."""
        t -= self.begin
        if not 0 <= t < len(self.x):
            return
        sprite = self.sprites[t // 3 % len(self.sprites)]
        left, top = self.x[t] - sprite.width / 2, self.y[t] - sprite.height / 2
        _paste(frame, ids, full, number, sprite, round(left), round(top))


def _choose_ground(stands, size, rng):
    """Chooses the ground of a product of this size, so that it fits below the top of the picture if possible."""
    heights = [rng.uniform(low + 0.3 * (high - low), max(low, high - 0.15 * (high - low))) for low, high in stands]
    fitting = [y for y in heights if y > MARGIN + size * 1.1]
    return fitting[int(rng.integers(len(fitting)))] if fitting else max(heights)


def _scaled(view, size, width_limit, height_limit):
    """Scales a view so that the geometric mean of its sides is `size`, within the limits."""
    scale = size / math.sqrt(view.width * view.height)
    scale = min(scale, width_limit / view.width, height_limit / view.height)
    shape = (max(2, round(view.width * scale)), max(2, round(view.height * scale)))
    return view.resize(shape, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BILINEAR)


def _paste(frame, ids, full, number, sprite, x, y):
    """Pastes an RGBA sprite, and records its pixels in `ids` and their number, if nothing covers it, in `full`."""
    alpha = sprite.getchannel("A")
    solid = alpha.point(props.SOLID)
    frame.paste(sprite, (x, y), alpha)
    ids.paste(number, (x, y, x + sprite.width, y + sprite.height), solid)
    full[number] = solid.histogram()[255]


def _boxes(ids, full):
    """Returns the boxes of the products' visible parts, the intended one's first; none if it is out of view."""
    seen = ids.histogram()
    numbers = [n for n in sorted(full) if n and seen[n] > max(24, VISIBLE_SHARE * full[n])]
    if 1 not in numbers:
        return []
    return [list(ids.point([255 * (i == n) for i in range(256)]).getbbox()) for n in numbers]


def _square(x, y, side):
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def _overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))

"""Plans a clip: when the intended product is in view, its position, size and rotation, and the other products."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 270, 480

# Targets of a clip, each with its probability. The clip's actual types follow from its boxes (simulate.clip_types).
_AREAS = ((0.27, (0.05, 0.18)), (0.36, (0.22, 0.38)), (0.37, (0.43, 0.64)))
_DURATIONS = ((0.16, (0.22, 0.40)), (0.32, (0.43, 0.69)), (0.52, (0.72, 1.0)))
_DISTRACTORS = ((0.42, (0, 2)), (0.34, (3, 6)), (0.24, (7, 8)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of all clips, from the flags of simulate.py."""

    min_frames: int
    max_frames: int
    max_distractors: int
    clutter: float


@dataclasses.dataclass(frozen=True)
class Path:
    """The intended product in every frame: its center, size and rotation; `shown` False = out of view."""

    shown: np.ndarray  # [frames] bool
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray  # geometric mean of width and height in pixels
    view: np.ndarray  # [frames] int
    angle: np.ndarray  # in degrees
    width_limit: float
    held: bool


def plan_intended(
    view_count: int,
    count: int,
    annotated_every: int,
    rng: np.random.Generator,
    shown: np.ndarray | None = None,
) -> Path:
    """Draws the path of the intended product in a clip of `count` frames.

    Args:
        view_count: number of the product's views.
        count: number of frames.
        annotated_every: the product is in view in at least one of the frames 0, annotated_every, ...
        rng: the only source of randomness.
        shown: [count] bool, the frames in which the product is in view; None = drawn.

    """
    (low, high), level = _draw_level(_AREAS, rng)
    area = rng.uniform(low, high)
    held = bool(rng.random() < 0.6)
    time = np.arange(count)
    size = math.sqrt(area * WIDTH * HEIGHT) * np.exp(wave(time, 0.16, rng))
    room_x = np.clip((WIDTH - size) / 2, 8, 80)
    room_y = np.clip((HEIGHT - size) / 2, 10, 90)
    x = WIDTH * rng.uniform(0.42, 0.58) + room_x * wave(time, 0.6 if held else 0.25, rng)
    y = HEIGHT * rng.uniform(0.45, 0.62) + room_y * wave(time, 0.5 if held else 0.12, rng)
    if shown is None:
        shown = _plan_shown(count, annotated_every, rng)
    edges = shown & (~np.roll(shown, 1) | ~np.roll(shown, -1))  # the product enters and leaves at the side
    side = -1 if rng.random() < 0.5 else 1
    for t in np.flatnonzero(edges):
        if shown.sum() > 3 and 0 < t < count - 1 and rng.random() < 0.5:
            x[t] = WIDTH / 2 + side * (WIDTH / 2 - size[t] * rng.uniform(-0.05, 0.25))
    last = view_count - 1
    turn = rng.uniform(0, view_count) + np.cumsum(rng.uniform(0.3, 1.4) * rng.uniform(0.5, 1.5, count))
    view = np.abs(np.rint(turn).astype(int) % max(1, 2 * last) - last)  # back and forth through the views
    angle = wave(time, 14 if held else 3, rng)
    return Path(shown, x, y, size, view, angle, (1.0, 1.05, 1.18)[level] * WIDTH, held)


def _plan_shown(count, annotated_every, rng):
    """Draws the frames in which the product is in view: one or two runs that include an annotated frame."""
    (low, high), _ = _draw_level(_DURATIONS, rng)
    total = int(np.clip(round(rng.uniform(low, high) * count), 1, count))
    shown = np.zeros(count, bool)
    if total >= 6 and total < count - 1 and rng.random() < 0.4:  # two runs
        first = int(rng.integers(2, total - 1))
        gap_at = int(rng.integers(0, count - total))
        gap = int(rng.integers(1, count - total - gap_at + 1))
        shown[gap_at : gap_at + first] = True
        shown[gap_at + first + gap : gap_at + total + gap] = True
    else:
        start = int(rng.integers(0, count - total + 1))
        shown[start : start + total] = True
    if not shown[::annotated_every].any():
        start = int(np.flatnonzero(shown)[0])
        shown = np.roll(shown, -(start % annotated_every))
    return shown


def _draw_level(levels, rng):
    level = int(rng.choice(len(levels), p=[p for p, _ in levels]))
    return levels[level][1], level


def wave(time: np.ndarray, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Draws a smooth curve over time: two sines of random period and phase, within ±`amplitude`."""
    a, b = rng.uniform(6, 16), rng.uniform(12, 40)
    p, q = rng.uniform(0, 2 * math.pi, 2)
    return amplitude * (0.55 * np.sin(2 * math.pi * time / a + p) + 0.45 * np.sin(2 * math.pi * time / b + q))


def choose_distractors(
    shop_ids: Sequence[str], elsewhere_ids: Sequence[str], settings: Settings, rng: np.random.Generator
) -> list[str]:
    """Draws the other products of a clip: different ones, most of them from the same shop.

    Args:
        shop_ids: products of the same shop.
        elsewhere_ids: products of other shops.
        settings: the settings of all clips.
        rng: the only source of randomness.
    """
    (low, high), _ = _draw_level(_DISTRACTORS, rng)
    count = min(int(rng.integers(low, high + 1)), settings.max_distractors)
    chosen = [shop_ids[i] for i in rng.permutation(len(shop_ids))[:count]]
    for i in range(len(chosen)):
        if elsewhere_ids and rng.random() < 0.15:
            chosen[i] = elsewhere_ids[int(rng.integers(len(elsewhere_ids)))]
    return list(dict.fromkeys(chosen))


def run(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draws a run of about `share` of the frames, as a boolean array."""
    length = max(1, round(count * share))
    start = int(rng.integers(0, count - length + 1))
    return (np.arange(count) >= start) & (np.arange(count) < start + length)

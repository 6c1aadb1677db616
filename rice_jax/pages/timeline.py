"""The products of a video over time as one HTML file, like the report of a run (`eval.page`)."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from rice_jax.files import write_lines
from rice_jax.index.store import Index
from rice_jax.input.transforms import sample_frames
from rice_jax.pages.album import Pictures, Thumbnail, thumbnail
from rice_jax.pages.plots import COLOURS
from rice_jax.pages.report import MAX_CHARACTERS, render
from rice_jax.recognition.recognizer import Match, Segment

NUM_FRAMES = 6  # of a part, shown at most, evenly chosen
NUM_TICKS = 6  # of the bar, about

Small = tuple[bytes, Sequence[int]]  # what `thumbnail` gives


def write_timeline(
    path: str | os.PathLike,
    name: str,
    shown: Sequence[Segment],
    times: Sequence[float],
    frames: Sequence[Small],
    index: Index,
    gallery: str | None = None,
) -> None:
    """Writes the page, whole or not at all; arguments as of `timeline_page`.

    Raises:
        OSError: the file cannot be written.
    """
    write_lines(path, [timeline_page(name, shown, times, frames, index, gallery)])


def timeline_page(
    name: str,
    shown: Sequence[Segment],
    times: Sequence[float],
    frames: Sequence[Small],
    index: Index,
    gallery: str | None = None,
) -> str:
    """Draws a video's timeline.

    Args:
        name: of the video.
        shown: its parts (`products_over_time`), at least one.
        times: of its sampled frames, in seconds.
        frames: what `eval.album.thumbnail` gave of each of these.
        index: that was searched; a product's picture is read where the index says that it was.
        gallery: whose images might be shown; None = all of the index.

    Returns:
        The page, which fetches nothing; names, titles and paths are escaped.
    """
    album = Pictures()
    paths = dict(zip(zip(index.gallery_ids, index.image_ids, strict=True), index.paths, strict=True))
    products = list(dict.fromkeys(_key(part.product) for part in shown if part.product))
    colours = {key: COLOURS[place % len(COLOURS)] for place, key in enumerate(products)}
    start, end = shown[0].start, shown[-1].end
    parts = []
    for part in shown:
        chosen = range(len(frames))[part.frames]
        parts.append(
            {
                "start": clock(part.start),
                "end": clock(part.end),
                "left": 100 * (part.start - start) / (end - start),
                "width": 100 * (part.end - part.start) / (end - start),
                "colour": colours[_key(part.product)] if part.product else None,
                "product": part.product,
                "confidence": part.confidence,
                "image": part.product and _image(album, paths[_key(part.product)]),
                "frames": [
                    {"time": clock(times[chosen[place]]), "thumbnail": _frame(album, frames, chosen[place])}
                    for place in sample_frames(len(chosen), NUM_FRAMES)
                ],
                "others": [(match, _image(album, paths[_key(match)])) for match in part.products],
            }
        )
    return render(
        "timeline.html.jinja",
        album,
        name=name,
        parts=parts,
        duration=clock(end - start),
        num_products=len(products),
        gallery=gallery,
        num_images=len(paths) if gallery is None else index.gallery_ids.count(gallery),
        ticks=[(100 * (tick - start) / (end - start), clock(tick)) for tick in _ticks(start, end)],
        share_none=sum(part.end - part.start for part in shown if not part.product) / (end - start),
        calibrated=index.about.calibration is not None,
        full=album.num_characters > MAX_CHARACTERS,
    )


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any; a tenth where it is not whole."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{text}" if minutes >= 60 else f"{minutes}:{text}"


def _key(match: Match) -> tuple[str, str]:
    return match.gallery, match.id


def _image(album: Pictures, path: str) -> Thumbnail | None:
    """None if the picture has gone, or the page is full."""
    if album.num_characters > MAX_CHARACTERS:
        return None
    try:
        return album.add(("image", path), lambda: thumbnail(Path(path).read_bytes()))
    except OSError:
        return None


def _frame(album: Pictures, frames: Sequence[Small], place: int) -> Thumbnail | None:
    return album.add(("frame", place), lambda: frames[place]) if album.num_characters <= MAX_CHARACTERS else None


def _ticks(start: float, end: float) -> list[float]:
    """Round times of which some six fit."""
    steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200]
    step = next((step for step in steps if (end - start) / step <= NUM_TICKS), steps[-1])
    return [float(step * place) for place in range(math.ceil(start / step), math.floor(end / step) + 1)]

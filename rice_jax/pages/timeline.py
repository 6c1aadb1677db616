"""The products of a video over time as one HTML file, in the style of a run's report (`pages.report`)."""

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rice_jax.files import write_lines
from rice_jax.index.store import Index
from rice_jax.input.transforms import sample_frames
from rice_jax.pages.album import Pictures, Thumbnail, thumbnail
from rice_jax.pages.plots import COLORS
from rice_jax.pages.report import MAX_CHARACTERS, render
from rice_jax.recognition.recognizer import Segment

NUM_FRAMES = 6  # of a part, shown at most, spread evenly
NUM_TICKS = 6  # of the bar, about

Small = tuple[bytes, Sequence[int]]  # what `album.thumbnail` returns


class Video(NamedTuple):
    """A video and the products that it shows over time.

    Attributes:
        name: of the video.
        segments: parts of the video, each with its product, at least one (`products_over_time`).
        times: of the sampled frames, in seconds.
        frames: thumbnails of the sampled frames.
    """

    name: str
    segments: Sequence[Segment]
    times: Sequence[float]
    frames: Sequence[Small]


def write_timeline(path: str | os.PathLike, video: Video, index: Index, gallery: str | None = None) -> None:
    """Writes the page of `timeline_page`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_lines(path, [timeline_page(video, index, gallery)])


def timeline_page(video: Video, index: Index, gallery: str | None = None) -> str:
    """Renders the timeline of a video.

    Args:
        video: with at least one segment.
        index: that was searched; a product's picture is read from the path in the index.
        gallery: the gallery that was searched; None = all products of the index.

    Returns:
        The page, which fetches nothing; names, titles and paths are escaped.
    """
    album = Pictures()
    paths = dict(zip(zip(index.gallery_ids, index.image_ids, strict=True), index.paths, strict=True))
    named = zip(index.gallery_ids, index.product_ids, strict=True)
    products = list(dict.fromkeys((part.product.gallery, part.product.id) for part in video.segments if part.product))
    colors = {key: COLORS[place % len(COLORS)] for place, key in enumerate(products)}
    start, end = video.segments[0].start, video.segments[-1].end

    def percent(time: float) -> float:
        return 100 * (time - start) / (end - start)

    parts = [
        {
            "start": clock(part.start),
            "end": clock(part.end),
            "left": percent(part.start),
            "width": 100 * (part.end - part.start) / (end - start),
            "color": colors[part.product.gallery, part.product.id] if part.product else None,
            "product": part.product,
            "confidence": part.confidence,
            "image": part.product and _image(album, paths[part.product.gallery, part.product.image_id]),
            "frames": _frames(album, video, part),
            "others": [(match, _image(album, paths[match.gallery, match.image_id])) for match in part.products],
        }
        for part in video.segments
    ]
    return render(
        "timeline.html.jinja",
        album,
        name=video.name,
        parts=parts,
        duration=clock(end - start),
        num_products=len(products),
        gallery=gallery,
        num_searched=len({own for own in named if gallery in (None, own[0])}),
        ticks=[(percent(tick), clock(tick)) for tick in _ticks(start, end)],
        share_none=sum(part.end - part.start for part in video.segments if not part.product) / (end - start),
        calibrated=index.about.calibration is not None,
        full=album.num_characters > MAX_CHARACTERS,
    )


def clock(seconds: float) -> str:
    """Formats a time as "1:02" or, from an hour on, "1:00:02"; with tenths of a second unless they are zero."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{text}" if minutes >= 60 else f"{minutes}:{text}"


def _image(album: Pictures, path: str) -> Thumbnail | None:
    """The picture of a product's image; None if its file is gone or the page is full."""
    if album.num_characters > MAX_CHARACTERS:
        return None
    try:
        return album.add(("image", path), lambda: thumbnail(Path(path)))
    except OSError:
        return None


def _frames(album: Pictures, video: Video, part: Segment) -> list[dict[str, Any]]:
    """Some frames of a part, with their times; without pictures once the page is full."""
    chosen = range(len(video.frames))[part.frames]
    found = []
    for place in (chosen[number] for number in sample_frames(len(chosen), NUM_FRAMES)):
        full = album.num_characters > MAX_CHARACTERS
        small = None if full else album.add(("frame", place), partial(video.frames.__getitem__, place))
        found.append({"time": clock(video.times[place]), "thumbnail": small})
    return found


def _ticks(start: float, end: float) -> list[float]:
    """About `NUM_TICKS` round times."""
    steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200]
    step = next((step for step in steps if (end - start) / step <= NUM_TICKS), steps[-1])
    return [float(step * place) for place in range(math.ceil(start / step), math.floor(end / step) + 1)]

"""The products of a video over time as one HTML file, in the style of a run's report (`pages.report`)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rice_jax.files import write_lines
from rice_jax.index.store import Index
from rice_jax.input.transforms import sample_frames
from rice_jax.pages.album import Pictures, Thumbnail, thumbnail
from rice_jax.pages.report import MAX_CHARACTERS, render
from rice_jax.recognition.engine import Match
from rice_jax.recognition.recognizer import Segment
from rice_jax.types import normal_form

NUM_FRAMES = 6  # of a part, shown at most, spread evenly
MAX_PRODUCTS = 5000  # to choose from; the ids of others can be typed
SCRIPTS = ("timeline.js", "labels.js")  # of every page that shows a timeline

Small = tuple[bytes, Sequence[int]]  # what `album.thumbnail` returns


class Video(NamedTuple):
    """A video and the products that it shows over time.

    Attributes:
        name: of the video.
        segments: parts of the video, each with its product, at least one (`products_over_time`).
        times: of the sampled frames, in seconds.
        frames: thumbnails of the sampled frames.
        named_from: the cosine from which a product is named; None = some product always is.
    """

    name: str
    segments: Sequence[Segment]
    times: Sequence[float]
    frames: Sequence[Small]
    named_from: float | None = None


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
    titles = _titles(index, gallery)

    def product(match: Match) -> dict[str, Any]:
        small = _image(album, paths[match.gallery, match.image_id])
        return match._asdict() | {"image": small and small._asdict()}

    parts = [
        {
            "start": part.start,
            "end": part.end,
            "product": part.product and product(part.product),
            "confidence": part.confidence,
            "similarity": part.similarity,
            "frames": list(_frames(album, video, part)),
            "speech": [said._asdict() for said in part.speech or ()],
            "products": [product(match) for match in part.products],
        }
        for part in video.segments
    ]
    result = {
        "name": video.name,
        "film": f"{video.name} {video.segments[-1].end}",  # other films may have the same name
        "index": index.checksum,
        "named_from": video.named_from,
        "timeline": parts,
    }
    some = [{"id": name, "title": title} for (_, name), title in list(titles.items())[:MAX_PRODUCTS]]
    complete = len(some) == len(titles) and index.centers is None  # which only a part of an index has
    return render(
        "timeline.html.jinja",
        album,
        scripts=(*SCRIPTS, "timeline_page.js"),
        name=video.name,
        result={"result": result, "products": {"products": some, "complete": complete}},
        gallery=gallery,
        num_searched=len(titles),
        full=album.num_characters > MAX_CHARACTERS,
    )


def _titles(index: Index, gallery: str | None) -> Mapping[tuple[str, str], str]:
    """{(gallery, product): title} of the products that were searched."""
    titles: dict[tuple[str, str], str] = {}
    for own, product, title in zip(index.gallery_ids, index.product_ids, index.titles, strict=True):
        if gallery is None or normal_form(gallery) == own:
            titles[own, product] = titles.get((own, product)) or title
    return titles


def _image(album: Pictures, path: str) -> Thumbnail | None:
    """The picture of a product's image; None if its file is gone or the page is full."""
    if album.num_characters > MAX_CHARACTERS:
        return None
    try:
        return album.add(("image", path), lambda: thumbnail(Path(path)))
    except OSError:
        return None


def _frames(album: Pictures, video: Video, part: Segment) -> Iterator[dict[str, Any]]:
    """Some frames of a part, with their times; without pictures once the page is full."""
    chosen = range(len(video.frames))[part.frames]
    for place in (chosen[number] for number in sample_frames(len(chosen), NUM_FRAMES)):
        full = album.num_characters > MAX_CHARACTERS
        small = None if full else album.add(("frame", place), partial(video.frames.__getitem__, place))
        yield {"time": video.times[place], "image": small and small._asdict()}

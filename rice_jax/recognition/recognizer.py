"""The products shown in a stream, frame by frame, and in a whole video, over time."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from rice_jax.index.pictures import AnyPicture
from rice_jax.index.store import Index
from rice_jax.recognition.engine import DEFAULT, Engine, Frames, Match, Recognition, join_frames
from rice_jax.recognition.naming import Naming
from rice_jax.recognition.products import Where
from rice_jax.recognition.speech import said_around, text_scores
from rice_jax.recognition.stream import Stream
from rice_jax.recognition.subtitles import Sentence, join_sentences, said_between
from rice_jax.recognition.timeline import Span, timeline
from rice_jax.recognition.video import Frame
from rice_jax.types import DataError

logger = logging.getLogger(__name__)


class Recognizer:
    """Follows one stream: ranks the products of a gallery for its last frames.

    Any number of threads may push frames at once. Threads do not wait for each other: a frame is ranked together with
    the frames that the window holds when its encoding is done, and a late frame is put where its time belongs. A clock
    that jumps starts a new window (`Stream`).

    Example:
        >>> import rice_jax
        >>> recognizer = rice_jax.Recognizer("shop", top=1)
        >>> for second, frame in enumerate(["frames/0.jpg", "frames/1.jpg"]):
        ...     ranking = recognizer.push(frame, time=float(second))
        >>> [product.id for product in ranking.products]
        ['mug']

    Attributes:
        engine: encodes and ranks; several windows may share it.
    """

    def __init__(
        self,
        index: str | os.PathLike | Index,
        *,
        model: str | os.PathLike | None = None,
        text_model: str | os.PathLike | None = None,
        gallery: str | None = None,
        top: int = 5,
        rerank: int = 0,
        interval_seconds: float = 1.0,
        where: Where | None = None,
        naming: Naming = DEFAULT,
    ):
        """Loads the index and its model, and compiles everything.

        Args:
            index: directory of the index, or the index, such as `MilvusIndex.read` returns.
            model: the run or converted model that made the index; None = where it was when the index was made.
            text_model: what embedded the index's titles, if it has any or the decoder reads them; None = where it was
                when the index was made.
            gallery: id of the stream's gallery; None = all products of the index.
            top: number of products to return, at least 1.
            rerank: number of first products that are re-ordered with the decoder, by their most similar images, and
                with the calibration's weight of it; 0 = off.
            interval_seconds: one frame of each such interval is encoded; for further frames, `push` only ranks again.
            where: ranks only products of which the further columns of the shop's CSV say this, such as
                `{"category": "lamp"}` or `{"category": ["lamp", "sofa"], "stock": "yes"}`; None = all.
            naming: when a product is named, and what it is ranked by.

        Raises:
            CheckpointError: there is no checkpoint, it did not make the index, or it has no trained decoder to re-rank
                with.
            ConfigError: the model cannot recognize, or the package that its texts need is not installed.
            DataError: the index cannot be read or is empty, it has no such gallery, column, or product, it lacks the
                calibration that `naming` needs, or `interval_seconds` is not above 0.
            FileNotFoundError: there is no index.
        """
        self.engine = Engine(index, model=model, text_model=text_model, rerank=rerank, naming=naming)
        self._gallery, self._top, self._where = gallery, top, where
        self._stream = Stream(self.engine.num_frames, interval_seconds)
        self.engine.products(gallery, where)  # raises if there are none

    def push(self, frame: AnyPicture, time: float) -> Recognition:
        """Adds a frame and ranks the products for the last frames.

        Args:
            frame: a file's path, the content of a file (bytes), an open binary file, a PIL image, or RGB as a uint8
                array `[H, W, 3]`.
            time: seconds from any starting point.

        Raises:
            DataError: the picture cannot be decoded, or the time is not finite.
            OSError: the file cannot be read.
        """
        window, restarted = self._stream.window(time)
        if window.wants(time):
            window.put(time, self.engine.encode(self.engine.prepare(frame)[None]))
        kept = window.frames()
        assert kept, "what an empty window does not want is refused"
        newest, frames = kept
        speech = self._stream.speech(window)
        ranked = self.engine.rank(frames, self._gallery, self._top, newest, self._where, speech)
        return ranked._replace(restarted=restarted)

    def add_text(self, start: float, end: float, text: str) -> None:
        """Adds what is said in the stream from one moment to another.

        It counts in the ranking of frames that are pushed later, if the engine reads texts (`Engine.reads_texts`): a
        window's frames have the speech whose middle lies in the window.

        Args:
            start: seconds, of the same clock as the frames' times.
            end: seconds.
            text: what is said.

        Raises:
            DataError: a time is not finite, or the end is before the start.
        """
        self._stream.add_text(start, end, text)


class Segment(NamedTuple):
    """A part of a video that shows one product, or none of the gallery's."""

    start: float  # seconds
    end: float
    product: Match | None  # None = none of the gallery's, or none that is certain enough (`Naming`)
    confidence: float | None  # probability that `product` is right; None = the index has no calibration
    products: tuple[Match, ...]  # those most similar to the segment's frames, best first
    frames: slice  # of the video's sampled frames
    # If no product is named: the largest cosine of one, which decides (`Naming.none_cosine`); None = unknown.
    similarity: float | None = None
    speech: tuple[Sentence, ...] | None = None  # what is said meanwhile; None = unknown


def encode_video(engine: Engine, video: Iterable[Frame], batch_size: int = 1) -> tuple[list[float], Frames]:
    """Encodes the frames of a video; those that cannot be decoded are left out, counted, and named in the log.

    Args:
        engine: preferably compiled for `batch_size`.
        video: at least one frame, e.g. from `read_video`; read as needed.
        batch_size: number of frames encoded together.

    Returns:
        The times of the frames, and the encoded frames.

    Raises:
        DataError: half of the frames or more cannot be decoded; the message has the time of the last of them.
    """
    times: list[float] = []
    broken: list[DataError] = []

    def prepared() -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        for frame in video:
            try:
                picture = engine.prepare(frame.picture)
            except (DataError, OSError) as error:
                broken.append(DataError(f"frame at second {frame.time:g}: {error}"))
                logger.warning("%s; it is left out", broken[-1])
            else:
                times.append(frame.time)
                yield picture

    pictures, parts = prepared(), []
    while batch := list(islice(pictures, batch_size)):
        parts.append(engine.encode(np.stack(batch)))
    if broken:
        found = f"{len(broken)} of {len(broken) + len(times)} frames cannot be decoded"
        if len(broken) >= len(times):
            raise DataError(f"{found}; the last of them: {broken[-1]}") from broken[-1]
        logger.warning("%s", found)
    return times, join_frames(parts)


def products_over_time(
    engine: Engine,
    times: Sequence[float],
    frames: Frames,
    *,
    end: float | None = None,
    gallery: str | None = None,
    top: int = 5,
    where: Where | None = None,
    speech: Sequence[Sentence] | None = None,
) -> list[Segment]:
    """Finds which product a video shows, and from when to when.

    `timeline` decides where segments begin and end, and which of them show no product of the gallery. Any other
    segment's frames are taken as one clip: its confidences are those of `Engine.rank`, and so is the product, if
    `Engine.naming` names one. Neighboring segments with the same product, or without one, are merged.

    Args:
        engine: the engine that encoded the frames.
        times: times of the frames, ascending, in seconds.
        frames: the encoded frames of the video.
        end: when the last frame ends (`Reading.end`), in seconds; None = a second after its time.
        gallery: id of the gallery that is searched; None = all products of the index.
        top: number of products to return for each segment, at least 1.
        where: searches only these products, see `Engine.products`.
        speech: what is said in the video, by time; each segment gets what is said meanwhile, which counts in its
            ranking if the engine reads texts, and in where segments begin and end if the index holds titles as vectors.
            None = unknown.

    Raises:
        DataError: there is no such gallery, column, or product, `top` is below 1, or a cosine is not finite.
    """
    calibration, searched = engine.calibration, engine.products(gallery, where)
    none_cosine = engine.naming.none_cosine(calibration)
    end = times[-1] + 1.0 if end is None else end
    said = said_around(times, speech or (), engine.num_frames, end)
    spans = timeline(
        frames.features,
        np.asarray(times, np.float64),
        engine.index.embeddings(searched.rows),
        calibration.scale if calibration else engine.logit_scale,
        None if calibration is None or none_cosine is None else calibration.scale * none_cosine,
        num_frames=engine.num_frames,
        end=end,
        pooling=engine.pooling(searched),
        said=text_scores(engine, said, searched.rows),
    )

    def recognized(span: Span) -> Segment:
        own = join_sentences(said_between(speech or (), span.start, span.end))
        ranked = engine.rank(frames.take(span.frames), gallery, top, where=where, speech=own)
        product = None if span.product is None else ranked.product
        if product:
            return Segment(span.start, span.end, product, product.confidence, ranked.products, span.frames)
        similarity = engine.naming.best_cosine(calibration, ranked.none)
        return Segment(span.start, span.end, None, ranked.none, ranked.products, span.frames, similarity)

    # As clips, neighbors may show the same product; merged, they are ranked again.
    while True:
        segments = [recognized(span) for span in spans]
        alike = groupby(zip(spans, segments, strict=True), lambda pair: _name(pair[1].product))
        spans = [_join(name is not None, [span for span, _ in pairs]) for name, pairs in alike]
        if len(spans) == len(segments):
            break
    if speech is None:
        return segments
    return [one._replace(speech=said_between(speech, one.start, one.end)) for one in segments]


def _name(product: Match | None) -> tuple[str, str] | None:
    return product and (product.gallery, product.id)


def _join(named: bool, spans: Sequence[Span]) -> Span:
    """Merges neighbors; the product is that of the first, if it is named."""
    first, last = spans[0], spans[-1]
    product = first.product if named else None
    return first._replace(end=last.end, product=product, frames=slice(first.frames.start, last.frames.stop))

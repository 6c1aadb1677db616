"""The work behind the server's routes, and the threads that do it."""

import asyncio
import contextlib
import functools
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydantic
from fastapi import HTTPException
from jaxtyping import UInt8

from rice_jax.pages.album import thumbnail
from rice_jax.recognition.container import Reading
from rice_jax.recognition.engine import Engine, Frames, Match, join_frames
from rice_jax.recognition.products import parse_where
from rice_jax.recognition.recognizer import products_over_time
from rice_jax.recognition.stream import Stream
from rice_jax.serving import uploads
from rice_jax.serving.admission import Metrics
from rice_jax.serving.batching import Batcher
from rice_jax.serving.forms import File
from rice_jax.serving.limits import Limits
from rice_jax.serving.responses import HealthResponse, Product, RecognitionResponse, Segment, StreamResponse
from rice_jax.serving.scratch import Scratch
from rice_jax.serving.streams import Streams
from rice_jax.serving.uploads import Query, Upload
from rice_jax.serving.work import Work
from rice_jax.types import DataError

T = TypeVar("T")
NUM_THUMBNAILS = 1000  # kept in memory
DECODERS = "decoder"  # name of the threads that decode


class StreamQuery(Query):
    """A query about a stream's picture."""

    time: float = pydantic.Field(
        ge=-1e12, le=1e12, allow_inf_nan=False, description="Time of the picture, seconds from any starting point."
    )


class Service:
    """Recognizes uploads.

    Attributes:
        scratch: holds the bodies of requests; exists while the service runs.
        streams: followed by the server.
    """

    def __init__(
        self, engine: Engine, limits: Limits, interval_seconds: float, batch_sizes: Sequence[int], metrics: Metrics
    ):
        """Keeps the arguments of `create_app`, and the metrics."""
        self._engine, self._limits, self._interval = engine, limits, interval_seconds
        self._batch_sizes, self._metrics = batch_sizes, metrics
        self.streams = Streams(limits, lambda: Stream(engine.num_frames, interval_seconds))
        metrics.streams.set_function(lambda: len(self.streams))
        index = engine.index
        names = zip(index.gallery_ids, index.image_ids, strict=True)
        self._digests = dict(zip(names, index.digests, strict=True))
        self._paths = dict(zip(index.digests, index.paths, strict=True))
        self._thumbnails = functools.lru_cache(NUM_THUMBNAILS)(self._thumbnail)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts the threads; on exit, ends them, but for those that are in the middle of a picture."""
        with contextlib.ExitStack() as stack:
            self.scratch = Scratch()
            stack.callback(self.scratch.close)
            # Decoding has threads of its own, as pictures that take long must not delay other answers.
            self._decoders, self._rankers = (ThreadPoolExecutor(os.cpu_count(), name) for name in (DECODERS, "ranker"))
            stack.callback(self._rankers.shutdown)
            stack.callback(self._decoders.shutdown, wait=False, cancel_futures=True)
            self._batcher = Batcher(self._engine.encode, self._batch_sizes, self._metrics.batches.observe)
            self._metrics.waiting.set_function(lambda: self._batcher.num_waiting)
            stack.callback(self._batcher.close)
            yield

    async def recognize(self, upload: Upload, work: Work) -> RecognitionResponse:
        """Encodes a clip or video, a few frames at a time, together with those of other requests, and ranks."""
        self._require_products(upload.query)
        settings = self._limits, self._interval, self._engine.prepare
        reading = Reading()
        if upload.video:
            prepared = uploads.read_frames(upload.video, *settings, reading)
        else:
            reading.end = len(upload.frames) * self._interval
            prepared = uploads.read_pictures(upload.frames, *settings)
        times: list[float] = []
        parts: list[Frames] = []
        try:
            while some := await _run(self._decoders, work.take, prepared, max(self._batch_sizes)):
                times += [frame.time for frame in some]
                parts.append(await self._batcher.encode([frame.picture for frame in some]))
        finally:
            work.end()
            with contextlib.suppress(ValueError):  # the server stops, and a thread is still in the middle of a picture
                prepared.close()
        return await _run(self._rankers, self._recognized, times, join_frames(parts), reading, upload.query)

    async def push(self, picture: File, stream_id: str, query: StreamQuery) -> StreamResponse:
        """Puts a picture into a stream's window and ranks."""
        self._require_products(query)
        prepared = await _run(self._decoders, self._prepare, picture)
        stream = self.streams.open(stream_id)  # only now, since no stream starts with a refused picture
        window, restarted = stream.window(query.time)
        if window.wants(query.time):
            window.put(query.time, await self._batcher.encode([prepared]))
        kept = window.frames()
        assert kept, "an empty window wants every frame"
        newest, frames = kept
        where = parse_where(query.where)
        found = await _run(self._rankers, self._engine.rank, frames, query.gallery, query.top, newest, where)
        return StreamResponse(
            products=self._products(found.products),
            none=found.none,
            time=newest,
            num_frames=len(frames.features),
            restarted=restarted,
        )

    async def thumbnail(self, digest: str) -> bytes:
        """A small picture of an image of the index, as a JPEG."""
        return await _run(self._rankers, self._thumbnails, digest)

    def health(self) -> HealthResponse:
        """Describes the index.

        Raises:
            HTTPException: requests cannot be stored.
        """
        self.scratch.check()
        index = self._engine.index
        return HealthResponse(
            images=len(index.image_ids),
            products=index.num_products,
            galleries=len(self._engine.galleries),
            num_frames=self._engine.num_frames,
            interval_seconds=self._interval,
            fingerprint=index.about.fingerprint,
        )

    def _thumbnail(self, digest: str) -> bytes:
        if digest not in self._paths:
            raise HTTPException(404, "found no such image in the index")
        with contextlib.suppress(OSError):
            encoded = Path(self._paths[digest]).read_bytes()
            if hashlib.sha256(encoded).hexdigest() == digest:
                return thumbnail(encoded)[0]
        raise HTTPException(404, "the image's file is missing, or has changed since indexing")

    def _require_products(self, query: Query) -> None:
        try:
            self._engine.products(query.gallery, parse_where(query.where))
        except DataError as error:
            raise HTTPException(404, str(error)) from error

    def _prepare(self, picture: File) -> UInt8[np.ndarray, "S S 3"]:
        return uploads.prepare_picture(picture.read(), self._limits, self._engine.prepare, "the picture")

    def _recognized(
        self, times: Sequence[float], frames: Frames, reading: Reading, query: Query
    ) -> RecognitionResponse:
        where = parse_where(query.where)
        whole = self._engine.rank(frames, query.gallery, query.top, where=where)
        segments = products_over_time(
            self._engine, times, frames, end=reading.end, gallery=query.gallery, top=query.top, where=where
        )
        return RecognitionResponse(
            products=self._products(whole.products),
            none=whole.none,
            num_frames=len(times),
            timeline=[
                Segment(
                    start=segment.start,
                    end=segment.end,
                    product=segment.product and self._product(segment.product),
                    confidence=segment.confidence,
                    products=self._products(segment.products),
                )
                for segment in segments
            ],
            warnings=reading.warnings,
        )

    def _products(self, matches: Sequence[Match]) -> list[Product]:
        return [self._product(match) for match in matches]

    def _product(self, match: Match) -> Product:
        return Product(**match._asdict(), image=f"images/{self._digests[match.gallery, match.image_id]}")


async def _run(pool: ThreadPoolExecutor, function: Callable[..., T], *args: Any) -> T:
    """Calls a function in a thread, so that computation does not block other requests."""
    return await asyncio.get_running_loop().run_in_executor(pool, function, *args)

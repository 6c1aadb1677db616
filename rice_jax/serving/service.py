"""The work behind the server's routes, and the threads that do it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from fastapi import HTTPException
from jaxtyping import UInt8

from rice_jax.pages.album import thumbnail
from rice_jax.recognition.allowed import Allowed, SourceRefused
from rice_jax.recognition.changes import Search
from rice_jax.recognition.container import Reading
from rice_jax.recognition.engine import Frames, join_frames
from rice_jax.recognition.products import parse_where
from rice_jax.recognition.recognizer import products_over_time
from rice_jax.recognition.source import LiveSource
from rice_jax.recognition.stream import Stream
from rice_jax.recognition.subtitles import Sentence, join_sentences, said_between
from rice_jax.serving import uploads
from rice_jax.serving.admission import SOURCE_STATES, Metrics
from rice_jax.serving.batching import Batcher
from rice_jax.serving.events import EventLog
from rice_jax.serving.forms import File
from rice_jax.serving.limits import Limits
from rice_jax.serving.live import Followed, Pushed, PushedPicture, Write
from rice_jax.serving.responses import (
    EmbeddingsResponse,
    HealthResponse,
    ProductsResponse,
    RecognitionResponse,
    Said,
    Segment,
    SourceResponse,
    StreamResponse,
    StreamStateResponse,
    TextResponse,
    WordsResponse,
)
from rice_jax.serving.scratch import Scratch
from rice_jax.serving.shops import Shop, Shops
from rice_jax.serving.streams import Lives, StreamKey, StreamName, Streams
from rice_jax.serving.uploads import ClipQuery, Listing, Prepared, Query, SourceQuery, SpokenText, Upload, WordsQuery
from rice_jax.serving.work import Work

T = TypeVar("T")
WATCH_SECONDS = 1.0  # between two looks at the files of the indexes
WAIT_SECONDS = 1.0  # between two looks for streams without pictures
NUM_SAID = 20  # sentences in the state of a stream
DECODERS, LOADER = "decoder", "loader"  # names of the threads that decode pictures, and of the one that loads indexes


class Service:
    """Recognizes uploads.

    Attributes:
        scratch: holds the bodies of requests; exists while the service runs.
        streams: whose frames are pushed.
        lives: streams whose events are sent.
    """

    def __init__(
        self,
        shops: Shops,
        limits: Limits,
        interval_seconds: float,
        batch_sizes: Sequence[int],
        metrics: Metrics,
        allowed: Allowed,
    ):
        """Keeps the arguments of `create_app`, and the metrics."""
        self._shops, self._limits, self._interval = shops, limits, interval_seconds
        self._batch_sizes, self._metrics = batch_sizes, metrics
        self._allowed = allowed
        self.streams, self.lives = Streams(limits), Lives(limits)
        self._sources: set[StreamName] = set()  # streams that follow one, or did
        for state in SOURCE_STATES:
            metrics.sources.labels(state).set_function(lambda state=state: self._num_sources(state))
        metrics.streams.set_function(lambda: len(self.streams))
        for name in shops.names:
            metrics.products.labels(name).set_function(lambda name=name: shops[name].num_products)
            metrics.loaded.labels(name).set_function(lambda name=name: shops[name].loaded.timestamp())
            metrics.stale.labels(name).set_function(lambda name=name: name in shops.stale)

    @contextlib.asynccontextmanager
    async def running(self, watch: bool) -> AsyncIterator[None]:
        """Starts the threads; on exit, ends them, but for those that are in the middle of a picture or an index.

        Args:
            watch: whether to replace indexes whose files are replaced.
        """
        with contextlib.ExitStack() as stack:
            self.scratch = Scratch()
            stack.callback(self.scratch.close)
            # Decoding has threads of its own, as pictures that take long must not delay other answers.
            self._decoders, self._rankers = (ThreadPoolExecutor(os.cpu_count(), name) for name in (DECODERS, "ranker"))
            stack.callback(self._rankers.shutdown)
            stack.callback(self._decoders.shutdown, wait=False, cancel_futures=True)
            self._batcher = Batcher(self._batch_sizes, self._metrics.batches.observe, self._metrics.spent)
            self._metrics.waiting.set_function(lambda: self._batcher.num_waiting)
            stack.callback(self._batcher.close)
            if watch:
                self._loader = ThreadPoolExecutor(1, LOADER)
                stack.callback(self._loader.shutdown, wait=False, cancel_futures=True)
                watching = asyncio.create_task(self._watch())
                stack.callback(watching.cancel)
            waiting = asyncio.create_task(self._wait())
            stack.callback(waiting.cancel)
            try:
                yield
            finally:
                for followed in await self.lives.end_all(self._rankers):
                    await asyncio.to_thread(followed.join)

    async def recognize(self, shop: Shop, upload: Upload, work: Work) -> RecognitionResponse:
        """Encodes a clip or video, a few frames at a time, together with those of other requests, and ranks."""
        await _run(self._rankers, shop.require_products, upload.query)
        settings = self._limits, self._interval, shop.engine.prepare
        reading = Reading()
        if upload.video:
            prepared = uploads.read_frames(upload.video, *settings, reading)
        else:
            reading.end = len(upload.frames) * self._interval
            prepared = uploads.read_pictures(upload.frames, *settings)
        speech = await _run(self._decoders, uploads.read_speech, upload, self._interval)  # refused before the work
        times, frames = await self._encode(shop, prepared, work)
        clip = Clip(times, frames, reading, speech, bool(upload.video))
        found = await self._timed("rank", self._rankers, _recognized, shop, clip, upload.query)
        for segment in found.timeline:
            self._metrics.count(shop.name, segment.product is not None, segment.products[0].score)
        return found

    async def embed(self, shop: Shop, pictures: Sequence[File], work: Work) -> EmbeddingsResponse:
        """Embeds pictures as those of the index are."""
        prepared = uploads.read_pictures(pictures, self._limits, self._interval, shop.engine.prepare, "picture")
        _, frames = await self._encode(shop, prepared, work)
        vectors = frames.features / np.linalg.norm(frames.features, axis=1, keepdims=True)
        return EmbeddingsResponse(embeddings=vectors.tolist(), fingerprint=shop.model)

    async def push(self, shop: Shop, picture: File, stream_id: str, query: uploads.StreamQuery) -> StreamResponse:
        """Puts a picture into a stream's window and ranks."""
        await _run(self._rankers, shop.require_products, query)
        name = StreamName(shop.name, stream_id)
        if followed := self.lives.followed(name):
            if not followed.log.is_closed:
                raise HTTPException(409, f"stream {stream_id!r} follows a source; end it before you push its pictures")
            await self.lives.end(name, self._rankers)
        prepared = await self._timed("decode", self._decoders, self._prepare, shop, picture)
        # Only now, since no stream starts with a refused picture.
        stream = self.streams.open(_key(shop, stream_id), lambda: Stream(shop.engine.num_frames, self._interval))
        window, restarted = stream.window(query.time)
        if window.wants(query.time):
            frame = await self._batcher.encode(shop.engine, [prepared])
            window.put(query.time, frame)
            if pushed := self.lives.pushed.get(name):
                # Decoded again, at its own fraction of the size: a whole decoding for both takes as long, and the model
                # would see other pixels while somebody listens.
                small, _ = await _run(self._decoders, thumbnail, picture.read())
                own = PushedPicture(query.time, frame, small)
                await _run(self._rankers, pushed.push, shop.engine, own, window, _search(query))
        kept = window.frames()
        assert kept, "an empty window wants every frame"
        newest, frames = kept
        where, said = parse_where(query.where), stream.said(window)
        speech = join_sentences(said)
        asked = frames, query.gallery, query.top, newest, where, speech
        found = await self._timed("rank", self._rankers, shop.engine.rank, *asked)
        self._metrics.count(shop.name, found.product is not None, found.products[0].score)
        return StreamResponse(
            products=list(map(shop.product, found.products)),
            none=found.none,
            time=newest,
            num_frames=len(frames.features),
            restarted=restarted,
            speech=_said(said),
            text_used=bool(speech) and shop.engine.reads_texts,
        )

    def add_text(self, shop: Shop, stream_id: str, said: SpokenText) -> TextResponse:
        """Adds what is said in a stream whose pictures are pushed.

        Raises:
            HTTPException: there is no such stream (404), or it follows a source (409).
        """
        if self.lives.followed(StreamName(shop.name, stream_id)):
            raise HTTPException(
                409, f"stream {stream_id!r} follows a source, whose clock is not known; push its pictures"
            )
        stream = self.streams.get(_key(shop, stream_id))
        if stream is None:
            raise HTTPException(404, f"found no stream {stream_id!r}; it starts with its first picture")
        stream.add_text(said.start, said.end, " ".join(said.text.split()))
        return TextResponse(text_used=shop.engine.reads_texts)

    async def end(self, shop: Shop, stream_id: str) -> bool:
        """Ends a stream; returns whether there was one."""
        was_pushed = self.streams.end(_key(shop, stream_id))
        return await self.lives.end(StreamName(shop.name, stream_id), self._rankers) or was_pushed

    async def follow(self, shop: Shop, stream_id: str, query: SourceQuery) -> StreamStateResponse:
        """Follows a source.

        Raises:
            HTTPException: it is not allowed (403), there are no such products (404), the stream has a source or pushed
                pictures already (409), or too many are followed (503).
        """
        await _run(self._rankers, shop.require_products, query)
        name = StreamName(shop.name, stream_id)
        try:
            self._allowed.require(query.url)
        except SourceRefused as error:
            raise HTTPException(403, str(error)) from error
        if name in self.streams:
            raise HTTPException(409, f"stream {stream_id!r} has pushed pictures; end it before you follow a source")

        def new() -> Followed:
            return Followed(
                stream_id,
                LiveSource(query.url, max_delay=query.max_delay, allowed=self._allowed),
                lambda: self._shops[name.shop].engine,
                self._batcher.encode_and_wait,
                self._writes(name),
                self._interval,
                _search(query),
            )

        self.lives.follow(name, new)
        self._sources = {own for own in (*self._sources, name) if self.lives.followed(own)}
        return self.state(shop, stream_id)

    def state(self, shop: Shop, stream_id: str) -> StreamStateResponse:
        """Describes a stream.

        Raises:
            HTTPException: there is none (404).
        """
        name, source = self._require_stream(shop, stream_id), None
        live = self.lives.get(name)
        if isinstance(live, Followed):
            source = SourceResponse(url=str(live.source), **live.state._asdict())
        shown = live.shown if live else None
        stream = self.streams.get(_key(shop, stream_id))
        speech = _said(stream.sentences[-NUM_SAID:]) if stream else []
        written = shown and self._writes(name)(*shown)
        return StreamStateResponse(id=stream_id, source=source, shown=written, speech=speech)

    def events(self, shop: Shop, stream_id: str) -> EventLog:
        """The events of a stream; those of pushed pictures are sent from now on.

        Raises:
            HTTPException: there is no such stream (404).
        """
        name = self._require_stream(shop, stream_id)
        live = self.lives.get(name)
        if live is None:
            live = self.lives.pushed[name] = Pushed(self._writes(name), self._interval)
        return live.log

    def _num_sources(self, state: str) -> int:
        return sum(own.state.state == state for own in map(self.lives.followed, self._sources) if own)

    def _require_stream(self, shop: Shop, stream_id: str) -> StreamName:
        name = StreamName(shop.name, stream_id)
        if name not in self.streams and not self.lives.get(name):
            raise HTTPException(404, f"found no stream {stream_id!r}; it may have been idle for too long")
        return name

    def _writes(self, name: StreamName) -> Write:
        return lambda event, frame: self._shops[name.shop].written(event, name.id, frame)

    async def listed(self, shop: Shop, listing: Listing) -> ProductsResponse:
        """Lists products of the index."""
        return await _run(self._rankers, shop.listed, listing)

    async def search(self, shop: Shop, query: WordsQuery) -> WordsResponse:
        """Searches with words."""
        return await _run(self._rankers, shop.search, query)

    async def thumbnail(self, shop: Shop, digest: str) -> bytes:
        """A small picture of an image of the index, as a JPEG."""
        return await _run(self._rankers, shop.thumbnail, digest)

    def health(self, shop: Shop) -> HealthResponse:
        """Describes an index.

        Raises:
            HTTPException: requests cannot be stored.
        """
        self.scratch.check()
        return shop.health(self._interval, shop.name in self._shops.stale)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for name in self._shops.names:
                if await _run(self._loader, self._shops.refresh, name):
                    self.streams.forget_other_models(name, self._shops[name].model)

    async def _wait(self) -> None:
        """Tells that a product is gone when no picture of its stream comes any more."""
        while True:
            await asyncio.sleep(WAIT_SECONDS)
            await self.lives.wait(self.streams, self._rankers)

    async def _encode(
        self, shop: Shop, prepared: Generator[Prepared, None, None], work: Work
    ) -> tuple[list[float], Frames]:
        """The times of some pictures, and the pictures encoded."""
        times: list[float] = []
        parts: list[Frames] = []
        try:
            while some := await self._timed("decode", self._decoders, work.take, prepared, max(self._batch_sizes)):
                times += [frame.time for frame in some]
                parts.append(await self._batcher.encode(shop.engine, [frame.picture for frame in some]))
        finally:
            work.end()
            with contextlib.suppress(ValueError):  # the server stops, and a thread is still in the middle of a picture
                prepared.close()
        return times, join_frames(parts)

    async def _timed(self, stage: str, pool: ThreadPoolExecutor, function: Callable[..., T], *args: Any) -> T:
        with self._metrics.stage(stage):
            return await _run(pool, function, *args)

    def _prepare(self, shop: Shop, picture: File) -> UInt8[np.ndarray, "S S 3"]:
        return uploads.prepare_picture(picture.read(), self._limits, shop.engine.prepare, "the picture")


class Clip(NamedTuple):
    """An encoded clip or video."""

    times: Sequence[float]
    frames: Frames
    reading: Reading
    speech: Sequence[Sentence] | None  # None = unknown
    is_video: bool


def _recognized(shop: Shop, clip: Clip, query: ClipQuery) -> RecognitionResponse:
    where, engine, end = parse_where(query.where), shop.engine, clip.reading.end
    segments = products_over_time(
        engine,
        clip.times,
        clip.frames,
        end=end,
        gallery=query.gallery,
        top=query.top,
        where=where,
        speech=clip.speech,
    )
    assert end is not None, "the last frame has been read"
    speech = join_sentences(said_between(clip.speech or (), 0.0, end))
    whole = None
    if not clip.is_video or len(segments) == 1:  # no single product is the answer for a film of several
        whole = engine.rank(clip.frames, query.gallery, query.top, where=where, speech=speech)
    return RecognitionResponse(
        timeline=[
            Segment(
                start=segment.start,
                end=segment.end,
                product=segment.product and shop.product(segment.product),
                confidence=segment.confidence,
                similarity=segment.similarity,
                products=list(map(shop.product, segment.products)),
                speech=None if segment.speech is None else _said(segment.speech),
            )
            for segment in segments
        ],
        named_from=engine.naming.none_cosine(engine.calibration),
        num_frames=len(clip.times),
        warnings=clip.reading.warnings,
        index=shop.fingerprint,
        products=list(map(shop.product, whole.products)) if whole else [],
        none=whole.none if whole else None,
        text_used=bool(speech) and engine.reads_texts,
    )


def _said(sentences: Sequence[Sentence]) -> list[Said]:
    return [Said(**sentence._asdict()) for sentence in sentences]


def _search(query: Query) -> Search:
    return Search(query.gallery, query.top, parse_where(query.where))


def _key(shop: Shop, stream_id: str) -> StreamKey:
    return StreamKey(shop.name, shop.model, stream_id)


async def _run(pool: ThreadPoolExecutor, function: Callable[..., T], *args: Any) -> T:
    """Calls a function in a thread, so that computation does not block other requests."""
    return await asyncio.get_running_loop().run_in_executor(pool, function, *args)

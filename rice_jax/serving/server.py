"""Recognition over HTTP: an app for clips, videos, and streams, with a web page."""

import asyncio
import base64
import contextlib
import dataclasses
import functools
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import jinja2
import prometheus_client
import pydantic
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi import Query as QueryParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.requests import ClientDisconnect

from rice_jax.pages.album import thumbnail
from rice_jax.recognition.container import Reading
from rice_jax.recognition.engine import Engine, Frames, Match, join_frames
from rice_jax.recognition.recognizer import products_over_time
from rice_jax.recognition.stream import Stream
from rice_jax.serving import uploads
from rice_jax.serving.admission import AdmissionMiddleware, Metrics
from rice_jax.serving.batching import Batcher
from rice_jax.serving.responses import (
    ErrorResponse,
    HealthResponse,
    Product,
    RecognitionResponse,
    Segment,
    StreamResponse,
)
from rice_jax.serving.streams import Streams
from rice_jax.serving.uploads import ANYTHING, PICTURES, Limits, Prepared, Query, Upload
from rice_jax.types import DataError

FORM = "multipart/form-data"
DOCS = "/docs"
CLIENT_LEFT = 499  # nginx's code for a client that has disconnected, for the metrics
NUM_THUMBNAILS = 1000  # kept in memory
TAKE_SECONDS = 2.0  # after which a client that has left is noticed
# Swagger UI has inline styles and an inline script.
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)

_FILE = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "frames": {"type": "array", "items": _FILE, "description": "The frames of a clip, in order."},
        "video": _FILE | {"description": "A video such as mp4 or webm, instead of `frames`."},
        **Query.model_json_schema()["properties"],
    },
}


class StreamQuery(Query):
    """A query about a stream's picture."""

    time: float = pydantic.Field(
        ge=-1e12, le=1e12, allow_inf_nan=False, description="Time of the picture, seconds from any starting point."
    )


StreamId = Annotated[
    str,
    PathParameter(
        pattern=r"^[A-Za-z0-9._~:-]{1,100}$", description="Any name of up to 100 letters, digits, and . _ ~ : -"
    ),
]


def create_app(
    engine: Engine, limits: Limits, *, interval_seconds: float = 1.0, batch_sizes: Sequence[int] = (1,)
) -> FastAPI:
    """Creates the app; its threads run from start-up to shutdown.

    Args:
        engine: encodes and ranks.
        limits: the server's limits.
        interval_seconds: distance between the frames of a video or stream that are looked at.
        batch_sizes: sizes that the engine was compiled for; 1 must be among them.
    """
    metrics = Metrics()
    service = Service(engine, limits, interval_seconds, batch_sizes, metrics)
    streams = Streams(limits, lambda: Stream(engine.num_frames, interval_seconds))
    metrics.streams.set_function(lambda: len(streams))
    app = FastAPIOffline(
        docs_url=DOCS,
        redoc_url=None,
        title="rice_jax",
        description="Recognizes the product shown in a livestream clip among a shop's images.",
        lifespan=lambda app: service.running(),
        responses={code: {"model": ErrorResponse} for code in ("4XX", 500, 503)},
    )
    page, policy = render_page(engine, limits)
    policies = {"/": policy, DOCS: DOCS_POLICY}
    app.add_middleware(AdmissionMiddleware, limits=limits, metrics=metrics, policies=policies)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": uploads.describe(error.errors())}, 422)

    @app.exception_handler(ClientDisconnect)
    async def disconnected(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # uvicorn closes the connection after an error that it logs, so the client must not reuse it.
        return JSONResponse({"detail": "the server has failed; its log has the error"}, 500, {"Connection": "close"})

    @app.post("/recognize", openapi_extra=_body({FORM: _FORM}))
    async def recognize(request: Request) -> RecognitionResponse:
        """Recognizes the products in a clip or a video, as a whole and over time."""
        uploads.require_type(request, FORM)
        async with request.form(max_files=limits.frames, max_fields=8, max_part_size=4 * uploads.MAX_TEXT) as form:
            return await service.recognize(request, uploads.read_form(form, limits))

    @app.post("/streams/{stream_id}/frames", openapi_extra=_body(dict.fromkeys(PICTURES.values(), _FILE)))
    async def push_frame(
        request: Request, stream_id: StreamId, query: Annotated[StreamQuery, QueryParameter()]
    ) -> StreamResponse:
        """Adds a picture to a stream and recognizes what the stream shows now.

        A new id starts a new stream. Only the first picture of each interval counts.
        """
        uploads.require_type(request, *PICTURES.values(), ANYTHING)
        return await service.push(await uploads.read_picture(request, limits), stream_id, query, streams)

    @app.delete("/streams/{stream_id}", status_code=204)
    async def end_stream(stream_id: StreamId) -> None:
        """Ends a stream."""
        if not streams.end(stream_id):
            raise HTTPException(404, f"found no stream {stream_id!r}; it may have been idle for too long")

    @app.get("/images/{digest}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def image(digest: str) -> Response:
        """A small picture of an image of the index, by the SHA-256 of its file."""
        encoded = await service.run(service.thumbnail, digest)
        return Response(encoded, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    @app.get("/healthz")
    async def health() -> HealthResponse:
        """Reports that the server is up, and describes its index."""
        return service.health()

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measurements() -> Response:
        """Metrics for Prometheus."""
        text = prometheus_client.generate_latest(metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(page)

    return app


class Service:
    """The work of the routes, and the threads that they share."""

    def __init__(
        self, engine: Engine, limits: Limits, interval_seconds: float, batch_sizes: Sequence[int], metrics: Metrics
    ):
        """Keeps the arguments of `create_app`, and the metrics."""
        self._engine, self._limits, self._interval = engine, limits, interval_seconds
        self._batch_sizes, self._metrics = batch_sizes, metrics
        index = engine.index
        names = zip(index.gallery_ids, index.image_ids, strict=True)
        self._digests = dict(zip(names, index.digests, strict=True))
        self._paths = dict(zip(index.digests, index.paths, strict=True))
        self.thumbnail = functools.lru_cache(NUM_THUMBNAILS)(self._thumbnail)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts the threads; on exit, waits for their work and ends them."""
        with contextlib.ExitStack() as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rice_jax-")))
            self._pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count(), "pool"))
            self._batcher = Batcher(self._engine.encode, self._batch_sizes, self._metrics.batches.observe)
            self._metrics.waiting.set_function(lambda: self._batcher.num_waiting)
            stack.callback(self._batcher.close)
            yield

    async def run(self, function, *args) -> Any:
        """Calls a function in a thread, so that computation does not block other requests."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def recognize(self, request: Request, upload: Upload) -> RecognitionResponse:
        """Encodes a clip or video, a few frames at a time, together with those of other requests, and ranks."""
        self._require_gallery(upload.query.gallery)
        settings = self._limits, self._interval, self._engine.prepare
        reading = Reading()
        if upload.video:
            prepared = uploads.read_frames(upload.video, *settings, self._directory, reading)
        else:
            reading.end = len(upload.frames) * self._interval
            prepared = uploads.read_pictures(upload.frames, *settings)
        times: list[float] = []
        parts: list[Frames] = []
        with contextlib.closing(prepared):
            while some := await self.run(self._take, prepared):
                if await request.is_disconnected():
                    raise ClientDisconnect
                times += [frame.time for frame in some]
                parts.append(await self._batcher.encode([frame.picture for frame in some]))
        return await self.run(self._recognized, times, join_frames(parts), reading, upload.query)

    async def push(self, encoded: bytes, stream_id: str, query: StreamQuery, streams: Streams) -> StreamResponse:
        """Puts a picture into a stream's window and ranks."""
        self._require_gallery(query.gallery)
        prepare = self._engine.prepare
        prepared = await self.run(uploads.prepare_picture, encoded, self._limits, prepare, "the picture")
        stream = streams.open(stream_id)  # only now, since no stream starts with a refused picture
        window, restarted = stream.window(query.time)
        if window.wants(query.time):
            window.put(query.time, await self._batcher.encode([prepared]))
        kept = window.frames()
        assert kept, "an empty window wants every frame"
        newest, frames = kept
        found = await self.run(self._engine.rank, frames, query.gallery, query.top, newest)
        return StreamResponse(
            products=self._products(found.products),
            none=found.none,
            time=newest,
            num_frames=len(frames.features),
            restarted=restarted,
        )

    def health(self) -> HealthResponse:
        """Describes the index."""
        index = self._engine.index
        return HealthResponse(
            images=len(index.image_ids),
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

    def _require_gallery(self, gallery: str | None) -> None:
        try:
            self._engine.rows(gallery)
        except DataError as error:
            raise HTTPException(404, str(error)) from error

    def _take(self, prepared: Iterator[Prepared]) -> list[Prepared]:
        """The next frames; fewer if they take long, as the client may leave meanwhile."""
        some, since = [], time.monotonic()
        for frame in islice(prepared, max(self._batch_sizes)):
            some.append(frame)
            if time.monotonic() - since > TAKE_SECONDS:
                break
        return some

    def _recognized(
        self, times: Sequence[float], frames: Frames, reading: Reading, query: Query
    ) -> RecognitionResponse:
        whole = self._engine.rank(frames, query.gallery, query.top)
        segments = products_over_time(
            self._engine, times, frames, end=reading.end, gallery=query.gallery, top=query.top
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
        return Product(**match._asdict(), image=f"images/{self._digests[match.gallery, match.id]}")


def render_page(engine: Engine, limits: Limits) -> tuple[str, str]:
    """The web page, and the Content-Security-Policy that allows its own script and style only."""
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader("rice_jax.serving"), jinja2.PackageLoader("rice_jax.pages")])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    style, script = (
        "".join(loader.get_source(environment, name)[0] for name in names)
        for names in (("style.css", "serve.css"), ("serve.js",))
    )
    page = environment.get_template("serve.html.jinja").render(
        style=style,
        script=script,
        galleries=engine.galleries,
        num_images=len(engine.index.image_ids),
        limits=dataclasses.asdict(limits),
        docs=DOCS.removeprefix("/"),
    )
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return page, (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; "
        f"img-src 'self' data: blob:; media-src blob:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    )


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in content.items()}}
    }

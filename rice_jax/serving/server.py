"""Recognition over HTTP: an app for clips, videos, and streams, with a web page."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import prometheus_client
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi import Query as QueryParameter
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.requests import ClientDisconnect

from rice_jax.recognition.allowed import Allowed
from rice_jax.serving import uploads
from rice_jax.serving.admission import HEALTH, Access, Admission, AdmissionMiddleware, Metrics
from rice_jax.serving.events import EventStream, Listeners
from rice_jax.serving.forms import read_form
from rice_jax.serving.limits import SUBTITLE_BYTES, Limits
from rice_jax.serving.page import Page
from rice_jax.serving.responses import (
    EmbeddingsResponse,
    ErrorResponse,
    HealthResponse,
    IndexesResponse,
    ProductsResponse,
    RecognitionResponse,
    StreamResponse,
    StreamStateResponse,
    TextResponse,
    WordsResponse,
)
from rice_jax.serving.service import Service
from rice_jax.serving.shops import Shops
from rice_jax.serving.streams import StreamName
from rice_jax.serving.uploads import (
    FORM,
    JSON,
    PICTURES,
    PICTURES_FIELD,
    SUBTITLES,
    ClipQuery,
    Listing,
    SourceQuery,
    SpokenText,
    StreamQuery,
    WordsQuery,
)
from rice_jax.serving.work import working

DOCS = "/docs"
LIVE = "live"  # the page for a stream, beside that for films
INDEXES = "/indexes"  # under which the routes of each index are, if they have names
CLIENT_LEFT = 499  # nginx's code for a client that has disconnected, for the metrics
# Swagger UI has inline styles and an inline script.
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)

T = TypeVar("T")
_ANONYMOUS: dict[int | str, dict[str, Any]] = {204: {"description": "Healthy; a token gets the description."}}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {EventStream.media_type: {}}},
    204: {"description": "The stream has ended, and its last event is known."},
}
_JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}
_FILE = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "frames": {"type": "array", "items": _FILE, "description": "The frames of a clip, in order."},
        "video": _FILE | {"description": "A video such as mp4 or webm, instead of `frames`."},
        SUBTITLES: _FILE | {"description": "What is said: SubRip, WebVTT, or a speech recognizer's JSON."},
        **ClipQuery.model_json_schema()["properties"],
    },
}
_PICTURES_FORM = {
    "type": "object",
    "additionalProperties": False,
    "properties": {PICTURES_FIELD: {"type": "array", "items": _FILE}},
}

StreamId = Annotated[
    str,
    PathParameter(
        pattern=r"^[A-Za-z0-9._~:-]{1,100}$", description="Any name of up to 100 letters, digits, and . _ ~ : -"
    ),
]


def create_app(
    shops: Shops,
    limits: Limits,
    *,
    interval_seconds: float = 1.0,
    batch_sizes: Sequence[int] = (1,),
    watch: bool = False,
    access: Access = Access(),  # noqa: B008 (it cannot change)
    allowed: Allowed = Allowed(),  # noqa: B008 (it cannot change)
) -> FastAPI:
    """Creates the app; its threads run from start-up to shutdown.

    Args:
        shops: the indexes to search.
        limits: the server's limits.
        interval_seconds: distance between the frames of a video or stream that are looked at.
        batch_sizes: sizes that the engines were compiled for; 1 must be among them.
        watch: whether to replace an index when its file is replaced.
        access: who may use the server.
        allowed: the sources that it may follow.
    """
    metrics = Metrics()
    service = Service(shops, limits, interval_seconds, batch_sizes, metrics, allowed)
    admission, listeners = Admission(limits, metrics), Listeners(limits)
    metrics.listeners.set_function(lambda: len(listeners))
    app = FastAPIOffline(
        docs_url=DOCS,
        redoc_url=None,
        title="rice_jax",
        description="Recognizes the product shown in a livestream clip among a shop's images.",
        dependencies=[Depends(HTTPBearer(auto_error=False))] if access.tokens else [],  # only for the schema
        lifespan=lambda app: service.running(watch),
        responses={code: {"model": ErrorResponse} for code in ("4XX", 500, 503, 507)},
    )
    named = "" not in shops.names
    page = Page(limits, ("../.." if named else ".") + DOCS)
    roots = ["/", *(f"{INDEXES}/{name}/" for name in shops.names if named)]
    pages = [root + name for root in roots for name in ("", LIVE)]
    policies = dict.fromkeys(pages, page.policy) | {DOCS: DOCS_POLICY}
    app.add_middleware(AdmissionMiddleware, admission=admission, policies=policies, access=access)
    if access.origins:  # around the admission: pages can then read why a request is refused
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
            expose_headers=["Retry-After"],
        )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _failed)

    async def require_index(index: Annotated[str, PathParameter(description="Name of an index.")]) -> None:
        shops[index]  # before the body of the request is read

    for router in (
        _recognition(service, shops, admission, limits),
        _live(service, shops, listeners),
        _information(service, shops, page),
    ):
        if named:
            app.include_router(router, prefix=INDEXES + "/{index}", dependencies=[Depends(require_index)])
        else:
            app.include_router(router)
    if named:
        app.include_router(_overview(service, shops, page))
    app.include_router(_measurements(metrics))
    return app


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": uploads.describe(error.errors())}, 422)


async def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _failed(request: Request, error: Exception) -> Response:
    # uvicorn closes the connection after an error that it logs, so the client must not reuse it.
    return JSONResponse({"detail": "the server has failed; its log has the error"}, 500, {"Connection": "close"})


def _recognition(service: Service, shops: Shops, admission: Admission, limits: Limits) -> APIRouter:
    """The routes that take pictures."""
    router = APIRouter()

    @router.post("/recognize", openapi_extra=_body({FORM: _FORM}))
    async def recognize(request: Request) -> RecognitionResponse:
        """Recognizes the products in a clip or a video, as a whole and over time."""
        kind = request.headers.get("content-type", "")
        uploads.require_form(kind, request.query_params)
        with service.scratch.file() as stored:
            small = {SUBTITLES: SUBTITLE_BYTES}
            with admission.metrics.stage("upload"):
                form = await read_form(kind, request.stream(), stored, limits.frames, small)
            upload = uploads.check_form(form)
            with admission.place():
                async with working(request, limits.decode_seconds) as work:
                    return await service.recognize(shops[_name(request)], upload, work)

    @router.post("/streams/{stream_id}/frames", openapi_extra=_body(dict.fromkeys(PICTURES.values(), _FILE)))
    async def push_frame(
        request: Request, stream_id: StreamId, query: Annotated[StreamQuery, QueryParameter()]
    ) -> StreamResponse:
        """Adds a picture to a stream and recognizes what the stream shows now.

        A new id starts a new stream. Only the first picture of each interval counts.
        """
        uploads.require_once(name for name, _ in request.query_params.multi_items())
        kind = request.headers.get("content-type", "")
        with service.scratch.file() as stored:
            with admission.metrics.stage("upload"):
                picture = await uploads.read_picture(kind, request.stream(), stored, limits)
            with admission.place():
                return await service.push(shops[_name(request)], picture, stream_id, query)

    @router.post("/streams/{stream_id}/text", openapi_extra=_body({JSON: SpokenText.model_json_schema()}))
    async def add_text(request: Request, stream_id: StreamId) -> TextResponse:
        """Adds what is said in a stream. It counts for the pictures of its time that are pushed later."""
        said = await uploads.read_json(request.headers.get("content-type", ""), request.stream(), SpokenText)
        return service.add_text(shops[_name(request)], stream_id, said)

    @router.post("/embed", openapi_extra=_body({FORM: _PICTURES_FORM}))
    async def embed(request: Request) -> EmbeddingsResponse:
        """Embeds pictures, so that they can be compared with each other and with the index."""
        kind = request.headers.get("content-type", "")
        uploads.require_form(kind, request.query_params)
        with service.scratch.file() as stored:
            with admission.metrics.stage("upload"):
                form = await read_form(kind, request.stream(), stored, limits.frames)
            pictures = uploads.check_pictures(form)
            with admission.place():
                async with working(request, limits.decode_seconds) as work:
                    return await service.embed(shops[_name(request)], pictures, work)

    @router.delete("/streams/{stream_id}", status_code=204)
    async def end_stream(request: Request, stream_id: StreamId) -> None:
        """Ends a stream."""
        if not await service.end(shops[_name(request)], stream_id):
            raise HTTPException(404, f"found no stream {stream_id!r}; it may have been idle for too long")

    return router


def _live(service: Service, shops: Shops, listeners: Listeners) -> APIRouter:
    """The routes of what streams show from moment to moment."""
    router = APIRouter()

    @router.post(
        "/streams/{stream_id}/source", status_code=201, openapi_extra=_body({JSON: SourceQuery.model_json_schema()})
    )
    async def follow(request: Request, stream_id: StreamId) -> StreamStateResponse:
        """Follows a source, until the stream is ended."""
        query = await uploads.read_json(request.headers.get("content-type", ""), request.stream(), SourceQuery)
        return await service.follow(shops[_name(request)], stream_id, query)

    @router.get("/streams/{stream_id}")
    async def stream(request: Request, stream_id: StreamId) -> StreamStateResponse:
        """Describes a stream."""
        return service.state(shops[_name(request)], stream_id)

    @router.get("/streams/{stream_id}/events", response_class=Response, responses=_EVENTS)
    async def events(
        request: Request,
        stream_id: StreamId,
        after: Annotated[str | None, QueryParameter(description="As the header Last-Event-ID.", max_length=100)] = None,
    ) -> Response:
        """Tells when a product is shown and gone, as server-sent events."""
        log = service.events(shops[_name(request)], stream_id)
        last = request.headers.get("last-event-id", after)
        return EventStream(log, last, listeners) if log.has_after(last) else Response(status_code=204)

    @router.get("/streams/{stream_id}/frames/{frame}", response_class=Response, responses=_JPEG)
    async def frame(request: Request, stream_id: StreamId, frame: str) -> Response:
        """A small frame of a stream, whose address an event tells."""
        return _jpeg(service.lives.frame(StreamName(shops[_name(request)].name, stream_id), frame))

    return router


def _information(service: Service, shops: Shops, page: Page) -> APIRouter:
    """The routes that describe an index."""
    router = APIRouter()

    @router.get("/products")
    async def products(request: Request, listing: Annotated[Listing, QueryParameter()]) -> ProductsResponse:
        """Lists the products of the index."""
        names = (name for name, _ in request.query_params.multi_items() if name != "where")
        uploads.require_once(names)
        return await service.listed(shops[_name(request)], listing)

    @router.get("/search")
    async def search(request: Request, query: Annotated[WordsQuery, QueryParameter()]) -> WordsResponse:
        """Finds the products that words describe, if the index holds titles as vectors."""
        uploads.require_once(name for name, _ in request.query_params.multi_items())
        return await service.search(shops[_name(request)], query)

    @router.get("/images/{digest}", response_class=Response, responses=_JPEG)
    async def image(request: Request, digest: str) -> Response:
        """A small picture of an image of the index, by the SHA-256 of its file."""
        return _jpeg(await service.thumbnail(shops[_name(request)], digest))

    @router.head(HEALTH, response_model=HealthResponse, include_in_schema=False)
    @router.get(HEALTH, response_model=HealthResponse, responses=_ANONYMOUS)
    async def health(request: Request) -> HealthResponse | Response:
        """Reports that the server is up and can store requests, and describes its index."""
        return _unless_anonymous(request, service.health(shops[_name(request)]))

    @router.get("/", include_in_schema=False)
    def home(request: Request) -> HTMLResponse:  # in a thread: a list of many galleries takes time
        return HTMLResponse(page.render(shops[_name(request)]))

    @router.get(f"/{LIVE}", include_in_schema=False)
    async def live() -> HTMLResponse:
        return HTMLResponse(page.render_live())

    return router


def _overview(service: Service, shops: Shops, page: Page) -> APIRouter:
    """The routes of a server of several indexes that are of none of them."""
    router = APIRouter()

    @router.head(HEALTH, response_model=IndexesResponse, include_in_schema=False)
    @router.get(HEALTH, response_model=IndexesResponse, responses=_ANONYMOUS)
    async def health(request: Request) -> IndexesResponse | Response:
        """Reports that the server is up and can store requests, and describes its indexes."""
        indexes = {name: service.health(shops[name]) for name in shops.names}
        return _unless_anonymous(request, IndexesResponse(indexes=indexes))

    @router.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(page.render_names(shops))

    return router


def _measurements(metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measurements() -> Response:
        """Metrics for Prometheus."""
        text = prometheus_client.generate_latest(metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return router


def _name(request: Request) -> str:
    """The index that a request's address names; "" = the only one."""
    return request.path_params.get("index", "")


def _jpeg(encoded: bytes) -> Response:
    """A picture that never changes."""
    return Response(encoded, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


def _unless_anonymous(request: Request, description: T) -> T | Response:
    """A description, only for those who have shown a token, if the server has any."""
    return Response(status_code=204) if getattr(request.state, "anonymous", False) else description


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in content.items()}}
    }

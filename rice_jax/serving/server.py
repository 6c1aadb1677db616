"""Recognition over HTTP: an app for clips, videos, and streams, with a web page."""

from collections.abc import Sequence
from typing import Annotated, Any

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

from rice_jax.serving import uploads
from rice_jax.serving.admission import HEALTH, Access, Admission, AdmissionMiddleware, Metrics
from rice_jax.serving.forms import read_form
from rice_jax.serving.limits import Limits
from rice_jax.serving.page import Page
from rice_jax.serving.responses import ErrorResponse, HealthResponse, RecognitionResponse, StreamResponse
from rice_jax.serving.service import Service, StreamQuery
from rice_jax.serving.shops import Shops
from rice_jax.serving.uploads import FORM, PICTURES, Query
from rice_jax.serving.work import working

DOCS = "/docs"
CLIENT_LEFT = 499  # nginx's code for a client that has disconnected, for the metrics
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
) -> FastAPI:
    """Creates the app; its threads run from start-up to shutdown.

    Args:
        shops: the indexes to search.
        limits: the server's limits.
        interval_seconds: distance between the frames of a video or stream that are looked at.
        batch_sizes: sizes that the engines were compiled for; 1 must be among them.
        watch: whether to replace an index when its file is replaced.
        access: who may use the server.
    """
    metrics = Metrics()
    service, admission = Service(shops, limits, interval_seconds, batch_sizes, metrics), Admission(limits, metrics)
    app = FastAPIOffline(
        docs_url=DOCS,
        redoc_url=None,
        title="rice_jax",
        description="Recognizes the product shown in a livestream clip among a shop's images.",
        dependencies=[Depends(HTTPBearer(auto_error=False))] if access.tokens else [],  # only for the schema
        lifespan=lambda app: service.running(watch),
        responses={code: {"model": ErrorResponse} for code in ("4XX", 500, 503, 507)},
    )
    page = Page(limits, DOCS.removeprefix("/"))
    policies = {"/": page.policy, DOCS: DOCS_POLICY}
    app.add_middleware(AdmissionMiddleware, admission=admission, policies=policies, access=access)
    if access.origins:  # around the admission: pages can then read why a request is refused
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _failed)
    app.include_router(_recognition(service, shops, admission, limits))
    app.include_router(_information(service, shops, metrics, page))
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
            form = await read_form(kind, request.stream(), stored, limits.frames)
            upload = uploads.check_form(form)
            with admission.place():
                async with working(request, limits.decode_seconds) as work:
                    return await service.recognize(shops[""], upload, work)

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
            picture = await uploads.read_picture(kind, request.stream(), stored, limits)
            with admission.place():
                return await service.push(shops[""], picture, stream_id, query)

    @router.delete("/streams/{stream_id}", status_code=204)
    async def end_stream(stream_id: StreamId) -> None:
        """Ends a stream."""
        if not service.end(shops[""], stream_id):
            raise HTTPException(404, f"found no stream {stream_id!r}; it may have been idle for too long")

    return router


def _information(service: Service, shops: Shops, metrics: Metrics, page: Page) -> APIRouter:
    """The routes that describe the server and its index."""
    router = APIRouter()

    @router.get("/images/{digest}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def image(digest: str) -> Response:
        """A small picture of an image of the index, by the SHA-256 of its file."""
        encoded = await service.thumbnail(shops[""], digest)
        return Response(encoded, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    @router.get(HEALTH, response_model=HealthResponse, responses={204: {"description": "Healthy, without a token."}})
    async def health(request: Request) -> HealthResponse | Response:
        """Reports that the server is up and can store requests, and describes its index."""
        description = service.health(shops[""])
        return Response(status_code=204) if getattr(request.state, "anonymous", False) else description

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measurements() -> Response:
        """Metrics for Prometheus."""
        text = prometheus_client.generate_latest(metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @router.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(page.render(shops[""]))

    return router


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in content.items()}}
    }

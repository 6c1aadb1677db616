"""Admission of requests: where they may come from, how large and slow they may be, how many are served at once."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

import prometheus_client
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rice_jax.serving.hosts import LOCAL, require_host
from rice_jax.serving.limits import Limits, at_limit
from rice_jax.serving.tokens import require_token

POLICY = "default-src 'none'; frame-ancestors 'none'"  # Content-Security-Policy of everything but pages
HEALTH = "/healthz"  # needs no token: what asks for it, such as a load balancer, may have none
SOURCE_STATES = ("connecting", "live", "waiting", "ended", "failed")  # `State.state` of a followed source
HEADERS = {  # of all responses
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Metrics:
    """Metrics for Prometheus, in a registry of their own."""

    def __init__(self):
        self.registry = registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)
        self.seconds = prometheus_client.Histogram(
            "rice_request_seconds",
            "Time from a request's header to the end of its response.",
            ["route"],
            registry=registry,
        )
        self.stages = prometheus_client.Histogram(
            "rice_stage_seconds",
            "Time of a request in a stage: upload, decode, queue, encode, or rank.",
            ["stage"],
            registry=registry,
        )
        self.responses = prometheus_client.Counter(
            "rice_requests", "Requests by status.", ["route", "status"], registry=registry
        )
        self.in_flight = prometheus_client.Gauge(
            "rice_requests_in_progress", "Requests that are being recognized.", registry=registry
        )
        self.arriving = prometheus_client.Gauge(
            "rice_uploads_in_progress", "Requests whose body is arriving, or is in use.", registry=registry
        )
        self.batches = prometheus_client.Histogram(
            "rice_batch_pictures",
            "Pictures encoded together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.waiting = prometheus_client.Gauge("rice_pictures_waiting", "Pictures in the queue.", registry=registry)
        self.streams = prometheus_client.Gauge("rice_streams", "Streams in memory.", registry=registry)
        self.sources = prometheus_client.Gauge(
            "rice_sources", "Sources of streams, by their state.", ["state"], registry=registry
        )
        self.listeners = prometheus_client.Gauge("rice_listeners", "Listeners to events.", registry=registry)
        self.answers = prometheus_client.Counter(
            "rice_answers",
            "Parts of clips and videos, and pictures pushed to streams, by whether a product is named.",
            ["index", "answer"],
            registry=registry,
        )
        self.scores = prometheus_client.Histogram(
            "rice_best_score",
            "Score of the most similar product in each of these answers.",
            ["index"],
            buckets=[step / 20 for step in range(21)],
            registry=registry,
        )
        self.products, self.loaded, self.stale = (
            prometheus_client.Gauge(f"rice_index_{name}", text, ["index"], registry=registry)
            for name, text in (
                ("products", "Products of the index."),
                ("loaded_timestamp_seconds", "When the index was loaded."),
                ("stale", "1 if a newer index has been written that cannot be used."),
            )
        )

    def stage(self, name: str) -> contextlib.AbstractContextManager:
        """Measures the `with` block as a request's time in a stage."""
        return self.stages.labels(name).time()

    def spent(self, waiting: float, encoding: float) -> None:
        """Notes the seconds that a request's pictures have waited for the encoder, and in which they were encoded."""
        self.stages.labels("queue").observe(waiting)
        self.stages.labels("encode").observe(encoding)

    def count(self, index: str, named: bool, score: float) -> None:
        """Counts an answer about an index: whether it names a product, and the best score."""
        self.answers.labels(index, "named" if named else "none").inc()
        self.scores.labels(index).observe(score)


class Admission:
    """Counts requests with pictures: those that are being recognized, and the bytes of all."""

    def __init__(self, limits: Limits, metrics: Metrics):
        """Starts without requests."""
        self.limits, self.metrics = limits, metrics
        self.arriving_bytes = 0
        self._recognizing = 0

    def require_place(self) -> None:
        """Raises an HTTPException (503) if too many requests are being recognized."""
        if self._recognizing >= self.limits.requests:
            detail = f"{at_limit(self._recognizing, 'request', 'in flight')}; try again"
            raise HTTPException(503, detail, {"Retry-After": "1"})

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """The place of a request whose body has arrived: a slow client must not hold one.

        This bounds the queue of pictures too, as each such request has at most one chunk of pictures in it.

        Raises:
            HTTPException: there is none (503).
        """
        self.require_place()
        self._recognizing += 1
        self.metrics.in_flight.set(self._recognizing)
        try:
            yield
        finally:
            self._recognizing -= 1
            self.metrics.in_flight.set(self._recognizing)


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may use the server.

    Attributes:
        hosts: of `require_host`.
        origins: of `require_host`.
        tokens: of `require_token`.
    """

    hosts: Collection[str] = LOCAL
    origins: Sequence[str] = ()
    tokens: Sequence[bytes] = ()


class AdmissionMiddleware:
    """Checks a request's headers, and limits its body's size and duration.

    A request that is refused here costs nothing, as its body is not read.
    """

    def __init__(self, app: ASGIApp, admission: Admission, policies: Mapping[str, str], access: Access):
        """Wraps an app.

        Args:
            app: serves admitted requests.
            admission: counts the requests.
            policies: {path of a page: its Content-Security-Policy}.
            access: who may use the server.
        """
        self._app, self._admission, self._policies, self._access = app, admission, policies, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), 0
        body = _Body(scope, receive, self._admission)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers["Content-Security-Policy"] = self._policies.get(scope["path"], POLICY)
                if body.is_unread:  # uvicorn then closes the connection, so the client must not reuse it
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._admit(scope, body, send_with_headers)
        except asyncio.CancelledError:  # uvicorn cancels what is left when the time for stopping is over
            if not status:
                refusal = JSONResponse(
                    {"detail": "the server stops"}, 503, {"Connection": "close", "Retry-After": "60"}
                )
                await refusal(scope, receive, send_with_headers)
        finally:
            # The route, not the path: labels stay in memory, so clients must not choose them.
            route = getattr(scope.get("route"), "path", "other")
            self._admission.metrics.responses.labels(route, status or 500).inc()
            self._admission.metrics.seconds.labels(route).observe(time.perf_counter() - start)

    async def _admit(self, scope: Scope, body: "_Body", send: Send) -> None:
        uploads = scope["method"] not in ("GET", "HEAD", "DELETE")
        try:
            require_host(scope, self._access.hosts, self._access.origins)
            self._require_token(scope)
            _require_one_length(scope)
            if uploads:
                self._admission.require_place()
        except HTTPException as error:
            refusal = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
            return await refusal(scope, body.receive, send)
        if not uploads:
            return await self._app(scope, body.receive, send)
        with self._admission.metrics.arriving.track_inprogress(), body:
            await self._app(scope, body, send)

    def _require_token(self, scope: Scope) -> None:
        try:
            require_token(scope, self._access.tokens)
        except HTTPException:
            if scope["path"] != HEALTH:
                raise
            scope.setdefault("state", {})["anonymous"] = True


def _require_one_length(scope: Scope) -> None:
    """Refuses a body with two lengths: a proxy may count it otherwise, and take its end for another request."""
    if {"content-length", "transfer-encoding"} <= set(Headers(scope=scope)):
        detail = "found both Content-Length and Transfer-Encoding, expected one of them"
        raise HTTPException(400, detail, {"Connection": "close"})


class _Body:
    """Receives a request's body; raises an HTTPException if it is too large or too slow."""

    def __init__(self, scope: Scope, receive: Receive, admission: Admission):
        self.receive, self._admission, self._limits = receive, admission, admission.limits
        self._deadline = asyncio.get_running_loop().time() + self._limits.upload_seconds
        headers = Headers(scope=scope)
        self._announced = int(headers.get("content-length", 0))
        self._size, self._more = 0, self._announced > 0 or "transfer-encoding" in headers

    @property
    def is_unread(self) -> bool:
        """Whether some of the body has not been received."""
        return self._more

    def __enter__(self) -> "_Body":
        return self

    def __exit__(self, *error: object) -> None:
        self._admission.arriving_bytes -= self._size

    async def __call__(self) -> Message:
        if not self._more:
            return await self.receive()  # returns when the client disconnects
        self._require(self._announced)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self.receive()
        except TimeoutError as error:
            seconds = f"{self._limits.upload_seconds:g} seconds"
            raise HTTPException(408, f"found {self._size:,} bytes in {seconds}, expected the whole body") from error
        size = len(message.get("body", b""))
        self._size += size
        self._admission.arriving_bytes += size
        self._require(self._size)
        if self._admission.arriving_bytes > self._limits.arriving_bytes:
            detail = f"the requests in flight exceed the limit of {self._limits.arriving_bytes:,} bytes; try again"
            raise HTTPException(503, detail, {"Retry-After": "1"})
        self._more = message.get("more_body", False)
        return message

    def _require(self, size: int) -> None:
        if size > self._limits.upload_bytes:
            raise HTTPException(413, f"the request exceeds the limit of {self._limits.upload_bytes:,} bytes")

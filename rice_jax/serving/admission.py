"""Admission of requests: how many are served at once, how large and how slow each may be, and metrics about them."""

import asyncio
import time
from collections.abc import Mapping

import prometheus_client
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rice_jax.serving.uploads import Limits

POLICY = "default-src 'none'; frame-ancestors 'none'"  # Content-Security-Policy of everything but pages
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
        self.responses = prometheus_client.Counter(
            "rice_requests", "Requests by status.", ["route", "status"], registry=registry
        )
        self.in_flight = prometheus_client.Gauge(
            "rice_requests_in_progress", "Requests with pictures in flight.", registry=registry
        )
        self.batches = prometheus_client.Histogram(
            "rice_batch_pictures",
            "Pictures encoded together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.waiting = prometheus_client.Gauge("rice_pictures_waiting", "Pictures in the queue.", registry=registry)
        self.streams = prometheus_client.Gauge("rice_streams", "Streams in memory.", registry=registry)


class AdmissionMiddleware:
    """Limits the number of requests with a body, and the size and duration of each body.

    This bounds the queue of pictures too, since each admitted request has at most one chunk of pictures in it. A
    refused request costs nothing, as its body is not read.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, policies: Mapping[str, str]):
        """Wraps an app.

        Args:
            app: serves admitted requests.
            limits: the limits.
            metrics: updated for every request.
            policies: {path of a page: its Content-Security-Policy}.
        """
        self._app, self._limits, self._metrics, self._policies = app, limits, metrics, policies
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers["Content-Security-Policy"] = self._policies.get(scope["path"], POLICY)
            await send(message)

        try:
            await self._admit(scope, receive, send_with_headers)
        finally:
            # The route, not the path: labels stay in memory, so clients must not choose them.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.responses.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("GET", "HEAD", "DELETE"):
            return await self._app(scope, receive, send)
        if self._in_flight >= self._limits.requests:
            detail = f"{self._in_flight} requests are in flight, which is this server's limit; try again"
            refusal = JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})
            return await refusal(scope, receive, send)
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            await self._app(scope, _Body(scope, receive, self._limits), send)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)


class _Body:
    """Receives a request's body; raises an HTTPException if it is too large or too slow."""

    def __init__(self, scope: Scope, receive: Receive, limits: Limits):
        self._receive, self._limits = receive, limits
        self._deadline = asyncio.get_running_loop().time() + limits.upload_seconds
        self._announced = int(Headers(scope=scope).get("content-length", 0))
        self._size, self._more = 0, True

    async def __call__(self) -> Message:
        if not self._more:
            return await self._receive()  # returns when the client disconnects
        self._require(self._announced)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            seconds = f"{self._limits.upload_seconds:g} seconds"
            raise HTTPException(408, f"found {self._size:,} bytes in {seconds}, expected the whole body") from error
        self._size += len(message.get("body", b""))
        self._require(self._size)
        self._more = message.get("more_body", False)
        return message

    def _require(self, size: int) -> None:
        if size > self._limits.upload_bytes:
            raise HTTPException(413, f"the request exceeds the limit of {self._limits.upload_bytes:,} bytes")

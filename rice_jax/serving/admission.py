"""The server's door: how many come in at once, how much each brings, and what is counted of them."""

import asyncio
import time
from collections.abc import Mapping

import prometheus_client
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rice_jax.serving.uploads import Limits

POLICY = "default-src 'none'; frame-ancestors 'none'"  # of whatever is no page
HEADERS = {  # of all answers
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Metrics:
    """What Prometheus is told, in a registry of its own."""

    def __init__(self):
        self.registry = registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)
        self.seconds = prometheus_client.Histogram(
            "rice_request_seconds", "From a request's header to the end of its answer.", ["route"], registry=registry
        )
        self.answers = prometheus_client.Counter(
            "rice_requests", "Requests answered, by status.", ["route", "status"], registry=registry
        )
        self.inside = prometheus_client.Gauge(
            "rice_requests_in_progress", "Requests with pictures that are being answered.", registry=registry
        )
        self.batches = prometheus_client.Histogram(
            "rice_batch_pictures",
            "Pictures that were encoded together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.waiting = prometheus_client.Gauge(
            "rice_pictures_waiting", "Pictures that wait to be encoded.", registry=registry
        )
        self.streams = prometheus_client.Gauge("rice_streams", "Streams that are kept.", registry=registry)


class Door:
    """Middleware that admits requests with a body while there are places, and reads no more of each than it may.

    The queue of pictures needs no other bound: who is inside has one chunk in it at most. Whoever is refused has cost
    nothing, as nothing of the body has been read.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, policies: Mapping[str, str]):
        """Opens.

        Args:
            app: what is behind it.
            limits: how many, how much and how slowly.
            metrics: that are kept.
            policies: {path of a page: its Content-Security-Policy}.
        """
        self._app, self._limits, self._metrics, self._policies = app, limits, metrics, policies
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers["Content-Security-Policy"] = self._policies.get(scope["path"], POLICY)
            await send(message)

        try:
            await self._enter(scope, receive, send_on)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # never what the client wrote: labels are kept
            self._metrics.answers.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("GET", "HEAD", "DELETE"):
            return await self._app(scope, receive, send)
        if self._inside >= self._limits.requests:
            detail = f"{self._inside} requests are being answered, which is all this server takes; try again"
            refusal = JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})
            return await refusal(scope, receive, send)
        self._inside += 1
        self._metrics.inside.set(self._inside)
        try:
            await self._app(scope, _Body(scope, receive, self._limits), send)
        finally:
            self._inside -= 1
            self._metrics.inside.set(self._inside)


class _Body:
    """Receives a request's body; one that is too large or too slow ends with an HTTPException."""

    def __init__(self, scope: Scope, receive: Receive, limits: Limits):
        self._receive, self._limits = receive, limits
        self._deadline = asyncio.get_running_loop().time() + limits.upload_seconds
        self._announced = int(Headers(scope=scope).get("content-length", 0))
        self._size, self._more = 0, True

    async def __call__(self) -> Message:
        if not self._more:
            return await self._receive()  # waits for the client to leave
        self._require(self._announced)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            seconds = f"{self._limits.upload_seconds:g} seconds"
            raise HTTPException(408, f"{self._size:,} bytes came in {seconds}, expected the whole body") from error
        self._size += len(message.get("body", b""))
        self._require(self._size)
        self._more = message.get("more_body", False)
        return message

    def _require(self, size: int) -> None:
        if size > self._limits.upload_bytes:
            raise HTTPException(413, f"found more than {self._limits.upload_bytes:,} bytes, expected at most so many")

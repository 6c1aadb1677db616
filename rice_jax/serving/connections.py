"""Connections: how many there may be, and how long each may wait.

uvicorn limits only the time between two requests. Here a connection must also deliver a request's header in time, must
end a body soon after the response that refuses it, and must read its response. A connection that waits for a request
makes room for a new one when there are too many, so that idle and slow clients do not shut out others.
"""

import asyncio
import enum
import http
import json
import sys
import time
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from rice_jax.serving.limits import Limits, at_limit

REST_SECONDS = 5.0  # in which the rest of a body may follow its response; it is thrown away
ENDLESS = "rice.endless"  # key of a request's scope: its response ends only when the client or the server does
READ_SECONDS = 30.0  # in which a client must read what fills the connection's buffers


class Config(uvicorn.Config):
    """uvicorn's configuration with limits of connections."""

    def __init__(self, app: ASGIApp, limits: Limits, **settings: Any):
        """Configures a server.

        Args:
            app: to serve.
            limits: the server's limits.
            settings: further arguments of `uvicorn.Config`.
        """
        super().__init__(app, http=Connection, ws="none", lifespan="on", access_log=False, **settings)
        self.limits = limits


class _State(enum.Enum):
    HEADER = "a request's header has begun, or the connection is new"
    REQUEST = "a request is being answered"
    ANSWERED = "a response is complete"
    REFUSED = "the connection is one too many"


class Connection(H11Protocol):
    """An HTTP connection with limits."""

    def __init__(self, config: Config, *args: Any, **kwargs: Any):
        """Keeps the limits; takes the arguments of `H11Protocol`."""
        super().__init__(config, *args, **kwargs)
        self._limits = config.limits
        self._state = _State.HEADER
        self._since = time.monotonic()  # when the state began; uvloop's time stands still within an iteration
        self._timer: asyncio.TimerHandle | None = None
        self._aborted = False
        self._rest = 0  # bytes of a body that have followed its response

    # asyncio calls the following methods.

    def connection_made(self, transport: Any) -> None:  # uvloop's transports are not asyncio's
        super().connection_made(transport)
        self._enter(_State.HEADER, self._limits.header_seconds)
        self._make_room()

    def data_received(self, data: bytes) -> None:
        if self._state is _State.REFUSED:
            return
        if self._state is _State.ANSWERED and not self._has_rest():
            self._enter(_State.HEADER, self._limits.header_seconds)
        super().data_received(data)
        if self._state is not _State.REQUEST and self._answering():
            self._enter(_State.REQUEST)
        elif self._state is _State.ANSWERED and self._has_rest():
            self._rest += len(data)
            if self._rest > self._limits.upload_bytes:
                self._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_timer(None)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._state is _State.REQUEST:
            self._set_timer(READ_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._state is _State.REQUEST:
            self._set_timer(None)

    # uvicorn calls the following methods.

    def shutdown(self) -> None:
        super().shutdown()
        if self._answering() and self.cycle.scope.get(ENDLESS):
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        # uvicorn would answer in plain text, fail if a response has begun, and let the request's app answer too.
        if self._answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_response(400, f"the request is not valid HTTP: {str(sys.exception())[:100]}"))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        pass  # uvicorn's tells to install WebSocket libraries; the request is answered over HTTP/1.1

    def on_response_complete(self) -> None:
        # uvicorn closes an idle connection earlier, but waits without end for a client that does not read.
        self._rest = 0
        self._enter(_State.ANSWERED, REST_SECONDS if self._has_rest() else READ_SECONDS)
        super().on_response_complete()
        if self._answering():  # the client has sent its next request already
            self._enter(_State.REQUEST)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _has_rest(self) -> bool:
        """Whether more of a request's body follows."""
        return self.conn.their_state is h11.SEND_BODY

    def _enter(self, state: _State, seconds: float | None = None) -> None:
        """Enters a state, which may last so many seconds; None = without end."""
        self._state, self._since = state, time.monotonic()
        self._set_timer(seconds)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._abort)

    def _abort(self) -> None:
        self._aborted = True
        self.transport.abort()

    def _make_room(self) -> None:
        """Ends the connection that has waited longest if there are too many, or refuses this one if none waits."""
        others = [other for other in self.connections if isinstance(other, Connection) and not other._aborted]
        others.remove(self)
        address = self.client and self.client[0]
        alike = [other for other in others if (other.client and other.client[0]) == address]
        for found, limit in ((alike, self._limits.client_connections), (others, self._limits.connections)):
            if len(found) >= limit:
                waiting = [other for other in found if other._state is not _State.REQUEST]
                if not waiting:
                    return self._refuse(f"{at_limit(len(found), 'connection', 'open')}; try again")
                min(waiting, key=lambda other: (not other.transport.is_closing(), other._since))._abort()

    def _refuse(self, detail: str) -> None:
        self.transport.write(_response(503, detail, "Retry-After: 1"))
        self.transport.write_eof()
        self._enter(_State.REFUSED, 1.0)  # what the client sends is read, as it would else not see the response


def _response(status: int, detail: str, *headers: str) -> bytes:
    """The last response of a connection whose request reaches no app."""
    body = json.dumps({"detail": detail}).encode()
    known = ("Content-Type: application/json", "Connection: close", f"Content-Length: {len(body)}")
    lines = (f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", *known, *headers, "", "")
    return "\r\n".join(lines).encode() + body

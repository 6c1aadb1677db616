"""Slow clients, and too many of them, do not shut out others."""

import contextlib
import json
import socket
import time

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse

from rice_jax.serving import connections
from rice_jax.serving.limits import Limits
from tests.serving.serving import serving, until

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
PUSH = POST.replace(b"POST /", b"POST /streams/x/frames?time=1")
# Its client is told by "100 Continue" that the body is being read.
WAITING = POST.replace(b"POST /", b"POST /?length").replace(b"Host", b"Expect: 100-continue\r\nHost")
CHUNK = b"400\r\n" + b"x" * 1024 + b"\r\n"


def create_app():
    app = FastAPI()

    @app.get("/")
    async def get():
        return PlainTextResponse("hello")

    @app.get("/large")
    async def large():
        return PlainTextResponse("x" * 50_000_000)

    @app.post("/")
    async def post(request: Request):
        if "length" in request.query_params:
            return PlainTextResponse(str(len(await request.body())))
        raise HTTPException(415, "not read")

    return app


class Clients:
    """Opens connections to a server; all are closed at the end."""

    def __init__(self, address, stack):
        self.port, self.stack = int(address.rpartition(":")[2]), stack

    def open(self, data=b""):
        opened = self.stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=20))
        opened.sendall(data)
        return opened

    def ask(self, data=GET):
        """The response's first line and last line, on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as opened:
            opened.sendall(data.replace(b"Host", b"Connection: close\r\nHost"))
            found = b"".join(iter(lambda: opened.recv(1 << 16), b"")).decode()
        return found.partition("\r\n")[0], found.rpartition("\r\n")[2]


@contextlib.contextmanager
def clients(**limits):
    with serving(create_app(), Limits(**limits)) as address, contextlib.ExitStack() as stack:
        yield Clients(address, stack)


def read_to(opened, end):
    """Reads until what has come ends so; the connection stays open, and a response may come in pieces."""
    found = b""
    while not found.endswith(end):
        piece = opened.recv(1000)
        assert piece, found
        found += piece


def is_open(opened):
    opened.setblocking(False)
    try:
        return opened.recv(1 << 16) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_a_header_must_arrive_in_time():
    with clients(header_seconds=0.3) as server:
        silent, dripping, kept = server.open(), server.open(GET[:20]), server.open(GET)
        read_to(kept, b"hello")
        kept.sendall(GET[:20])  # of a second request
        start = time.monotonic()
        while any(map(is_open, (silent, dripping, kept))):
            with contextlib.suppress(OSError):
                dripping.send(b"x")
            time.sleep(0.02)
            assert time.monotonic() - start < 5
        assert time.monotonic() - start > 0.2
        assert server.ask() == ("HTTP/1.1 200 OK", "hello")


def test_a_slow_request_is_not_a_slow_header():
    with clients(header_seconds=0.2) as server:
        slow = server.open(POST.replace(b"POST /", b"POST /?length"))
        for _ in range(4):
            time.sleep(0.1)
            slow.sendall(CHUNK)
        slow.sendall(b"0\r\n\r\n" + GET)
        found = b""
        while not found.endswith(b"hello"):
            found += slow.recv(1000)
        assert b"4096" in found


def test_connections_that_wait_make_room():
    with clients(client_connections=3) as server:
        oldest, other, third = server.open(), server.open(), server.open(GET[:20])
        assert server.ask()[0] == "HTTP/1.1 200 OK"
        until(lambda: not is_open(oldest))
        assert server.ask()[0] == "HTTP/1.1 200 OK"
        assert is_open(other) and is_open(third)


@pytest.mark.parametrize("limit", ["client_connections", "connections"])
def test_connections_with_requests_make_no_room(limit):
    with clients(**{limit: 2}) as server:
        busy = [server.open(WAITING) for _ in range(2)]
        for opened in busy:
            read_to(opened, b"\r\n\r\n")
        status, reason = server.ask()
        assert status == "HTTP/1.1 503 Service Unavailable" and "2 connections are open" in reason
        for opened in busy:
            opened.sendall(CHUNK + b"0\r\n\r\n")
            read_to(opened, b"1024")
        assert server.ask()[0] == "HTTP/1.1 200 OK"


def test_a_refused_body_is_not_read_without_end(monkeypatch):
    monkeypatch.setattr(connections, "REST_SECONDS", 0.3)
    with clients(upload_bytes=1_000_000) as server:
        slow = server.open(POST + CHUNK)
        assert b" 415 " in slow.recv(1000)
        start = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - start < 10:
                slow.sendall(CHUNK)
                time.sleep(0.02)
        assert 0.2 < time.monotonic() - start < 5
        monkeypatch.setattr(connections, "REST_SECONDS", 60.0)
        fast = server.open(POST)
        with pytest.raises(OSError):
            for _ in range(20_000):
                fast.sendall(CHUNK)


def test_a_body_that_ends_soon_after_its_refusal_keeps_the_connection():
    with clients() as server:
        opened = server.open(POST + CHUNK)
        assert b" 415 " in opened.recv(1000)
        opened.sendall(CHUNK + b"0\r\n\r\n" + GET)
        read_to(opened, b"hello")


def test_a_request_that_follows_a_refused_body_at_once_does_not_count_as_its_rest():
    with clients(upload_bytes=4000) as server:
        opened = server.open(POST + CHUNK)
        assert b" 415 " in opened.recv(1000)
        opened.sendall(CHUNK * 2 + b"0\r\n\r\n" + POST.replace(b"POST /", b"POST /?length") + CHUNK * 3)
        opened.sendall(b"0\r\n\r\n")
        read_to(opened, b"3072")


def test_a_response_must_be_read(monkeypatch):
    monkeypatch.setattr(connections, "READ_SECONDS", 0.3)
    with clients() as server:
        lazy, diligent = (server.open(GET.replace(b"/ ", b"/large ")) for _ in range(2))
        found = 0
        while found < 50_000_000:
            found += len(piece := diligent.recv(1 << 20))
            assert piece
        time.sleep(1)
        found = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := lazy.recv(1 << 20):
                found += len(piece)
        assert found < 50_000_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (GET.replace(b"Host", b"Guest"), "Host"),
        (b"hello\r\n\r\n", "not valid HTTP"),
        (PUSH + b"zz\r\n", "not valid HTTP"),
        (PUSH + CHUNK[:-2] + b"more\r\n", "not valid HTTP"),
        (PUSH.replace(b"chunked", b"chunked\r\nContent-Length: 5") + b"0\r\n\r\n", "both Content-Length and"),
    ],
)
def test_what_is_not_http_is_refused(client, data, reason, caplog):
    with socket.create_connection(("127.0.0.1", client.base_url.port), 20) as opened:
        opened.sendall(data)
        head, _, body = b"".join(iter(lambda: opened.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n") and reason in json.loads(body)["detail"], body
    assert not [record for record in caplog.records if record.exc_info]


def test_a_body_that_breaks_after_its_refusal_closes_the_connection(caplog):
    with clients() as server:
        opened = server.open(POST + CHUNK)
        assert b" 415 " in opened.recv(1000)
        opened.sendall(b"zz\r\n")
        assert opened.recv(1000) == b""
    assert not [record for record in caplog.records if record.exc_info]

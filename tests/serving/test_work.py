"""Places, and the time that decoding may take."""

import copy
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import HTTPException
from starlette.requests import ClientDisconnect

from rice_jax.serving.limits import Limits
from rice_jax.serving.work import Work
from tests.serving.serving import asking, clip, until

DRIP = b"POST /recognize HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
DRIP += b"Content-Length: 1000\r\n\r\n--x\r\n"


@pytest.fixture
def slow(engine):
    """An engine that prepares a picture only after `slow.go` is set, or in `slow.seconds`, and counts them."""
    slow, slow.count, slow.seconds, slow.go = copy.copy(engine), 0, 20.0, threading.Event()

    def prepare(picture):
        slow.count += 1
        slow.go.wait(slow.seconds)
        return engine.prepare(picture)

    slow.prepare = prepare
    yield slow
    slow.go.set()


def test_pictures_are_taken_in_time():
    pictures = iter(range(5))
    work = Work(1.0)
    assert [work.take(pictures, 2) for _ in range(4)] == [[0, 1], [2, 3], [4], []]


def test_work_ends_before_the_next_picture():
    work, seen = Work(0.1), []

    def pictures(seconds):
        for number in range(10):
            seen.append(number)
            time.sleep(seconds)
            yield number

    with pytest.raises(HTTPException, match="more than 0.1 seconds") as refused:
        work.take(pictures(0.04), 10)
    assert refused.value.status_code == 413 and seen == [0, 1, 2]
    work = Work(1.0)
    work.end()
    with pytest.raises(ClientDisconnect):
        work.take(pictures(0), 1)
    assert seen == [0, 1, 2]


def test_bodies_that_arrive_slowly_hold_no_place(engine, shop):
    with asking(engine, Limits(requests=1)) as client:
        address = client.base_url.host, client.base_url.port
        with socket.create_connection(address) as one, socket.create_connection(address) as other:
            one.sendall(DRIP)
            other.sendall(DRIP)
            until(lambda: "rice_uploads_in_progress 2.0" in client.get("/metrics").text)
            assert client.post("/recognize", files=clip(shop, 0)).status_code == 200


def test_a_body_that_arrives_when_all_places_are_taken_is_refused(held, shop):
    with asking(held, Limits(requests=1)) as client, ThreadPoolExecutor(1) as pool:
        body = client.build_request("POST", "/recognize", files=clip(shop, 0)).read()
        head = DRIP.replace(b"1000", str(len(body)).encode()).partition(b"--x")[0]
        boundary = body.partition(b"\r\n")[0].removeprefix(b"--")
        with socket.create_connection((client.base_url.host, client.base_url.port)) as late:
            late.sendall(head.replace(b"boundary=x", b"boundary=" + boundary) + body[:100])
            until(lambda: "rice_uploads_in_progress 1.0" in client.get("/metrics").text)
            first = pool.submit(client.post, "/recognize", files=clip(shop, 0))
            until(lambda: held.sizes == [1])
            late.sendall(body[100:])
            assert b" 503 " in late.recv(1000)
        held.go.set()
        assert first.result().status_code == 200


def test_decoding_that_takes_too_long_is_refused(slow, shop):
    slow.seconds = 0.05
    with asking(slow, Limits(decode_seconds=0.2)) as client:
        answer = client.post("/recognize", files=clip(shop, *range(8), *range(8)))
        assert answer.status_code == 413 and "more than 0.2 seconds" in answer.json()["detail"], answer.text
        assert slow.count < 8
        assert client.post("/recognize", files=clip(shop, 0)).status_code == 200


def test_decoding_ends_when_its_client_leaves(slow, shop):
    slow.seconds = 0.3
    with asking(slow) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/recognize", files=clip(shop, *range(8)), timeout=0.1)
        until(lambda: 'rice_requests_total{route="/recognize",status="499"} 1.0' in client.get("/metrics").text)
        assert slow.count <= 3


def test_a_server_that_stops_does_not_wait_for_a_picture(slow, shop, caplog):
    with ThreadPoolExecutor(1) as pool:
        with asking(slow, stop_seconds=1) as client:
            address = client.base_url.join("/recognize")
            sent = pool.submit(httpx.post, address, files=clip(shop, *range(8)), timeout=20)
            until(lambda: slow.count == 1)
            start = time.monotonic()
        assert time.monotonic() - start < 10
        slow.go.set()
        assert sent.result().status_code == 503 and "stops" in sent.result().json()["detail"]
    time.sleep(0.1)
    assert slow.count == 1
    assert "Traceback" not in caplog.text

"""Streams that the server follows, and the events of streams."""

import asyncio
import contextlib
import copy
import io
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import create_autospec

import numpy as np
import pytest
from PIL import Image

from rice_jax.recognition import changes as changes_module
from rice_jax.recognition import follow as follow_module
from rice_jax.recognition.allowed import parse_allowed
from rice_jax.recognition.changes import Search
from rice_jax.recognition.lines import event_line
from rice_jax.recognition.source import LiveSource
from rice_jax.serving import events as events_module
from rice_jax.serving import live as live_module
from rice_jax.serving import service as service_module
from rice_jax.serving.admission import Access
from rice_jax.serving.limits import Limits
from rice_jax.serving.live import Followed, Pushed
from rice_jax.serving.shops import Shop
from rice_jax.serving.streams import Lives, StreamName, Streams
from rice_jax.serving.tokens import read_tokens
from tests.recognition.streams import free_port
from tests.serving.live import listening, sending, write_part
from tests.serving.serving import asking, until
from tests.shop import SIDE, png

SECONDS = 20.0  # generous


def test_a_source_takes_the_place_of_pictures_that_are_pushed_no_longer():
    lives, name = Lives(Limits()), StreamName("", "s")
    pushed, followed = (create_autospec(kind, instance=True) for kind in (Pushed, Followed))
    lives.pushed[name] = pushed
    assert lives.follow(name, lambda: followed) is followed
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(lives.wait(Streams(Limits()), pool))
        pushed.end.assert_called_once()
        assert not followed.end.called and lives.get(name) is followed
        assert asyncio.run(lives.end(name, pool)) and followed.end.called and not asyncio.run(lives.end(name, pool))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(events_module, "KEEP_ALIVE_SECONDS", 1.0)
    monkeypatch.setattr(follow_module, "BACK_OFF", (0.05,))
    monkeypatch.setattr(follow_module, "TICK", 0.05)


@pytest.fixture
def following(engine):
    """A server that may follow what a port sends."""

    @contextlib.contextmanager
    def serve(*ports, **settings):
        allowed = parse_allowed([f"127.0.0.1:{port}" for port in ports])
        with asking(engine, allowed=allowed, **settings) as client:
            yield client

    yield serve
    until(lambda: not any(thread.name.startswith(("source", "follow")) for thread in threading.enumerate()))


def source(port, **more):
    return {"url": f"http://127.0.0.1:{port}/live.ts"} | more


def push(client, shop, row, second, stream="s", **query):
    headers, query = {"content-type": "image/png"}, {"time": second} | query
    return client.post(f"/streams/{stream}/frames", params=query, content=png(shop.pictures[row]), headers=headers)


def row_of(shop, jpeg):
    """Of the shop's picture that a JPEG shows."""
    found = np.asarray(Image.open(io.BytesIO(jpeg)).resize((SIDE, SIDE)), int)
    return int(np.argmin([np.abs(found - picture).mean() for picture in shop.pictures]))


def num_sources(client):
    """{state: number of sources}, of the server's metrics."""
    found = re.findall(r'^rice_sources{state="(\w+)"} (\S+)$', client.get("/metrics").text, re.M)
    assert len(found) == 5
    return {state: float(number) for state, number in found if float(number)}


def told(event):
    return event["event"], event["product"]["id"]


def test_a_source_is_followed_through_cuts_restarts_and_sizes(following, shop, tmp_path):
    parts = [
        write_part(tmp_path / "0.ts", [shop.pictures[row] for row in (1, 5)]),
        write_part(tmp_path / "1.ts", [shop.pictures[row] for row in (5, 3)], start=1000),  # another clock after a cut
        write_part(tmp_path / "2.ts", [shop.pictures[row] for row in (3, 10, 0)], scale=2),  # restarted, and larger
    ]
    with sending([parts[0]], parts[1:]) as port, following(port) as client:
        answer = client.post("/streams/s/source", json=source(port, max_delay=60))
        assert answer.status_code == 201 and answer.json()["source"]["state"] == "connecting"
        with listening(client, "/streams/s/events") as next_event:
            found = [next_event() for _ in range(7)]
            state = client.get("/streams/s").json()
            assert state["source"] | {"pictures": 0} == {
                "url": f"http://127.0.0.1:{port}/live.ts", "state": "live", "reason": None, "pictures": 0
            }  # fmt: skip
            assert state["shown"] == found[-1][0] and num_sources(client) == {"live": 1}
            frames = [client.get(f"/{event['frame']['image']}").content for event, _ in found]
            assert [row_of(shop, jpeg) for jpeg in frames] == [1, 1, 5, 5, 3, 3, 0]
            assert Image.open(io.BytesIO(frames[-1])).size == (2 * SIDE, 2 * SIDE), "they are not cropped"
            assert push(client, shop, 1, 1).status_code == 409
            assert client.post("/streams/s/source", json=source(port)).status_code == 409
            assert client.delete("/streams/s").status_code == 204
            assert not num_sources(client), "an ended stream is of no interest"
            last, end = next_event(), next_event()
        assert client.get("/streams/s").status_code == client.delete("/streams/s").status_code == 404
    events = [event for event, _ in (*found, last)]
    assert list(map(told, events)) == [
        (kind, f"p{row}") for row in (1, 5, 3, 0) for kind in ("shown", "gone")
    ] and end is None  # fmt: skip
    assert [event["reason"] for event in events[1::2]] == ["changed"] * 3 + ["stopped"]
    assert len({name for _, name in found}) == 7
    image = events[0]["product"]["image"]
    assert image.startswith("images/") and events[0]["products"][0]["image"] == image


def test_what_may_not_be_followed_is_refused(following, engine, tmp_path):
    port = free_port()
    with following(port, limits=Limits(sources=1)) as client:
        for body, status, reason in (
            (source(port + 1), 403, f"127.0.0.1:{port + 1} is no source of this server; --allow_sources adds it"),
            ({"url": "file:///etc/passwd"}, 403, "the scheme 'file'"),
            ({"url": "/etc/passwd"}, 403, "'/etc/passwd' is no source"),
            ({"url": "/dev/video0"}, 403, "no source"),
            ({"url": "/srv/live/\0"}, 403, "no source"),
            (source(port, gallery="none"), 404, "no gallery 'none'"),
            (source(port, where=["a=b"]), 404, "no column 'a'"),
            (source(port, max_delay=0), 422, "max_delay: "),
            (source(port, other=1), 422, "other: "),
            ({}, 422, "url: "),
            ([], 422, "the request: "),
            ({"url": "x" * 30_000}, 413, "20,000 bytes"),
        ):
            answer = client.post("/streams/s/source", json=body)
            assert answer.status_code == status and reason in answer.json()["detail"], answer.text
        assert client.post("/streams/s/source", content="{}").status_code == 415
        broken = client.post("/streams/s/source", content="{", headers={"content-type": "application/json"})
        assert broken.status_code == 422 and "the request: Invalid JSON" in broken.json()["detail"]
        assert "found" not in broken.json()["detail"]
        assert client.get("/streams/s").status_code == client.get("/streams/s/events").status_code == 404
        assert client.post("/streams/s/source", json=source(port)).status_code == 201
        answer = client.post("/streams/t/source", json=source(port))
        assert answer.status_code == 503 and "1 source is followed, which" in answer.json()["detail"]
        until(lambda: client.get("/streams/s").json()["source"]["state"] == "waiting")
        until(lambda: num_sources(client) == {"waiting": 1})
        assert "cannot be reached" in client.get("/streams/s").json()["source"]["reason"]
        client.delete("/streams/s")
        until(lambda: client.post("/streams/t/source", json=source(port)).status_code == 201)
    (tmp_path / "token").write_text("0123456789abcdef")
    with asking(engine, access=Access(tokens=read_tokens(tmp_path / "token"))) as client:
        assert client.post("/streams/s/source", json=source(port)).status_code == 401
        assert client.get("/streams/s/events").status_code == 401
        headers = {"authorization": "Bearer 0123456789abcdef"}
        assert client.post("/streams/s/source", json=source(port), headers=headers).status_code == 403


def test_a_source_that_does_not_answer_holds_nothing_up(following, shop, tmp_path):
    part = write_part(tmp_path / "0.ts", [shop.pictures[1]])
    with socket.create_server(("127.0.0.1", 0)) as silent, sending([part]) as port:
        dead = silent.getsockname()[1]
        with following(dead, port, limits=Limits(sources=2)) as client:
            assert client.post("/streams/dead/source", json=source(dead)).status_code == 201
            assert client.post("/streams/s/source", json=source(port)).status_code == 201
            with listening(client, "/streams/s/events") as next_event:
                assert told(next_event()[0]) == ("shown", "p1")
            assert client.get("/streams/dead").json()["source"]["state"] == "connecting"
            client.delete("/streams/dead")
            refused = client.post("/streams/dead/source", json=source(dead))
            assert refused.status_code == 503, "its connection is still there"
            silent.close()
            until(lambda: client.post("/streams/dead/source", json=source(dead)).status_code == 201)


def test_a_source_that_fails_says_why(shop, tmp_path, engine, caplog):
    path = tmp_path / "film.mkv"
    path.write_bytes(b"x" * 100)
    with asking(engine, allowed=parse_allowed([str(tmp_path)])) as client:
        film = tmp_path / "film.mp4"
        film.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x08mdat")
        assert client.post("/streams/s/source", json={"url": str(film)}).status_code == 201
        until(lambda: client.get("/streams/s").json()["source"]["state"] == "failed")
        assert num_sources(client) == {"failed": 1}
        assert "is an MP4 whose index is written at its end" in client.get("/streams/s").json()["source"]["reason"]
        assert caplog.messages[-1].endswith("or fragmented MP4; it is no longer followed")
        assert client.get("/streams/s/events").status_code == 204, "nothing will come"
        assert push(client, shop, 1, 1).status_code == 200, "what has failed can be replaced"
        assert not num_sources(client)
        assert client.get("/streams/s").json() == {"id": "s", "source": None, "shown": None, "speech": []}
        assert client.post("/streams/s/source", json={"url": str(path)}).status_code == 409


def test_another_model_takes_over(engine, shop, monkeypatch):
    other = copy.copy(engine)
    other.model = copy.copy(engine.model)
    engines, encoders, lines = [engine], [], []

    def pictures(source, interval, stop, seen):
        for second in range(40):
            engines[0] = other if second > 15 else engine
            yield float(second), shop.pictures[1]
            stop.wait(0.02)
        stop.wait(SECONDS)

    def encode(engine, pictures):
        encoders.append(engine)
        return engine.encode(np.stack(pictures))

    def write(event, frame):
        lines.append(event_line(event))
        return lines[-1]

    async def follow():
        followed = Followed("s", LiveSource("rtmp://localhost"), lambda: engines[0], encode, write, 1.0, Search())
        await asyncio.to_thread(until, lambda: followed.state.pictures == 40)
        followed.end()
        await asyncio.to_thread(followed.join)
        return followed.state

    monkeypatch.setattr(live_module, "live_pictures", pictures)
    assert asyncio.run(follow()).state == "ended"
    took_over = [own is other for own in encoders]
    assert took_over == sorted(took_over) and {True, False} == set(took_over)
    assert list(map(told, lines)) == [("shown", "p1"), ("gone", "p1")] and lines[1]["reason"] == "stopped"


def test_pushed_pictures_have_events(engine, shop, monkeypatch):
    monkeypatch.setattr(service_module, "WAIT_SECONDS", 0.02)
    with asking(engine) as client:
        push(client, shop, 1, 100)
        with listening(client, "/streams/s/events") as next_event, listening(client, "/streams/s/events") as other:
            for second in range(30):
                push(client, shop, 1 if second < 10 else 5, 101 + second)
            push(client, shop, 1, 125)  # late, so it changes nothing
            found = [next_event() for _ in range(3)]
            assert [other() for _ in range(3)] == found
            events = [event for event, _ in found]
            assert list(map(told, events)) == [("shown", "p1"), ("gone", "p1"), ("shown", "p5")]
            assert [event["second"] for event in events] == [0, 9.5, 9.5]
            assert client.get("/streams/s").json()["shown"] == events[2]
            frames = [event["frame"] for event in events]
            assert 0 <= frames[0]["second"] <= frames[1]["second"] < 9.5 < frames[2]["second"]
            pictures = [client.get(f"/{frame['image']}") for frame in frames]
            assert [answer.headers["content-type"] for answer in pictures] == ["image/jpeg"] * 3
            assert [row_of(shop, answer.content) for answer in pictures] == [1, 1, 5]
            for other in ("streams/s/frames/0123456789abcdef", "streams/t/frames/" + frames[0]["image"][-16:]):
                assert "found no such frame" in client.get(f"/{other}").json()["detail"]
            names = [name for _, name in found]
            for headers, after, expected in (
                ({}, None, found[2:]),
                ({}, "0", found),
                ({}, names[0], found[1:]),
                ({"last-event-id": names[1]}, names[0], found[2:]),
                ({"last-event-id": "0123-7"}, None, found),
            ):
                parameters = {"after": after} if after else {}
                with listening(client, "/streams/s/events", headers=headers, params=parameters) as again:
                    assert [again() for _ in expected] == expected
            for second in range(5):  # the clock restarts
                push(client, shop, 5, second)
            monkeypatch.setattr(changes_module, "LOST_SECONDS", 0.2)
            event, _ = next_event()
            assert told(event) == ("gone", "p5") and event["reason"] == "lost" and event["seconds"] > 20
            client.delete("/streams/s")
            assert next_event() is None
        assert client.get("/streams/s/events").status_code == 404
        assert client.get(f"/{frames[0]['image']}").status_code == 404, "nothing is kept of a stream that has ended"


def test_pushed_pictures_are_searched_for_as_they_say(engine, shop):
    with asking(engine) as client:
        push(client, shop, 6, 0)
        with listening(client, "/streams/s/events") as next_event:
            for second in range(1, 20):
                push(client, shop, 6, second, gallery="b", top=1)
            event, _ = next_event()
            assert told(event) == ("shown", "p6") and event["product"]["gallery"] == "b" and len(event["products"]) == 1


def test_a_stream_whose_events_fail_is_ended_and_others_go_on(engine, shop, monkeypatch, caplog):
    monkeypatch.setattr(service_module, "WAIT_SECONDS", 0.02)
    written = Shop.written

    def write(self, event, stream_id, frame):
        if stream_id == "bad" and event.event == "gone":
            raise RuntimeError("an event of a kind that nobody has foreseen")
        return written(self, event, stream_id, frame)

    monkeypatch.setattr(Shop, "written", write)
    with asking(engine) as client, contextlib.ExitStack() as stack:
        listen = {}
        for name in ("bad", "good"):
            push(client, shop, 1, 100, stream=name)
            listen[name] = stack.enter_context(listening(client, f"/streams/{name}/events"))
            for second in range(101, 110):
                push(client, shop, 1, second, stream=name)
            assert listen[name]()[0]["event"] == "shown"
        monkeypatch.setattr(changes_module, "LOST_SECONDS", 0.2)
        assert listen["bad"]() is None and listen["good"]()[0]["reason"] == "lost"
        assert caplog.messages == [
            "stream 'bad': an event cannot be sent, so its listeners are ended",
            "stream 'bad': its last event cannot be sent",
        ]
        push(client, shop, 1, 111, stream="bad")
        with listening(client, "/streams/bad/events") as again:
            for second in range(112, 120):
                push(client, shop, 1, second, stream="bad")
            assert again()[0]["event"] == "shown", "it starts anew"


def test_an_idle_stream_ends_its_listeners(engine, shop, monkeypatch):
    monkeypatch.setattr(service_module, "WAIT_SECONDS", 0.02)
    with asking(engine, Limits(stream_seconds=0.3)) as client:
        push(client, shop, 1, 1)
        with listening(client, "/streams/s/events") as next_event:
            assert next_event() is None


def test_listeners_leave_connections_to_others(engine, shop):
    with asking(engine, Limits(client_connections=4)) as client, contextlib.ExitStack() as stack:
        push(client, shop, 1, 1)
        for _ in range(2):
            stack.enter_context(listening(client, "/streams/s/events"))
        assert "rice_listeners 2.0" in client.get("/metrics").text
        answer = client.get("/streams/s/events")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert "2 listeners are connected" in answer.json()["detail"]
        stack.close()
        until(lambda: "rice_listeners 0.0" in client.get("/metrics").text)
        with listening(client, "/streams/s/events"):
            pass


def test_a_server_that_stops_ends_its_listeners(engine, shop):
    with contextlib.ExitStack() as stack:
        with asking(engine) as client:
            push(client, shop, 1, 1)
            listener = stack.enter_context(
                socket.create_connection(("127.0.0.1", client.base_url.port), timeout=SECONDS)
            )
            listener.sendall(b"GET /streams/s/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until(lambda: "rice_listeners 1.0" in client.get("/metrics").text)
            begin = time.monotonic()
        assert time.monotonic() - begin < SECONDS / 2
        assert b"".join(iter(lambda: listener.recv(1000), b"")).startswith(b"HTTP/1.1 200 OK")


def test_a_source_that_falls_silent_is_not_live(engine, shop, monkeypatch):
    """A file that no longer grows stays connected."""

    def pictures(source, interval, stop, seen):
        yield 0.0, shop.pictures[1]
        stop.wait(SECONDS)

    async def follow():
        encode = lambda engine, pictures: engine.encode(np.stack(pictures))  # noqa: E731
        write = lambda event, frame: event_line(event)  # noqa: E731
        followed = Followed("s", LiveSource("film.ts"), lambda: engine, encode, write, 0.05, Search())
        await asyncio.to_thread(until, lambda: followed.state.state == "waiting")
        state = followed.state
        followed.end()
        await asyncio.to_thread(followed.join)
        return state, followed.state.state

    monkeypatch.setattr(live_module, "live_pictures", pictures)
    monkeypatch.setattr(changes_module, "LOST_SECONDS", 0.2)
    state, at_last = asyncio.run(follow())
    assert (state.reason, state.pictures, at_last) == ("no picture has come for 0.2 seconds", 1, "ended")

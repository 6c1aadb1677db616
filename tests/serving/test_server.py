"""The server over HTTP gives what the engine gives."""

import copy
import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from rice_jax.recognition.allowed import parse_allowed
from rice_jax.recognition.recognizer import Recognizer, encode_video, products_over_time
from rice_jax.recognition.stream import Stream
from rice_jax.recognition.video import read_video
from rice_jax.serving.limits import Limits
from rice_jax.serving.shops import Shop
from rice_jax.serving.streams import StreamKey, Streams
from tests.serving.serving import asking, clip, frames, until, video
from tests.shop import png, write_mp4


def require_equal(products, matches):
    for name in ("id", "gallery", "title"):
        assert [product[name] for product in products] == [getattr(match, name) for match in matches]
    for name, tolerance in (("score", 1e-6), ("confidence", 0.02)):  # a confidence multiplies differences by 4000
        expected = [getattr(match, name) for match in matches]
        np.testing.assert_allclose([product[name] for product in products], expected, atol=tolerance)


def test_a_clip_is_ranked_as_by_the_engine(client, engine, shop):
    rows = [3, 3, 5]
    encoded = engine.encode(np.stack([engine.prepare(shop.pictures[row]) for row in rows]))
    for gallery, top in ((None, 8), ("a", 2), ("b", 50)):
        data = {"top": top} | ({} if gallery is None else {"gallery": gallery})
        answer = client.post("/recognize", files=clip(shop, *rows), data=data)
        assert answer.status_code == 200, answer.text
        found, expected = answer.json(), engine.rank(encoded, gallery, top)
        require_equal(found["products"], expected.products)
        assert found["none"] == pytest.approx(expected.none, abs=0.02)
        assert found["num_frames"] == 3
        assert found["timeline"][0]["start"] == 0 and found["timeline"][-1]["end"] == 3


def test_a_video_shows_its_products_over_time(client, engine, shop, tmp_path):
    path = write_mp4(tmp_path / "video.mp4", [shop.pictures[1], shop.pictures[4]], seconds=4)
    answer = client.post("/recognize", files=video(path.read_bytes()), data={"gallery": "a"})
    assert answer.status_code == 200, answer.text
    found = answer.json()["timeline"]
    expected = products_over_time(engine, *encode_video(engine, read_video(path)), gallery="a")
    assert [(part["start"], part["end"]) for part in found] == [(part.start, part.end) for part in expected]
    for part, other in zip(found, expected, strict=True):
        assert (part["product"] is None) == (other.product is None)
        require_equal([part["product"]] if part["product"] else [], [other.product] if other.product else [])
        require_equal(part["products"], other.products)
        assert part["confidence"] == pytest.approx(other.confidence, abs=0.02)
    assert [part["product"]["id"] for part in found if part["product"]] == ["p1", "p4"]
    assert answer.json()["num_frames"] == 8
    assert next(iter(answer.json())) == "timeline"
    assert answer.json()["products"] == [] and answer.json()["none"] is None, "of several parts, as a whole"
    assert answer.json()["named_from"] == engine.naming.none_cosine(engine.calibration)
    for part in found:
        assert (part["similarity"] is None) == (part["product"] is not None)


def test_a_video_of_one_part_is_a_clip_too(client, engine, shop, tmp_path):
    path = write_mp4(tmp_path / "video.mp4", [shop.pictures[3]], seconds=4)
    found = client.post("/recognize", files=video(path.read_bytes())).json()
    [part] = found["timeline"]
    assert found["products"] == part["products"] and found["products"][0]["id"] == "p3"
    assert found["none"] is not None


BAD = {
    "no form": (dict(content=b"x", headers={"content-type": "text/plain"}), 415, "text/plain"),
    "no type": (dict(content=b"x"), 415, "''"),
    "no boundary": (dict(content=b"x", headers={"content-type": "multipart/form-data"}), 400, "boundary"),
    "no frames": (dict(files={"gallery": (None, "a")}), 400, "no frames"),
    "empty": (dict(files=frames(b"")), 400, "frame 1 is empty"),
    "no image": (dict(files=frames(b"hello")), 400, "frame 1 is not an image"),
    "a script": (dict(files=frames(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")), 400, "not an image"),
    "a page": (dict(files=[("frames", ("x.html", b"<p>", "text/html"))]), 415, "frame 1: found 'text/html'"),
    "a text": (dict(files={"frames": (None, "hello")}), 400, "expected a file"),
    "both": (dict(files=frames(b"x") + video(b"x")), 400, "1 frames and 1 videos"),
    "two videos": (dict(files=video(b"x") * 2), 400, "2 videos"),
    "13 frames": (dict(files=frames(*[b"x"] * 13)), 413, "limit of 12"),
    "many fields": (dict(files=[("x", (None, "y"))] * 50), 400, "fields"),
    "a large field": (dict(files={"gallery": (None, "y" * 99_999)}), 413, "size"),
    "another file": (dict(files=[("other", ("x.png", b"x", "image/png"))]), 400, "'other'"),
    "another field": (dict(files=frames(b"x"), data={"other": "1"}), 422, "other"),
    "two galleries": (dict(files=frames(b"x"), data={"gallery": ["a", "b"]}), 400, "twice"),
    "a gallery in the address": (
        dict(files=frames(b"x"), params={"gallery": "a"}),
        422,
        "gallery: found in the request",
    ),
    "gallery": (dict(files=frames(b"x"), data={"gallery": "<b>"}), 404, "'<b>'"),
    "top 0": (dict(files=frames(b"x"), data={"top": "0"}), 422, "top"),
    "top huge": (dict(files=frames(b"x"), data={"top": "9" * 30}), 422, "top"),
    "top nan": (dict(files=frames(b"x"), data={"top": "nan"}), 422, "top"),
    "no video": (dict(files=video(b"hello" * 99)), 400, "cannot be read"),
    "a list": (dict(files=video(b"/etc/hostname\n")), 400, "cannot be read"),
    "a playlist": (
        dict(files=video(b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n")),
        400,
        "cannot be read",
    ),
    "too large": (dict(files=video(b"x" * 400_000)), 413, "300,000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_with_a_reason(client, name):
    request, status, reason = BAD[name]
    answer = client.post("/recognize", **request)
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text


def test_pictures_are_measured_before_they_are_decoded(client, shop, monkeypatch):
    file = io.BytesIO()
    Image.new("1", (10_000, 5000)).save(file, "PNG")
    assert len(file.getvalue()) < 20_000, "a bomb"
    loaded = []
    monkeypatch.setattr(Image.Image, "draft", lambda *_: loaded.append(1))
    answer = client.post("/recognize", files=frames(file.getvalue()))
    assert answer.status_code == 413 and "10000 × 5000" in answer.json()["detail"]
    answer = client.post("/streams/bomb/frames?time=1", content=file.getvalue(), headers={"content-type": "image/png"})
    assert answer.status_code == 413
    Image.new("1", (20_000, 20_000)).save(file := io.BytesIO(), "PNG")  # beyond what Pillow itself opens
    assert client.post("/recognize", files=frames(file.getvalue())).status_code == 413
    assert not loaded


def test_a_broken_frame_is_named(client, shop):
    whole = png(shop.pictures[0])
    answer = client.post("/recognize", files=frames(whole, whole[: len(whole) // 2]))
    assert answer.status_code == 400 and "frame 2" in answer.json()["detail"]
    jpeg = io.BytesIO()
    Image.fromarray(shop.pictures[0]).save(jpeg, "JPEG")
    for kind in ("image/jpeg", "application/octet-stream", "IMAGE/JPEG; charset=utf-8"):
        answer = client.post("/recognize", files=[("frames", ("x", jpeg.getvalue()[:-200], kind))])
        assert answer.status_code == 400 and "truncated" in answer.json()["detail"], answer.text


def test_conditions_hold_no_other_request_up(engine, shop, monkeypatch):
    """They are compared with all products, which takes long."""
    threads, require = [], Shop.require_products

    def record(self, selection):
        threads.append(threading.current_thread().name)
        return require(self, selection)

    monkeypatch.setattr(Shop, "require_products", record)
    with asking(engine, allowed=parse_allowed(["127.0.0.1:9"])) as client:
        picture = {"content": png(shop.pictures[1]), "headers": {"content-type": "image/png"}}
        source = {"url": "http://127.0.0.1:9/a.ts", "where": ["color=red"]}
        for answer in (
            client.post("/recognize", files=clip(shop, 1), data={"where": "color=red"}),
            client.post("/streams/s/frames?time=1&where=color=red", **picture),
            client.post("/streams/s/source", json=source),
        ):
            assert answer.status_code == 404 and "no column 'color'" in answer.json()["detail"], answer.text
    assert len(threads) == 3 and all(name.startswith("ranker") for name in threads)


def test_videos_are_measured(client, shop, tmp_path):
    path = write_mp4(tmp_path / "long.mp4", [shop.pictures[1]], seconds=10)
    answer = client.post("/recognize", files=video(path.read_bytes()))
    assert answer.status_code == 413 and "10 seconds" in answer.json()["detail"], answer.text
    path = write_mp4(tmp_path / "large.mp4", [np.zeros((256, 256, 3), np.uint8)], seconds=1)
    answer = client.post("/recognize", files=video(path.read_bytes()))
    assert answer.status_code == 413 and "256 × 256" in answer.json()["detail"], answer.text
    path = write_mp4(tmp_path / "whole.mp4", [shop.pictures[1]], seconds=4)
    answer = client.post("/recognize", files=video(path.read_bytes()[:-600]))  # its table of contents is at the end
    assert answer.status_code == 400, answer.text


def test_bytes_are_counted_whatever_the_header_says(client):
    def body(size):  # is sent in chunks, without a length
        yield from [b"x" * 10_000] * (size // 10_000)

    answer = client.post("/streams/x/frames?time=1", content=body(400_000), headers={"content-type": "image/png"})
    assert answer.status_code == 413, answer.text
    answer = client.post("/streams/x/frames?time=1", content=body(200_000), headers={"content-type": "image/png"})
    assert answer.status_code == 413 and "150,000" in answer.json()["detail"], answer.text
    answer = client.post("/recognize", files=frames(b"x" * 160_000))
    assert answer.status_code == 413 and "frame 1 exceeds the limit of 150,000" in answer.json()["detail"], answer.text


def test_a_slow_body_is_refused(engine):
    with asking(engine, Limits(upload_seconds=0.2)) as client:
        host, port = client.base_url.host, client.base_url.port
        with socket.create_connection((host, port), timeout=20) as slow:
            slow.sendall(b"POST /streams/x/frames?time=1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n")
            slow.sendall(b"Content-Length: 1000\r\n\r\nabc")
            answer = slow.recv(10_000)
        assert b" 408 " in answer and b"3 bytes" in answer


def test_a_stream_is_ranked_as_by_the_recognizer(client, shop):
    recognizer = Recognizer(shop.directory, gallery="a", top=3)
    for row, now in ((1, 10.0), (2, 12.5), (9, 11.0), (0, 11.5), (3, 13.0), (4, 14.0), (5, 3.0)):
        query = {"time": now, "gallery": "a", "top": 3}
        answer = client.post(
            "/streams/s-1/frames", params=query, content=png(shop.pictures[row]), headers={"content-type": "image/png"}
        )
        assert answer.status_code == 200, answer.text
        expected = recognizer.push(png(shop.pictures[row]), now)
        require_equal(answer.json()["products"], expected.products)
        assert answer.json()["time"] == expected.time
    assert client.delete("/streams/s-1").status_code == 204
    answer = client.delete("/streams/s-1")
    assert answer.status_code == 404 and "s-1" in answer.json()["detail"]


def test_a_stream_that_restarts_shows_what_is_shown_now(client, shop):
    def push(row, now):
        content, kind = png(shop.pictures[row]), {"content-type": "image/png"}
        found = client.post("/streams/again/frames", params={"time": now}, content=content, headers=kind).json()
        return found["products"][0]["id"], found["time"], found["num_frames"], found["restarted"]

    assert [push(1, now) for now in (100, 101)] == [("p1", 100, 1, False), ("p1", 101, 2, False)]
    assert [push(5, now) for now in (0, 1)] == [("p5", 0, 1, True), ("p5", 1, 2, False)]
    assert [push(3, now) for now in (3600, 3601)] == [("p3", 3600, 1, True), ("p3", 3601, 2, False)]
    assert client.delete("/streams/again").status_code == 204


def test_what_is_wrong_with_a_video_is_told(client, shop, tmp_path):
    path = write_mp4(tmp_path / "video.avi", [shop.pictures[1]], seconds=6)
    whole, cut = (
        client.post("/recognize", files=video(content)).json()
        for content in (path.read_bytes(), path.read_bytes()[: path.stat().st_size // 2])
    )
    assert whole["warnings"] == [] and whole["timeline"][-1]["end"] == 6
    assert "its header announces 6.0 seconds, but the file holds" in cut["warnings"][-1]
    assert 0 < cut["num_frames"] < 6 and cut["timeline"][-1]["end"] < 6


@pytest.mark.parametrize(
    "path, status, reason",
    [
        ("x/frames", 422, "time: Field required"),
        ("x/frames?time=nan", 422, "time"),
        ("x/frames?time=inf", 422, "time"),
        ("x/frames?time=-1e300", 422, "time"),
        ("x/frames?time=1&top=0", 422, "top"),
        ("x/frames?time=1&top=1e9", 422, "top"),
        ("x/frames?time=1&other=1", 422, "other"),
        ("x/frames?time=1&time=2", 400, "time: found twice"),
        ("x/frames?time=1&gallery=c", 404, "'c'"),
        ("x%0A/frames?time=1", 422, "stream_id"),
        ("%FF/frames?time=1", 422, "stream_id"),
        (f"{'x' * 101}/frames?time=1", 422, "stream_id"),
        ("x/frames?time=1", 400, "not an image"),
    ],
)
def test_bad_pictures_of_streams_are_refused(client, path, status, reason):
    answer = client.post(f"/streams/{path}", content=b"hello", headers={"content-type": "image/png"})
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text
    answer = client.post("/streams/x/frames?time=1", content=b"hello", headers={"content-type": "text/html"})
    assert answer.status_code == 415
    assert client.delete("/streams/x").status_code == 404, "no stream begins so"


def test_streams_are_limited_and_idle_ones_forgotten():
    now = [0.0]
    streams = Streams(Limits(streams=2, stream_seconds=10.0), clock=lambda: now[0])
    a, b, c = (StreamKey("", "model", name) for name in "abc")
    new = lambda: Stream(4)  # noqa: E731
    first = streams.open(a, new)
    now[0] = 6
    streams.open(b, new)
    assert streams.open(a, new) is first
    with pytest.raises(Exception, match="2 streams") as refused:
        streams.open(c, new)
    assert refused.value.status_code == 503 and refused.value.headers["Retry-After"] == "10"
    now[0] = 16.5
    assert len(streams) == 0
    assert streams.open(c, new) is not first
    assert not streams.end(a)
    assert streams.end(c)


def test_concurrent_requests_share_batches_but_not_errors(held, shop):
    broken = frames(png(shop.pictures[3])[:200])
    with asking(held) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/recognize", files=clip(shop, 0))
        until(lambda: held.sizes == [1])
        others = [pool.submit(client.post, "/recognize", files=clip(shop, row)) for row in range(1, 5)]
        bad = pool.submit(client.post, "/recognize", files=broken)
        assert bad.result().status_code == 400
        until(lambda: "rice_pictures_waiting 4.0" in client.get("/metrics").text)
        held.go.set()
        answers = [future.result().json() for future in (first, *others)]
    assert held.sizes == [1, 4]
    assert [answer["products"][0]["id"] for answer in answers] == ["p0", "p1", "p2", "p3", "p4"]


def test_requests_beyond_the_limit_get_a_503(held, shop):
    with asking(held, Limits(requests=2)) as client, ThreadPoolExecutor(8) as pool:
        inside = [pool.submit(client.post, "/recognize", files=clip(shop, 0)) for _ in range(2)]
        until(lambda: "rice_requests_in_progress 2.0" in client.get("/metrics").text)
        answer = client.post("/recognize", files=clip(shop, 0))
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert "2 requests" in answer.json()["detail"]
        assert client.get("/healthz").status_code == 200
        held.go.set()
        assert [future.result().status_code for future in inside] == [200, 200]
        assert client.post("/recognize", files=clip(shop, 0)).status_code == 200
        until(lambda: 'rice_requests_total{route="other",status="503"} 1.0' in client.get("/metrics").text)


def test_a_failing_engine_is_a_server_error(engine, shop, caplog):
    failing = copy.copy(engine)

    def encode(pictures):
        raise RuntimeError("secret")

    failing.encode = encode
    with asking(failing) as client:
        answer = client.post("/recognize", files=clip(shop, 0))
        assert answer.status_code == 500 and "secret" not in answer.text
        assert "log" in answer.json()["detail"]
        until(lambda: 'rice_requests_total{route="/recognize",status="500"} 1.0' in client.get("/metrics").text)


def test_requests_of_disconnected_clients_are_dropped(held, shop, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = write_mp4(tmp_path / "video.mp4", [shop.pictures[1]], seconds=6)
    with asking(held) as client:
        address = client.base_url.host, client.base_url.port
        with socket.create_connection(address) as leaver:  # in the middle of the body
            leaver.sendall(
                b"POST /recognize HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            )
            leaver.sendall(b"Content-Length: 1000\r\n\r\n--x\r\n")
            until(lambda: "rice_uploads_in_progress 1.0" in client.get("/metrics").text)
        with pytest.raises(httpx.ReadTimeout):  # during recognition
            client.post("/recognize", files=video(path.read_bytes()), timeout=0.5)
        held.go.set()
        until(lambda: "rice_uploads_in_progress 0.0" in client.get("/metrics").text)
        assert "rice_requests_in_progress 0.0" in client.get("/metrics").text
        until(lambda: 'rice_requests_total{route="/recognize",status="499"} 2.0' in client.get("/metrics").text)
        assert sum(held.sizes) < 6, "the rest of the video is not encoded"
        [directory] = tmp_path.glob("rice_jax-*")
        assert not list(directory.iterdir())
    assert not list(tmp_path.glob("rice_jax-*"))

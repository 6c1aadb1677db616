"""An index is replaced while it is searched."""

import contextlib
import copy
import dataclasses
import gc
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from rice_jax.index.store import FILE, Shard, read_index, write_index
from rice_jax.recognition.allowed import parse_allowed
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.products import by_gallery
from rice_jax.serving import service, shops
from rice_jax.serving.shops import Shops
from tests.serving.live import listening
from tests.serving.serving import BATCH_SIZES, asking, clip, until
from tests.shop import make_shop, png

REPLACEMENTS = 10


@pytest.fixture(autouse=True)
def watched_closely(monkeypatch):
    monkeypatch.setattr(service, "WATCH_SECONDS", 0.01)


@pytest.fixture
def file(shop, tmp_path):
    """The file of an index that a test may replace."""
    shutil.copytree(shop.directory, tmp_path / "index")
    return tmp_path / "index" / FILE


def load(engine):
    return lambda file, others: Engine(file.parent, batch_sizes=BATCH_SIZES, others=[engine, *others])


def renamed(engine, prefix, **about):
    """An engine of another index with the same pictures."""
    other = copy.copy(engine)
    ids = [prefix + name for name in engine.index.image_ids]
    about = dataclasses.replace(engine.index.about, **about)
    other.index = dataclasses.replace(engine.index, image_ids=ids, product_ids=ids, about=about)
    other._products = by_gallery(other.index)
    return other


def test_an_index_is_replaced_under_load_without_a_wrong_or_failed_answer(engine, shop, file):
    whole = shop.index
    fewer = dataclasses.replace(whole.take(range(6)), titles=[f"new {name}" for name in whole.image_ids[:6]])
    indexes = [whole, fewer]
    expected = {}  # {row: the answers of both indexes}
    for index in indexes:
        write_index(file.parent, index)
        with asking(Shops({"": file}, load(engine))) as client:
            for row in range(6):
                found = client.post("/recognize", files=clip(shop, row)).json()["products"]
                expected.setdefault(row, []).append([(one["id"], one["title"], one["image"]) for one in found])
    answers, done = [], threading.Event()

    def ask(client, row):
        while not done.is_set():
            answer = client.post("/recognize", files=clip(shop, row))
            assert answer.status_code == 200, answer.text
            found = [(one["id"], one["title"], one["image"]) for one in answer.json()["products"]]
            answers.append(expected[row].index(found))  # wholly of one index or of the other

    write_index(file.parent, whole)
    with asking(Shops({"": file}, load(engine)), watch=True) as client, ThreadPoolExecutor(2) as pool:
        asking_threads = [pool.submit(ask, client, row) for row in (1, 5)]
        try:
            for number in range(1, REPLACEMENTS + 1):
                index = indexes[number % 2]
                write_index(file.parent, index)
                until(lambda index=index: client.get("/healthz").json()["index"] == index.checksum)
                count = len(answers)
                until(lambda count=count: len(answers) >= count + 2 or any(one.done() for one in asking_threads))
        finally:
            done.set()
        for thread in asking_threads:
            thread.result()
    assert set(answers) == {0, 1}


def test_requests_in_flight_finish_with_the_old_index(held, shop, file):
    engines = iter([held, renamed(held, "new ")])
    with (
        asking(Shops({"": file}, lambda file, others: next(engines)), watch=True) as client,
        ThreadPoolExecutor() as pool,
    ):
        before = client.get("/healthz").json()
        inside = pool.submit(client.post, "/recognize", files=clip(shop, 3))
        until(lambda: held.sizes)
        write_index(file.parent, shop.index)
        until(lambda: client.get("/healthz").json()["index"] != before["index"])
        held.go.set()
        assert inside.result().json()["products"][0]["id"] == "p3"
        assert client.post("/recognize", files=clip(shop, 3)).json()["products"][0]["id"] == "new p3"
        assert "stale" in before and not before["stale"]


def test_an_index_that_cannot_be_used_does_not_replace_the_old_one(engine, shop, file, caplog, monkeypatch):
    with asking(Shops({"": file}, load(engine)), watch=True) as client:
        before = client.get("/healthz").json()

        def damage(change):
            change()
            until(lambda: client.get("/healthz").json()["stale"])
            assert client.get("/healthz").json() == before | {"stale": True}
            assert client.post("/recognize", files=clip(shop, 2)).json()["products"][0]["id"] == "p2"
            write_index(file.parent, shop.index.take(range(5)))
            until(lambda: not client.get("/healthz").json()["stale"])
            assert client.get("/healthz").json()["products"] == 5
            write_index(file.parent, shop.index)
            until(lambda: client.get("/healthz").json()["products"] == 8)
            before.update(client.get("/healthz").json())

        damage(lambda: file.write_bytes(b"PAR1"))
        assert "index.parquet: the new index cannot be used, so the previous one stays (DataError: " in caplog.text
        damage(file.unlink)
        assert "FileNotFoundError" in caplog.text
        damage(lambda: write_index(file.parent, shop.index.take([])))
        assert "found no images in the index" in caplog.text
        monkeypatch.setattr(shops, "RETRY_SECONDS", 0.05)
        refused = [OSError("its model is on its way")]
        monkeypatch.setattr(Engine, "_warn", lambda *_: (_ for _ in ()).throw(refused.pop()) if refused else None)
        write_index(file.parent, shop.index.take(range(4)))
        until(lambda: client.get("/healthz").json()["products"] == 4)
        assert "its model is on its way" in caplog.text, "it is tried again"


def test_an_index_of_shards_is_replaced_when_a_shard_is(engine, shop, tmp_path):
    for number, rows in enumerate((range(4), range(4, 8))):
        write_index(tmp_path, shop.index.take(rows), Shard(number, 2))
    found = Shops({"": tmp_path / FILE}, load(engine))
    before = found[""].health(1.0, False)
    assert before.products == 8 and abs(before.loaded - before.written).total_seconds() < 60
    assert not found.refresh("")
    write_index(tmp_path, shop.index.take(range(4, 6)), Shard(1, 2))
    assert found.refresh("") and found[""].num_products == 6
    (tmp_path / Shard(1, 2).file).unlink()
    assert not found.refresh("") and found.stale == {""}, "one is missing"


@pytest.fixture
def no_collection():
    """Python frees only what nothing refers to, as it would long before it looks for cycles."""
    gc.disable()
    yield
    gc.enable()


def test_the_old_index_does_not_stay_in_memory(engine, file, shop, no_collection):
    """Not even for a stream whose events are listened to, or for one that has ended and is remembered."""
    found = Shops({"": file}, load(engine))
    film = file.parent / "film.mp4"
    film.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x08mdat")  # its index would come at its end
    allowed = parse_allowed([str(film)])
    with asking(found, watch=True, allowed=allowed) as client, contextlib.ExitStack() as stack:
        old = weakref.ref(found[""].engine)
        assert client.post("/recognize", files=clip(shop, 2)).status_code == 200
        client.get("/images/" + shop.index.digests[2])
        push = {"content": png(shop.pictures[1]), "headers": {"content-type": "image/png"}}
        assert client.post("/streams/s/frames?time=1", **push).status_code == 200
        next_event = stack.enter_context(listening(client, "/streams/s/events"))
        for second in range(2, 9):
            client.post(f"/streams/s/frames?time={second}", **push)
        assert next_event()[0]["event"] == "shown"
        assert client.post("/streams/t/source", json={"url": str(film)}).status_code == 201
        until(lambda: client.get("/streams/t").json()["source"]["state"] == "failed")
        write_index(file.parent, shop.index.take(range(5)))
        until(lambda: client.get("/healthz").json()["products"] == 5)
        assert client.post("/streams/s/frames?time=9", **push).json()["num_frames"] == 4, "the stream goes on"
        until(lambda: old() is None)
        assert client.get("/streams/t").json()["source"]["state"] == "failed"


def test_streams_begin_anew_with_another_model(engine, shop, file):
    engines = iter([engine, renamed(engine, "new ", fingerprint="another")])
    with asking(Shops({"": file}, lambda file, others: next(engines)), watch=True) as client:

        def push(time):
            headers = {"content-type": "image/png"}
            found = client.post(f"/streams/s/frames?time={time}", content=png(shop.pictures[1]), headers=headers).json()
            return found["products"][0]["id"], found["num_frames"]

        assert [push(1), push(2)] == [("p1", 1), ("p1", 2)]
        write_index(file.parent, shop.index)
        until(lambda: client.get("/healthz").json()["fingerprint"] == "another")
        assert [push(3), push(4)] == [("new p1", 1), ("new p1", 2)]
        assert "rice_streams 1.0" in client.get("/metrics").text


def test_indexes_of_one_model_share_it(engine, shop, tmp_path, file):
    write_index(file.parent, shop.index.take(range(3)))
    other = Engine(file.parent, batch_sizes=BATCH_SIZES, others=[engine])
    assert other.model is engine.model and other._encoders is engine._encoders
    frames = other.encode(other.prepare(shop.pictures[2])[None])
    assert other.rank(frames).products[0].id == "p2" and len(other.rank(frames).products) == 3
    plain = make_shop(tmp_path / "plain", decoder=False)
    assert Engine(plain.directory, batch_sizes=BATCH_SIZES, others=[engine]).model is not engine.model


def test_the_index_is_described(client, shop):
    health = client.get("/healthz").json()
    assert health["index"] == read_index(shop.directory).checksum == shop.index.checksum
    assert health["fingerprint"] == shop.index.about.fingerprint and not health["stale"]
    assert health["written"].endswith("Z") and health["written"] <= health["loaded"]

"""Streams that end while a picture of theirs is ranked."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import create_autospec

from rice_jax.recognition import changes as changes_module
from rice_jax.serving.limits import Limits
from rice_jax.serving.live import Pushed
from rice_jax.serving.streams import Lives, StreamName, Streams
from tests.serving.live import listening
from tests.serving.serving import asking, until
from tests.serving.test_live import push

SECONDS = 20.0  # generous


def test_a_stream_that_is_ended_while_a_picture_is_ranked_holds_no_one_up(engine, shop, monkeypatch):
    ranking, go_on = threading.Event(), threading.Event()
    find = changes_module.products_over_time

    def wait(*arguments, **options):
        ranking.set()
        go_on.wait(SECONDS)
        return find(*arguments, **options)

    with asking(engine) as client, ThreadPoolExecutor(2) as pool:
        push(client, shop, 1, 0)
        with listening(client, "/streams/s/events") as next_event:
            for second in range(1, 5):
                push(client, shop, 1, second)
            monkeypatch.setattr(changes_module, "products_over_time", wait)
            pushing = pool.submit(push, client, shop, 1, 5)
            assert ranking.wait(SECONDS)
            ending = pool.submit(client.delete, "/streams/s")
            until(lambda: client.get("/streams/s", timeout=SECONDS / 4).status_code == 404)
            assert client.get("/healthz", timeout=SECONDS / 4).status_code == 200
            assert not pushing.done() and not ending.done()
            go_on.set()
            assert ending.result().status_code == 204
            pushing.result()
            events = [event for event, _ in iter(next_event, None)]
            assert [event["event"] for event in events] == ["shown", "gone"] and events[1]["reason"] == "stopped"


def test_a_stream_that_is_forgotten_is_ended_outside_the_event_loop():
    """A picture of it may be ranked just then, for which its end waits."""
    lives, pushed, threads = Lives(Limits()), create_autospec(Pushed, instance=True), []
    lives.pushed[StreamName("", "s")] = pushed
    pushed.end.side_effect = lambda: threads.append(threading.current_thread())
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(lives.wait(Streams(Limits()), pool))
    assert len(threads) == 1 and threads[0] is not threading.current_thread()

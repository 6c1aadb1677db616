"""Events that are posted to a URL."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rice_jax.recognition import webhook as webhook_module
from rice_jax.recognition.webhook import Webhook
from rice_jax.types import DataError

SECONDS = 60.0  # generous; nothing waits for it to pass


@pytest.fixture
def receiver():
    """A server that keeps what is posted, and answers with the statuses that it is given, then with 200."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.go_on.wait(SECONDS)
            server.received.append((self.headers["Content-Type"], json.loads(body)))
            self.send_response(server.statuses.pop(0) if server.statuses else 200)
            self.send_header("Retry-After", "3600")
            if not server.is_endless:
                self.send_header("Content-Length", "0")
            self.end_headers()
            with contextlib.suppress(OSError):  # until the sender closes the connection
                while server.is_endless:
                    self.wfile.write(b": keep-alive\n\n")
                    time.sleep(0.01)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.received, server.statuses, server.go_on = [], [], threading.Event()
    server.is_endless = False
    server.go_on.set()
    server.url = f"http://127.0.0.1:{server.server_port}/hook?secret=1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.is_endless = False
    server.go_on.set()
    server.shutdown()
    server.server_close()


def numbers(receiver):
    return [event["number"] for _, event in receiver.received]


def test_events_arrive_in_order(receiver, caplog):
    webhook = Webhook(receiver.url)
    for number in range(5):
        webhook.send({"number": number, "title": "Sofä"})
    webhook.close(SECONDS)
    assert numbers(receiver) == list(range(5)) and not caplog.records
    assert receiver.received[0] == ("application/json", {"number": 0, "title": "Sofä"})


def test_an_event_that_fails_is_sent_again(receiver, caplog):
    """Soon, however late the receiver asks for it."""
    receiver.statuses += [503, 500, 429]
    webhook = Webhook(receiver.url, back_off=0.001)
    webhook.send({"number": 0})
    webhook.send({"number": 1})
    webhook.close(SECONDS)
    assert numbers(receiver) == [0, 0, 0, 0, 1] and not caplog.records


@pytest.mark.parametrize(("statuses", "reason"), [([400], "has answered 400"), ([307], "307"), ([503] * 11, "503")])
def test_an_event_that_is_refused_is_named_and_dropped(receiver, caplog, statuses, reason):
    receiver.statuses += statuses
    webhook = Webhook(receiver.url, back_off=0.0001)
    webhook.send({"number": 0})
    webhook.send({"number": 1})
    webhook.close(SECONDS)
    assert numbers(receiver) == [0] * len(statuses) + [1]
    [record] = caplog.records
    assert reason in record.getMessage() and "secret" not in record.getMessage()


@pytest.mark.parametrize("status", [200, 400, 503])
def test_an_answer_that_never_ends_holds_no_event_up(receiver, caplog, status):
    """As that of a proxy, or of an address that tells events itself."""
    receiver.is_endless = True
    receiver.statuses.append(status)
    webhook = Webhook(receiver.url, back_off=0.001)
    for number in range(3):
        webhook.send({"number": number})
    webhook.close(SECONDS)
    assert numbers(receiver) == [0] * (status == 503) + [0, 1, 2]
    assert len(caplog.records) == (status == 400)


def test_nothing_waits_for_a_slow_receiver(receiver, monkeypatch, caplog):
    monkeypatch.setattr(webhook_module, "MAX_QUEUED", 3)
    receiver.go_on.clear()
    webhook = Webhook(receiver.url)
    for number in range(10):
        webhook.send({"number": number})
    webhook.close(0.01)
    assert "has not taken the last" in caplog.text and "too slow; 4 events have been dropped" in caplog.text
    receiver.go_on.set()
    webhook.close(SECONDS)
    assert numbers(receiver)[-3:] == [7, 8, 9], "the newest are kept"


def test_a_receiver_that_is_not_there(caplog):
    webhook = Webhook("http://127.0.0.1:9/", back_off=0.0001)
    webhook.send({"number": 0})
    webhook.close(SECONDS)
    assert "127.0.0.1: NewConnectionError; the event is dropped" in caplog.text


def test_a_host_that_cannot_be_is_not_tried_again(caplog):
    webhook = Webhook("http://a..b/", back_off=SECONDS)
    webhook.send({"number": 0})
    webhook.close(SECONDS)
    assert "a..b: LocationParseError; the event is dropped" in caplog.text


@pytest.mark.parametrize("url", ["", "hook", "ftp://example.com/", "http://", "https:///hook"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(DataError, match="expected a URL that begins with http:// or https://"):
        Webhook(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/", "http://ex ample/", "http://[::1/hook"])
def test_a_url_without_a_usable_host_is_refused(url):
    with pytest.raises(DataError, match="webhook: Failed to parse: "):
        Webhook(url)

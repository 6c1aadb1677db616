"""What `rice recognize --follow` does with events."""

import argparse
import json
import os
import signal
import sys

import pytest

from rice_jax.commands import follow
from rice_jax.recognition.changes import Event
from rice_jax.recognition.engine import Match

MATCH = Match("mug", "a", "A mug", 0.98765432, 0.9, "mug-1", {"price": "5"})
SHOWN = Event("shown", 1.5, 2.0, MATCH, 0.9, (MATCH,))
GONE = Event("gone", 61.5, 62.0, MATCH, 0.9, (MATCH,), "stopped", 60.0)
PRODUCT = MATCH._asdict() | {"score": 0.9877}
LINES = [
    {
        "event": "shown", "time": "1970-01-01T00:00:01.500+00:00", "second": 2.0, "product": PRODUCT,
        "confidence": 0.9, "products": [PRODUCT],
    },
    {
        "event": "gone", "time": "1970-01-01T00:01:01.500+00:00", "second": 62.0, "product": PRODUCT,
        "confidence": 0.9, "seconds": 60.0, "reason": "stopped",
    },
]  # fmt: skip


@pytest.fixture
def run(monkeypatch):
    """Follows a stream with two events, of which the second comes after `act`."""

    def run(act=lambda: None, webhook=None):
        stops = []

        def events(batches, engine, **_):
            yield SHOWN
            act()
            yield GONE

        monkeypatch.setattr(follow, "follow", lambda source, prepare, stop, **_: stops.append(stop))
        monkeypatch.setattr(follow, "changes", events)
        options = argparse.Namespace(
            follow="rtmp://example.com", listen=False, max_delay=5.0, webhook=webhook, interval_seconds=1.0,
            gallery=None, top=1, where={},
        )  # fmt: skip
        follow.follow_live(options, lambda: argparse.Namespace(prepare=None))
        return stops[0].is_set()

    return run


def test_events_are_lines(run, capsys):
    assert not run()
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == LINES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it(run, capsys, number):
    former = signal.getsignal(number)
    assert run(lambda: os.kill(os.getpid(), number))
    assert len(capsys.readouterr().out.splitlines()) == 2 and signal.getsignal(number) is former


def test_it_stops_when_nobody_reads(run, monkeypatch, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert run()


def test_events_go_to_the_webhook_too(run, monkeypatch, capsys):
    sent = []

    class Webhook:
        def __init__(self, url):
            sent.append(url)

        def send(self, line):
            sent.append(line)

        def close(self, seconds):
            sent.append(seconds)

    monkeypatch.setattr(follow, "Webhook", Webhook)
    run(webhook="http://localhost/hook")
    assert sent == ["http://localhost/hook", *LINES, follow.WEBHOOK_SECONDS]
    sent.clear()

    def fail():
        raise OSError("the source is broken")

    with pytest.raises(OSError, match="the source is broken"):
        run(fail, webhook="http://localhost/hook")
    assert sent == ["http://localhost/hook", LINES[0], follow.WEBHOOK_SECONDS], "what waits is sent all the same"
    capsys.readouterr()

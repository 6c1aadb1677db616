"""The part of the command `recognize` that follows a live stream (`--follow`)."""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from rice_jax.recognition.changes import changes
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.follow import follow
from rice_jax.recognition.lines import event_line
from rice_jax.recognition.source import LiveSource
from rice_jax.recognition.webhook import Webhook
from rice_jax.types import DataError

WEBHOOK_SECONDS = 5.0  # for the last events at the end


def follow_live(options: argparse.Namespace, load: Callable[[], Engine]) -> None:
    """Prints a line for each event until SIGTERM, Ctrl-C, or the end of what reads stdout.

    Args:
        options: of the command line.
        load: loads the engine.
    """
    if Path(options.follow or "-").is_dir():
        raise DataError(f"{options.follow!r}: found a directory, expected a URL, a file that grows, or a camera")
    source = LiveSource(options.follow, options.listen, options.max_delay)
    webhook = Webhook(options.webhook) if options.webhook else None
    engine, stop = load(), threading.Event()
    batches = follow(source, engine.prepare, stop, interval_seconds=options.interval_seconds)
    with _set_by_signals(stop), contextlib.ExitStack() as closing:
        if webhook:
            closing.callback(webhook.close, WEBHOOK_SECONDS)  # after an error, too
        events = changes(
            batches,
            engine,
            gallery=options.gallery,
            top=options.top,
            where=options.where,
            interval_seconds=options.interval_seconds,
        )
        for event in events:
            line = event_line(event)
            if webhook:
                webhook.send(line)
            try:
                print(json.dumps(line, ensure_ascii=False, allow_nan=False), flush=True)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what follows is written to nowhere
                stop.set()


@contextlib.contextmanager
def _set_by_signals(event: threading.Event) -> Iterator[None]:
    """Lets SIGTERM and Ctrl-C set the event; the second signal ends the program at once."""

    def on_signal(number: int, _: object) -> None:
        event.set()
        signal.signal(number, signal.SIG_DFL)

    former = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)

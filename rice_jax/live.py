"""The part of the command `recognize` that follows a live stream (`--follow`)."""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable

from rice_jax.lines import event_line
from rice_jax.recognition.changes import changes
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.follow import follow
from rice_jax.recognition.source import Source
from rice_jax.recognition.webhook import Webhook

WEBHOOK_SECONDS = 5.0  # for the last events at the end


def follow_live(options: argparse.Namespace, load: Callable[[], Engine]) -> None:
    """Prints a line for each event until SIGTERM, Ctrl-C, or the end of what reads stdout.

    Args:
        options: of the command line.
        load: loads the engine.
    """
    source = Source(options.follow, options.listen, options.max_delay)
    webhook = Webhook(options.webhook) if options.webhook else None
    engine, stop = load(), threading.Event()

    def on_signal(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # the next one ends the program at once

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    batches = follow(source, engine.prepare, stop, interval_seconds=options.interval_seconds)
    for event in changes(batches, engine, gallery=options.gallery, top=options.top, where=options.where):
        line = event_line(event)
        if webhook:
            webhook.send(line)
        try:
            print(json.dumps(line, ensure_ascii=False, allow_nan=False), flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what follows is written to nowhere
            stop.set()
    if webhook:
        webhook.close(WEBHOOK_SECONDS)

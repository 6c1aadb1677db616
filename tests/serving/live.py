"""A live source on this machine, and a listener to the events of a server."""

import contextlib
import json
import threading
import time
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np

SECONDS = 20.0  # in which an event must come
PAUSE = 0.02  # seconds between pictures, whose own clock has a second


def write_part(path: Path, pictures, each=9, start=0, scale=1) -> bytes:
    """A stream of MPEG-TS with a picture a second, each shown `each` times; `scale` enlarges them."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=1, options={"tune": "zerolatency", "g": "3", "crf": "5"})
        stream.height, stream.width = (side * scale for side in pictures[0].shape[:2])
        stream.pix_fmt = "yuv420p"
        for place in range(len(pictures) * each):
            picture = np.repeat(np.repeat(pictures[place // each], scale, axis=0), scale, axis=1)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = start + place, Fraction(1, 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


@contextlib.contextmanager
def sending(*connections):
    """Sends to who asks: the parts of each connection one after the other, and then nothing until the end.

    Yields the port.
    """
    waiting, end = iter(connections), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = next(waiting, None)
            self.send_response(404 if parts is None else 200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                for part in parts or ():
                    count = len(part) // 188 // 18 * 188  # about a picture, in whole packets
                    for place in range(0, len(part), count):
                        self.wfile.write(part[place : place + count])
                        end.wait(PAUSE)
            if parts is connections[-1]:
                end.wait(20)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_port
    finally:
        end.set()
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def listening(client, path, **settings):
    """Yields a function that returns the next event, and its id; None at the end."""
    with client.stream("GET", path, **settings) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()

        def next_event():
            name, end = None, time.monotonic() + SECONDS
            for line in lines:
                assert time.monotonic() < end, "no event has come"
                if line.startswith("id: "):
                    name = line[4:]
                elif line.startswith("data: "):
                    return json.loads(line[6:]), name
            return None

        yield next_event

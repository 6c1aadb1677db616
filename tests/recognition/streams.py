"""Live streams from this machine: what senders, servers, and recorders of a stream produce."""

import contextlib
import functools
import re
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np

RATE = 10  # pictures a second
SECONDS = 60.0  # until a sender must be done
TRIES = 600  # of a sender until it is heard, a tenth of a second apart
RTP_TICKS = 90_000  # of a second
SDP = "\r\n".join(
    ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=-", "t=0 0", "m=video 0 RTP/AVP 96", "a=rtpmap:96 H264/90000", ""]
)


def color(number: int, side: int = 64) -> np.ndarray:
    """A picture of one color, which tells its number."""
    return np.full((side, side, 3), 40 + 30 * number, np.uint8)


def number(picture: np.ndarray) -> int:
    """The number of a picture."""
    return round((float(picture.mean()) - 40) / 30)


def write(path, numbers, seconds=1.0, side=64, start=0.0, form="mpegts", **options):
    """Writes a stream that shows the color of each number for `seconds`; its clock begins at `start`."""
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"tune": "zerolatency", "g": str(RATE // 2)})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for place in range(round(len(numbers) * seconds * RATE)):
            picture = color(numbers[int(place / RATE / seconds)], side)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(start * RATE) + place, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """Writes a stream of two seconds of silence."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for place in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts, frame.time_base = 8000, 1024 * place, Fraction(1, 8000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def serve(directory: Path, asked=lambda path: None, redirects: Mapping[str, str] = {}) -> ThreadingHTTPServer:
    """Serves the files of a directory over HTTP on this machine; calls `asked` before each."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked(self.path)
            if self.path not in redirects:
                return super().do_GET()
            self.send_response(302)
            self.send_header("Location", redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(directory)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


@contextlib.contextmanager
def serve_rtsp(film: Path) -> Iterator[int]:
    """Sends an H.264 film to each who asks, over the connection on which they ask (RFC 2326, 6184); yields the port."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while request := self.rfile.readline().decode().split():
                headers = iter(lambda: self.rfile.readline().decode().strip(), "")
                number = dict(header.split(": ", 1) for header in headers)["CSeq"]
                more, body = {
                    "DESCRIBE": (f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n", SDP),
                    "SETUP": ("Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n", ""),
                }.get(request[0], ("", ""))
                self.wfile.write(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{more}\r\n{body}".encode())
                if request[0] == "PLAY":
                    self.wfile.writelines(_rtp(film))
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _rtp(film: Path) -> Iterator[bytes]:
    """The packets of a film, as they share a connection with RTSP."""
    number = 0
    with av.open(str(film)) as container:
        for packet in container.demux(video=0):
            units = re.split(rb"\0+\x01", bytes(packet))[1:]  # each follows a start code of two or three zeros
            for unit in units:
                last, ticks = unit is units[-1], round(packet.pts * packet.time_base * RTP_TICKS)
                head = struct.pack(">BBHII", 2 << 6, 96 | last << 7, number, ticks, 1)
                yield struct.pack(">cBH", b"$", 0, len(head + unit)) + head + unit
                number += 1


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def sender(path: Path, url: str, form: str) -> Iterator[subprocess.Popen]:
    """Sends a file, as fast as it is taken, to who listens at the URL.

    The sender is a process of its own, since PyAV holds Python's lock while it connects.
    """
    process = subprocess.Popen([sys.executable, __file__, str(path), url, form])
    try:
        yield process
        process.wait(SECONDS)
    finally:
        process.kill()
        process.wait()


def _send(path: str, url: str, form: str) -> None:
    options = {"rtsp_transport": "tcp"} if form == "rtsp" else {}
    for _ in range(TRIES):
        with contextlib.suppress(OSError), av.open(path) as source:
            with av.open(url, "w", format=form, options=options) as sent:
                stream = sent.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        sent.mux(packet)
                time.sleep(0.5)  # what a receiver has not read yet may be lost with the connection
            return
        time.sleep(0.1)


if __name__ == "__main__":
    _send(*sys.argv[1:])

"""Serves recognition over HTTP, with a web page and an API.

    python -m rice_jax.serve --index=DIR [--host=127.0.0.1] [--port=8000] [--rerank=50]

DIR is the index of a shop. The server prints its address as soon as it answers requests. On SIGTERM or Ctrl-C it
finishes the requests in flight.
"""

import argparse
import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from rice_jax.models.weights import CheckpointError
from rice_jax.parallel.compilation import keep_compiled
from rice_jax.recognition.engine import Engine
from rice_jax.types import DataError

try:
    import uvicorn

    from rice_jax.serving.server import create_app
    from rice_jax.serving.uploads import Limits
except ImportError as error:
    sys.exit(f"{type(error).__name__}: {error}; the server needs more packages: pip install 'rice-jax[serve]'")

DESCRIPTION = """\
Serves recognition over HTTP: a web page at /, and an API that /docs
describes. Prints its address as soon as it answers requests. On SIGTERM or
Ctrl-C it finishes the requests in flight.
"""


def main(arguments: list[str] | None = None, prog: str = "python -m rice_jax.serve") -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        arguments: the command line; None = `sys.argv[1:]`.
        prog: name of the command in its help text.
    """
    options = _parser(prog).parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    Image.MAX_IMAGE_PIXELS = None  # the server has a limit of its own
    keep_compiled()
    limits = Limits(
        upload_bytes=round(options.upload_megabytes * 1e6),
        upload_seconds=options.upload_seconds,
        picture_bytes=round(options.picture_megabytes * 1e6),
        frames=options.frames,
        pixels=round(options.megapixels * 1e6),
        video_seconds=options.video_seconds,
        requests=options.requests,
        streams=options.streams,
        stream_seconds=options.stream_seconds,
    )
    sizes = [2**power for power in range(options.batch_size.bit_length())]
    try:
        with _listen(options.host, options.port) as listening:  # first, as loading takes long
            engine = Engine(options.index, model=options.checkpoint, rerank=options.rerank, batch_sizes=sizes)
            app = create_app(engine, limits, interval_seconds=options.interval_seconds, batch_sizes=sizes)
            host, port = listening.getsockname()[:2]
            config = uvicorn.Config(
                app, log_config=None, access_log=False, timeout_graceful_shutdown=options.stop_seconds
            )
            config.load()
            print(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listening])
    except (CheckpointError, DataError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} --index=DIR [options]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole, number = _at_least(int, 1), _at_least(float, 0.001)

    def add(group: argparse._ArgumentGroup, name: str, kind: Callable, default: object, text: str) -> None:
        group.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default: {default:g})")

    search = parser.add_argument_group("search")
    search.add_argument("--index", required=True, type=Path, metavar="DIR", help="the index of the shop")
    search.add_argument(
        "--checkpoint", type=Path, metavar="RUN", help="new location of the model, if it has moved since indexing"
    )
    add(search, "rerank", _at_least(int, 0), 0, "re-rank the first N images with the decoder")
    add(search, "interval_seconds", number, 1.0, "look at one frame every N seconds")
    add(search, "batch_size", whole, 16, "encode at most N pictures together")
    address = parser.add_argument_group("address")
    address.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, which is this machine only)"
    )
    add(address, "port", _at_least(int, 0), 8000, "port; 0: any free one")
    upload = parser.add_argument_group("limits of a request")
    add(upload, "upload_megabytes", number, 200.0, "size of the request")
    add(upload, "upload_seconds", number, 60.0, "time in which it must arrive")
    add(upload, "frames", whole, 100, "pictures of a clip")
    add(upload, "picture_megabytes", number, 20.0, "size of a picture's file")
    add(upload, "megapixels", number, 25.0, "size of a picture or of a video's frames")
    add(upload, "video_seconds", number, 900.0, "length of a video")
    server = parser.add_argument_group("limits of the server")
    add(server, "requests", whole, 32, "requests with pictures in flight; more get a 503")
    add(server, "streams", whole, 100, "streams followed at once")
    add(server, "stream_seconds", number, 60.0, "idle time after which a stream ends")
    add(server, "stop_seconds", whole, 30, "time that SIGTERM waits for requests in flight")
    return parser


def _at_least(kind: type, least: int | float) -> Callable[[str], float]:
    expected = f"{'a whole number' if kind is int else 'a number'}, {least} or more"

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if least <= value < float("inf"):
                return value
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")

    return parse


if __name__ == "__main__":
    main()

"""Serves recognition over HTTP, with a page for people and one for programs.

    python -m rice_jax.serve --index=DIR [--host=127.0.0.1] [--port=8000] [--rerank=50]

DIR is what `python -m rice_jax.main --mode=index` wrote. It prints its address as soon as it answers. SIGTERM and
Ctrl-C let those who are inside finish.
"""

import argparse
import contextlib
import logging
import socket
import sys
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
    sys.exit(f"{type(error).__name__}: {error}; the server needs more: pip install -e '.[serve]'")


def main(arguments: list[str] | None = None) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        arguments: of the command line, `sys.argv[1:]` by default.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit; we look at sizes ourselves
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
        with _listen(options.host, options.port) as listening:  # before the work of loading
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole, number = _at_least(int, 1), _at_least(float, 0.001)
    for name, kind, default, text in (
        ("index", Path, None, "directory of the index"),
        ("checkpoint", Path, None, "the run that made it (default: where it was then)"),
        ("rerank", _at_least(int, 0), 0, "let the decoder re-order so many first images"),
        ("interval_seconds", number, 1.0, "between the frames that are looked at"),
        ("host", str, "127.0.0.1", "address to listen at; others than this machine only reach another one"),
        ("port", _at_least(int, 0), 8000, "0 = any that is free"),
        ("batch_size", whole, 16, "pictures that are encoded at once, at most"),
        ("upload_megabytes", number, 200.0, "of a request, at most,"),
        ("upload_seconds", number, 60.0, "in which they have to arrive"),
        ("picture_megabytes", number, 20.0, "of a picture's file, at most"),
        ("frames", whole, 100, "pictures of a clip, at most"),
        ("megapixels", number, 25.0, "of a picture or a video's frame, at most"),
        ("video_seconds", number, 900.0, "of a video, at most"),
        ("requests", whole, 32, "with pictures that are answered at once; more are told to try again"),
        ("streams", whole, 100, "that are followed at once, at most"),
        ("stream_seconds", number, 60.0, "after which a stream without new pictures is forgotten"),
        ("stop_seconds", whole, 30, "for which a stop waits for answers"),
    ):
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(
            f"--{name}", type=kind, default=default, required=name == "index", metavar="VALUE", help=text + shown
        )
    return parser


def _at_least(kind: type, least: float):
    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"found {text}, expected {least} or more")
        return value

    return parse


if __name__ == "__main__":
    main()

"""Serves recognition over HTTP, with a web page and an API.

    python -m rice_jax.serve --index=DIR [--host=127.0.0.1] [--port=8000] [--rerank=50]

DIR is the index of a shop; `--index=NAME=DIR`, repeated, serves several under /indexes/NAME/. The server prints its
address as soon as it answers requests. On SIGTERM or Ctrl-C it finishes the requests in flight.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rice_jax.commands.naming_flags import add_naming_flags, naming_of
from rice_jax.config import ConfigError
from rice_jax.index.store import FILE
from rice_jax.logs import TIMED, JsonFormatter
from rice_jax.models.weights import CheckpointError
from rice_jax.parallel.compilation import keep_compiled
from rice_jax.recognition.allowed import Allowed, parse_allowed
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.follow import RECEIVER
from rice_jax.types import DataError

try:
    import uvicorn

    from rice_jax.serving import hosts
    from rice_jax.serving.admission import Access
    from rice_jax.serving.connections import Config
    from rice_jax.serving.limits import Limits
    from rice_jax.serving.server import create_app
    from rice_jax.serving.service import DECODERS, LOADER
    from rice_jax.serving.shops import Shops
    from rice_jax.serving.tokens import read_tokens
except ImportError as error:
    sys.exit(f"{type(error).__name__}: {error}; the server needs more packages: pip install 'rice-jax[serve]'")

logger = logging.getLogger(__name__)
FIELDS = dataclasses.fields(Limits)
MAX_BATCH = 512  # a larger one takes minutes to compile, and as much memory as the model
DESCRIPTION = """\
Serves recognition over HTTP: a page at /, an API at /docs. Prints its address.
"""


def main(arguments: list[str] | None = None, prog: str = "python -m rice_jax.serve") -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        arguments: the command line; None = `sys.argv[1:]`.
        prog: name of the command in its help text.
    """
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    for name, directory in options.index:
        if not name and "=" in str(directory) and not directory.exists():
            expected = "of letters, digits, and . _ -, up to 64, beginning with a letter or a digit"
            parser.error(f"argument --index: found '{directory}', expected DIR or NAME=DIR with a name {expected}")
    files = {name: directory / FILE for name, directory in options.index}
    if len(files) < len(options.index) or ("" in files and len(files) > 1):
        parser.error("argument --index: found several indexes, expected a name of its own for each: --index=NAME=DIR")
    _start_log(options.log_format)
    Image.MAX_IMAGE_PIXELS = None  # the server has a limit of its own
    keep_compiled()
    limits = Limits(**{field.name: _value(field, options) for field in FIELDS})
    sizes = [2**power for power in range(options.batch_size.bit_length())]
    naming = naming_of(options)

    def load(file: Path, others: Sequence[Engine]) -> Engine:
        return Engine(
            file.parent,
            model=options.checkpoint,
            text_model=options.text_model,
            rerank=options.rerank,
            batch_sizes=sizes,
            naming=naming,
            others=others,
        )

    try:
        access = Access(
            hosts={*hosts.LOCAL, options.host.lower(), *options.allow_hosts},
            origins=options.cors_origin,
            tokens=read_tokens(options.token_file) if options.token_file else (),
        )
        with _listen(options.host, options.port) as listening:  # first, as loading takes long
            app = create_app(
                Shops(files, load),
                limits,
                interval_seconds=options.interval_seconds,
                batch_sizes=sizes,
                watch=options.watch,
                access=access,
                allowed=options.allow_sources,
            )
            host, port = listening.getsockname()[:2]
            config = Config(app, limits, log_config=None, timeout_graceful_shutdown=options.stop_seconds)
            config.load()
            print(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", flush=True)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again when it has stopped
            with contextlib.suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listening])
    except (CheckpointError, ConfigError, DataError, OSError) as error:
        message = f"{type(error).__name__}: {error}"
        if options.log_format == "text":
            sys.exit(message)
        logger.critical(message)
        sys.exit(1)
    if any(thread.name.startswith((DECODERS, LOADER, RECEIVER)) for thread in threading.enumerate()):
        os._exit(0)  # Python would wait for threads that decode or load, and could end before a connection does


def _start_log(form: str) -> None:
    """Writes the log to stderr, as "text" or "json", Python's warnings included."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TIMED)
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(form == "json")
    logging.getLogger("rice_jax.serving").setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the client is told what is wrong with its form


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} --index=DIR [options]",
        description=DESCRIPTION,
        add_help=False,
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=26, width=80),
    )
    number = _between(float, 0.001)

    def add(group: argparse._ArgumentGroup, name: str, kind: Callable, default: object, text: str) -> None:
        group.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default: {default:g})")

    search = parser.add_argument_group("search")
    search.add_argument("-h", "--help", action="help", help="show this help message and exit")
    search.add_argument(
        "--index",
        required=True,
        type=_index,
        action="append",
        metavar="DIR",
        help="the index of the shop; several: NAME=DIR, repeated",
    )
    search.add_argument("--store", type=_store, help=argparse.SUPPRESS)
    search.add_argument("--watch", action="store_true", help="use a new index as soon as it replaces this one")
    search.add_argument("--checkpoint", type=Path, metavar="RUN", help="new location of the model, if it has moved")
    search.add_argument(
        "--text_model", type=Path, metavar="DIR", help="new location of the text tower, if it has moved"
    )
    add(search, "rerank", _between(int, 0), 0, "re-rank the first N by score and decoder")
    add(search, "interval_seconds", number, 1.0, "look at one frame every N seconds")
    add(search, "batch_size", _between(int, 1, MAX_BATCH), 16, "encode at most N pictures together")
    add_naming_flags(search)
    address = parser.add_argument_group("server")
    address.add_argument(
        "--host", type=_host, default="127.0.0.1", help="address (default: 127.0.0.1, this machine only)"
    )
    add(address, "port", _between(int, 0, 65535), 8000, "port; 0: any free one")
    address.add_argument(
        "--allow_hosts", type=_names, default=[], metavar="NAMES", help="further names of this server; *: any name"
    )
    address.add_argument("--token_file", type=Path, metavar="FILE", help="file of tokens; every request must carry one")
    address.add_argument(
        "--log_format",
        choices=("text", "json"),
        default="text",
        metavar="FORM",
        help="log on stderr: text (default) or json",
    )
    address.add_argument(
        "--cors_origin",
        type=_origin,
        action="append",
        default=[],
        metavar="URL",
        help="site whose pages may call the API; repeatable",
    )
    address.add_argument(
        "--allow_sources", type=_sources, default=Allowed(), metavar="LIST", help="hosts and paths that may be followed"
    )
    limits = parser.add_argument_group("limits")
    for field in FIELDS:
        unit = field.metadata["unit"]
        default = field.default if unit == 1 else field.default / unit
        kind = _between(int, 1) if isinstance(default, int) else number
        add(limits, _flag(field), kind, default, field.metadata["text"])
    add(limits, "stop_seconds", _between(int, 1), 30, "time that SIGTERM waits for requests")
    return parser


def _flag(field: dataclasses.Field) -> str:
    return field.metadata["flag"] or field.name


def _value(field: dataclasses.Field, options: argparse.Namespace) -> Any:
    """A limit in its own unit, from that of its flag."""
    given = getattr(options, _flag(field))
    return given if field.metadata["unit"] == 1 else round(given * field.metadata["unit"])


def _index(text: str) -> tuple[str, Path]:
    """The name and directory of an index; the name is "" if there is none."""
    name, equals, directory = text.partition("=")
    if equals and directory and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        return name, Path(directory)
    return "", Path(text)


def _store(text: str) -> None:
    expected = "expected --index=DIR, the directory that rice index --store has written too"
    raise argparse.ArgumentTypeError(f"found {text!r}, {expected}: the server searches no database")


def _host(text: str) -> str:
    if not text.strip():  # as of a variable that is not set; the server would listen on all addresses
        raise argparse.ArgumentTypeError("found '', expected a name or an IP address; 0.0.0.0 and :: stand for all")
    return text


def _names(text: str) -> list[str]:
    names = text.lower().replace(",", " ").split()
    for name in names:
        if name != hosts.ANY and ("/" in name or "*" in name or name.count(":") == 1):
            raise argparse.ArgumentTypeError(f"found {name!r}, expected names without scheme, port, or *")
    return names


def _sources(text: str) -> Allowed:
    try:
        return parse_allowed(text.replace(",", " ").split())
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _origin(text: str) -> str:
    if not re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", text):  # as browsers write it, which is compared as a whole
        expected = "a scheme and a host, such as https://shop.example.com, in lowercase and without a path"
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
    return text.removesuffix(":443" if text.startswith("https") else ":80")  # browsers leave the usual port out


def _between(kind: type, least: int | float, most: int | float = sys.float_info.max) -> Callable[[str], float]:
    above = f"{least} to {most}" if most < sys.float_info.max else f"{least} or more"
    expected = f"{'a whole number' if kind is int else 'a number'}, {above}"

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if least <= value <= most:
                return value
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")

    return parse


if __name__ == "__main__":
    main()

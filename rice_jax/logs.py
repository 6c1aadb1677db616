"""The program's log on stderr, and its end when nobody reads stdout."""

import contextlib
import datetime
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import NoReturn

from absl import logging as absl_logging
from PIL import Image


class JsonFormatter(logging.Formatter):
    """Writes each record as a line of JSON: `time` in UTC, `level`, `logger`, `message`, and a traceback as `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


PIPE_CLOSED = 141  # exit code, as shells number it
TIMED = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")


def log_to_stderr(verbose: bool = False) -> None:
    """Shows the program's own log lines with their time.

    Args:
        verbose: also show what the libraries log.
    """
    logger = logging.getLogger("rice_jax")
    if not logger.handlers:  # a command may call another
        handler = logging.StreamHandler()
        handler.setFormatter(TIMED)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if verbose:
        return
    _ignore_pillows_warnings()
    absl_logging.set_verbosity(absl_logging.WARNING)
    # After a failed save asyncio logs the error again, which our message has already reported.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # Every Orbax thread that a checkpoint's failure passes logs it before it is raised; once is enough.
    absl_logging.get_absl_logger().addFilter(lambda record: record.exc_info is None or "orbax" not in record.pathname)


def end_unread() -> NoReturn:
    """Ends the program quietly after a BrokenPipeError: whoever read stdout has left, such as `head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes once more
    sys.exit(PIPE_CLOSED)


@contextlib.contextmanager
def warnings_to_stderr(timed: bool = False) -> Iterator[None]:
    """Shows the program's own warnings as plain lines for a while, whatever form the libraries give to theirs.

    Args:
        timed: show what else the program logs too, with the time.
    """
    logger = logging.getLogger("rice_jax")
    handler, propagate, level = logging.StreamHandler(), logger.propagate, logger.level
    handler.setFormatter(TIMED if timed else logging.Formatter("warning: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    if timed:
        logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            _ignore_pillows_warnings()
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


def _ignore_pillows_warnings() -> None:
    """They are of damaged metadata, without which a picture is seen all the same, and of sizes within our limits."""
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

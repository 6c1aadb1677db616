"""The errors of a command's input, of which a user sees one line."""

import contextlib
import sys
from collections.abc import Iterator

from rice_jax.config import ConfigError
from rice_jax.logs import end_unread
from rice_jax.models.weights import CheckpointError
from rice_jax.types import DataError

EXPECTED = CheckpointError, ConfigError, DataError, OSError


@contextlib.contextmanager
def errors_in_one_line(*further: type[Exception]) -> Iterator[None]:
    """Ends the program with one line on stderr and code 1 if the block raises an expected error.

    If whoever read stdout has left, it ends without a line.

    Args:
        further: expected errors besides `EXPECTED`.
    """
    try:
        yield
    except BrokenPipeError:
        end_unread()
    except EXPECTED + further as error:
        sys.exit(f"{type(error).__name__}: {error}")

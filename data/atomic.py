"""Writes files atomically: readers find the complete file or none."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a block of code a temporary file to write, and renames it to `path` when the block ends.

    If the block raises an error, the temporary file is removed and whatever was at `path` stays.

    Args:
        path: the file to create or replace.

    Yields:
        A path beside `path`, where nothing may exist yet.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

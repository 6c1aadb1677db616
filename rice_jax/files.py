"""Files that are written whole or not at all, checksums of directories, and locks."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

MANIFEST = "manifest.json"
STREAMS = Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")  # directories of devices and open files
ABANDONED_SECONDS = 24 * 3600  # a temporary file that nobody has written to for so long belongs to a killed process

logger = logging.getLogger(__name__)


class LockedError(OSError):
    """Another process holds a lock; the message says which."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path beside `path` to write to; the file there takes the place of `path` when the block ends.

    The new content is on disk before the name changes, so a killed process or a full disk leaves the old file as it
    was. If the block raises, nothing changes. Of several processes that replace a file at once, the last one wins.

    Args:
        path: the file to replace or create; its directory is created if it does not exist. A device or pipe, such as
            /dev/stdout, is no file: the content is appended to it.
    """
    path = Path(path)
    if path.absolute().parent in STREAMS or (path.exists() and not path.is_file()):
        with tempfile.TemporaryDirectory() as directory:
            yield (whole := Path(directory) / "file")
            with whole.open("rb") as source, path.open("ab") as stream:
                shutil.copyfileobj(source, stream)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            error.filename = str(path)  # which disk is full
        raise


def absolute(path: str | os.PathLike) -> str:
    """The absolute path without "..", by which a place always has the same name; symbolic links stay."""
    plain = os.path.abspath(path)
    if ".." in Path(path).parts and os.path.realpath(plain) != os.path.realpath(path):
        return str(Path(path).absolute())  # behind a symbolic link ".." leads elsewhere
    return plain


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Replaces a UTF-8 text file by these lines; each gets a newline at its end.

    Bytes of file names that are not UTF-8 are escaped as in JSON.
    """
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(line + "\n" for line in lines)


def write_manifest(directory: Path, unlisted: Iterable[str] = ()) -> None:
    """Writes the sizes and checksums of a directory's files to its `manifest.json`.

    Args:
        directory: with all of its files complete.
        unlisted: names of files that may change later.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    files = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sha256(directory / name)}
        for name in names
        if name not in {MANIFEST, *unlisted}
    }
    write_lines(directory / MANIFEST, [json.dumps({"files": files}, indent=1)])


def find_damage(directory: Path, parts: Iterable[str] = (), *, contents: bool = True) -> str:
    """Compares a directory with its manifest.

    Args:
        directory: its manifest is that of `write_manifest`; without one, nothing is known.
        parts: names of the subdirectories to compare; () = all.
        contents: whether to read the files; False = only their sizes count.

    Returns:
        The first difference in a few words; "" if there is none.

    Raises:
        OSError: a file exists but cannot be read.
    """
    if not (directory / MANIFEST).exists():
        return ""
    try:
        files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = [(name, int(values["bytes"]), str(values["sha256"])) for name, values in files.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    parts = set(parts)
    for name, size, checksum in expected:
        if parts and name.partition("/")[0] not in parts:
            continue
        path = directory / name
        try:
            found = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes, expected {size}"
        if contents and sha256(path) != checksum:
            return f"{name} has changed since it was written (SHA-256)"
    return ""


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock that only one process can hold at a time; it is free again however that process ends.

    A file system without locks only costs the protection: a warning says so.

    Args:
        path: the lock's file, which exists while the lock is held, or if the holder was killed.
        wait: whether to wait until the lock is free.

    Raises:
        LockedError: another process holds the lock, and `wait` is off.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # the holder before may have removed it
        file = path.open("a+")
        try:
            _lock(file.fileno(), path, wait)
            if _is_there(path, file.fileno()):
                break
        except BaseException:
            file.close()
            raise
        file.close()
    with file:
        try:
            with contextlib.suppress(OSError):  # a full disk: it is for messages only
                os.truncate(file.fileno(), 0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock is free


@contextlib.contextmanager
def leaving_no_trace(directory: Path, *subdirectories: str, file: str = "") -> Iterator[None]:
    """Removes a directory that did not exist before, and its new parents, if the block raises and they are empty.

    Args:
        directory: the block may create it.
        subdirectories: empty ones among these are removed too.
        file: is removed as well, unless a subdirectory is left.
    """
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        yield
    except Exception:
        inner = [directory / name for name in subdirectories if new]
        for path in (*inner, *new):
            if path == directory and file and not any(map(Path.exists, inner)):
                (directory / file).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is not empty, or was never created
                path.rmdir()
        raise


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of its name; the holder of a lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError as error:
        holder = ""
        with contextlib.suppress(FileNotFoundError):  # it has just become free
            holder = path.read_text(errors="replace")
        message = f"{path.parent}: is in use by {holder or 'another process'}"
        if not wait:
            raise LockedError(f"{message}; wait until that one is done, or choose another directory") from error
        logger.warning("%s; waiting until that one is done", message)
    except OSError as error:  # e.g. NFS without a lock service
        logger.warning("%s: cannot be locked (%s); make sure that no other process changes it", path.parent, error)
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _remove_abandoned(path: Path) -> None:
    """Removes what killed processes left of `replacing`."""
    for partial in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                partial.unlink()

"""Finds pictures in the output of img2dataset: which shard holds a picture, where, or why it was not downloaded."""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import tarfile
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from .atomic import replacing
from .errors import FormatError, fail
from .processes import in_workers, locked

STATUSES = ("success", "failed_to_download", "failed_to_resize")
COLUMNS = ["url", "key", "status", "original_width", "original_height"]
ENTRY = np.dtype(
    [
        ("name", "S16"),  # a hash of 128 bits, which half a billion names do not share
        ("shard", np.uint32),
        ("key", np.uint64),  # number of the picture, or its offset in the tar
        ("size", np.uint32),  # in bytes; 0 = the picture is a separate file
        ("width", np.uint32),
        ("height", np.uint32),
        ("status", np.uint8),
    ]
)
_SHARD_FILE = re.compile(r"(\d{5,})(\.tar|\.parquet|_stats\.json|)")


@dataclasses.dataclass(frozen=True)
class Download:
    """The result of downloading one URL.

    Attributes:
        where: the file that holds the picture and its position there, or, for a failure, the parquet file with the
            error message.
        status: one of STATUSES, or "missing" if the picture's file was removed after it was indexed.
        encoded: the bytes of the picture; empty if the download failed.
        width: in pixels, before img2dataset resized the picture.
        height: likewise.
    """

    where: str
    status: str
    encoded: bytes
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A finished shard; `path` has no extension, and `key_digits` is 0 for a damaged or empty shard."""

    path: str
    is_tar: bool
    key_digits: int = 0


class Index:
    """Finds pictures by the name in their URL, searching on disk in constant memory."""

    def __init__(self, path: Path):
        """Opens an index.

        Args:
            path: the file that `build_index` returned.
        """
        self._file = path.open("rb")  # not mapped, because mapped pages would count as the process's memory
        self._places = range(path.stat().st_size // ENTRY.itemsize)
        shards = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self._shards = [_Shard(*shard) for shard in shards]

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def read(self, name: str) -> Download | None:
        """Reads a picture.

        Args:
            name: the last part of its URL's path, without extension.

        Returns:
            The download, or None if no URL has that name.
        """
        entry = self._find(name)
        if entry is None:
            return None
        shard, status = self._shards[entry["shard"]], STATUSES[entry["status"]]
        if status != STATUSES[0]:
            return Download(f"{shard.path}.parquet", status, b"", 0, 0)
        if shard.is_tar:
            where = f"{shard.path}.tar at byte {entry['key']}"
            with open(f"{shard.path}.tar", "rb") as file:
                file.seek(int(entry["key"]))
                encoded = file.read(int(entry["size"]))
        else:
            where = f"{shard.path}/{int(entry['key']):0{shard.key_digits}}.jpg"
            try:
                encoded = Path(where).read_bytes()
            except FileNotFoundError:  # removed since it was indexed
                return Download(where, "missing", b"", 0, 0)
        return Download(where, status, encoded, int(entry["width"]), int(entry["height"]))

    def status(self, name: str) -> str | None:
        """Returns the status of the URL with that name, one of STATUSES, or None if no URL has it."""
        entry = self._find(name)
        return None if entry is None else STATUSES[entry["status"]]

    def urls(self) -> Iterator[tuple[str, str]]:
        """Yields (parquet file, URL) for every row of the undamaged shards."""
        for shard in self._shards:
            if shard.key_digits:
                parquet = f"{shard.path}.parquet"
                for batch in pq.ParquetFile(parquet).iter_batches(columns=["url"]):
                    yield from ((parquet, url) for url in batch["url"].to_pylist())

    def _find(self, name: str) -> np.void | None:
        digest = _digest(name)
        place = bisect.bisect_left(self._places, digest, key=lambda place: self._entry(place)["name"])
        entry = self._entry(place) if place < len(self._places) else None
        return entry if entry is not None and entry["name"] == digest else None

    def _entry(self, place: int) -> np.void:
        return np.frombuffer(os.pread(self._file.fileno(), ENTRY.itemsize, place * ENTRY.itemsize), ENTRY)[0]


@functools.lru_cache(maxsize=2)
def open_index(path: Path) -> Index:
    """Opens the index in a file, once per process."""
    return Index(path)


def find_outputs(raw_dir: Path) -> list[Path]:
    """Returns the directories in `raw_dir` that img2dataset wrote: those that contain files of a shard."""
    return sorted(
        Path(directory)
        for directory in os.scandir(raw_dir)
        if directory.is_dir() and any(entry.is_file() for entry, _, _ in _entries_of_shards(directory.path))
    )


def build_index(
    outputs: Sequence[Path], directory: Path, workers: int = 1, on_error: Callable[[FormatError], None] = fail
) -> Path:
    """Indexes the shards in img2dataset's output directories, unless an index of the same shards exists.

    Names are hashed and distributed to 256 files by their first byte, which are sorted one at a time. So memory holds a
    256th of the index, which takes 41 bytes per picture. Of a repeated name, the first successful download is kept.

    Args:
        outputs: directories, from `find_outputs`.
        directory: the directory of the index; its content is replaced, by one program at a time.
        workers: number of processes that read the shards.
        on_error: called with an error for unfinished or damaged shards, which are left out if it returns.

    Returns:
        The index file. Its name depends on the shards' sizes and times.

    Raises:
        FormatError: no shard has a row, or `on_error` raised it.
    """
    with locked(directory.parent):
        return _build_index(outputs, directory, workers, on_error)


def _build_index(
    outputs: Sequence[Path], directory: Path, workers: int, on_error: Callable[[FormatError], None]
) -> Path:
    shards = [shard for output in outputs for shard in _finished_shards(output, on_error)]
    path = directory / f"{_fingerprint(shards)}.index"
    if path.exists():
        return path
    shutil.rmtree(directory, ignore_errors=True)
    buckets = directory / "buckets"
    buckets.mkdir(parents=True)
    key_digits = _deal(shards, buckets, workers, on_error)
    known = [(shard.path, shard.is_tar, digits) for shard, digits in zip(shards, key_digits, strict=True)]
    path.with_suffix(".json").write_text(json.dumps(known), encoding="utf-8")
    with replacing(path) as temporary, temporary.open("wb") as file:  # last, because this file marks a complete index
        for bucket in sorted(buckets.iterdir()):
            entries = np.fromfile(bucket, ENTRY)
            entries = entries[np.lexsort((entries["status"], entries["name"]))]  # stable: shards stay in order
            is_first = np.ones(len(entries), bool)
            is_first[1:] = entries["name"][1:] != entries["name"][:-1]
            file.write(entries[is_first].tobytes())  # numpy's tofile loses the end on a full disk, and says nothing
            bucket.unlink()
        if file.tell() == 0:
            raise FormatError(str(outputs[0]), "no row in any shard", "pictures", "run img2dataset again")
        buckets.rmdir()
    return path


def _deal(shards: Sequence[_Shard], buckets: Path, workers: int, on_error: Callable[[FormatError], None]) -> list[int]:
    """Distributes the entries of all shards to bucket files; returns the length of each shard's keys, 0 = no entry."""
    digits = []
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((buckets / f"{byte:03}").open("wb")) for byte in range(256)]
        scan: Iterable[tuple[np.ndarray, int] | FormatError] = map(_scan, enumerate(shards))
        if min(workers, len(shards)) > 1:
            scan = stack.enter_context(contextlib.closing(in_workers(_scan, enumerate(shards), workers)))
        for scanned in tqdm(scan, total=len(shards), desc="index", unit="shard", disable=None):
            if isinstance(scanned, FormatError):
                on_error(scanned)
                scanned = np.zeros(0, ENTRY), 0
            entries, key_digits = scanned
            digits.append(key_digits)
            first_bytes = np.ascontiguousarray(entries["name"]).view(np.uint8)[::16]
            for byte in np.unique(first_bytes):
                files[byte].write(entries[first_bytes == byte].tobytes())
    return digits


def _scan(numbered: tuple[int, _Shard]) -> tuple[np.ndarray, int] | FormatError:
    """Returns the entries of a shard and the length of its keys, or the error in it."""
    try:
        return _entries(*numbered)
    except FormatError as error:
        return error


def _entries(number: int, shard: _Shard) -> tuple[np.ndarray, int]:
    parquet = f"{shard.path}.parquet"
    try:
        rows = pq.read_table(parquet, columns=COLUMNS).to_pydict()
    except (pa.ArrowInvalid, OSError) as error:
        raise FormatError(parquet, str(error), f"columns {', '.join(COLUMNS)}", "download the shard again") from None
    members = _tar_members(f"{shard.path}.tar") if shard.is_tar else {}
    entries = np.zeros(len(rows["key"]), ENTRY)
    is_named = np.ones(len(entries), bool)
    for place, (url, key, status) in enumerate(zip(rows["url"], rows["key"], rows["status"], strict=True)):
        if status not in STATUSES:
            raise FormatError(parquet, f"status {status!r} for {url}", ", ".join(STATUSES), "download the shard again")
        if shard.is_tar and status == STATUSES[0] and key not in members:
            found, expected = f"no {key}.jpg", f"all {rows['status'].count(STATUSES[0])} successes in {parquet}"
            raise FormatError(f"{shard.path}.tar", found, expected, "download the shard again")
        at, size = members.get(key, (0, 0)) if shard.is_tar else (int(key), 0)
        original = rows["original_width"][place] or 0, rows["original_height"][place] or 0  # a failure has none
        try:
            name = name_in(url, parquet)
        except FormatError:  # nothing looks it up; the doctor lists the URL
            is_named[place] = False
            continue
        entries[place] = _digest(name), number, at, size, *original, STATUSES.index(status)
    return entries[is_named], len(rows["key"][0]) if rows["key"] else 0


def _tar_members(path: str) -> dict[str, tuple[int, int]]:
    """Returns {key: (offset, size)} for the pictures in a tar."""
    try:
        with tarfile.open(path, "r:") as tar:
            pictures = (member for member in tar if member.name.endswith(".jpg"))
            return {member.name.removesuffix(".jpg"): (member.offset_data, member.size) for member in pictures}
    except tarfile.TarError as error:
        raise FormatError(path, f"a truncated tar ({error})", "a complete one", "download the shard again") from None


def _finished_shards(output: Path, on_error: Callable[[FormatError], None]) -> Iterator[_Shard]:
    """Yields the finished shards of an output directory in order, after calling `on_error` for the others."""
    files: dict[str, set[str]] = {}
    for _, shard, kind in _entries_of_shards(output):
        files.setdefault(shard, set()).add(kind or "/")
    finished, unfinished = [], []
    for shard, kinds in sorted(files.items()):
        absent = [f"{shard}{kind}" for kind in (".parquet", "_stats.json") if kind not in kinds]
        if not kinds & {".tar", "/"}:
            absent.append(f"{shard}.tar or {shard}/")
        if absent:
            unfinished.append(f"shard {shard} without {' and '.join(absent)}")
        else:
            finished.append(_Shard(str(output / shard), ".tar" in kinds))
    if unfinished:
        more = f" and {len(unfinished) - 3} more" if len(unfinished) > 3 else ""
        on_error(
            FormatError(
                str(output),
                ", ".join(unfinished[:3]) + more,
                "a .parquet, a _stats.json and a .tar or directory for each shard",
                "run img2dataset again with the same flags, which completes the shards, or remove these files",
            )
        )
    yield from finished


def _entries_of_shards(directory: str | Path) -> Iterator[tuple[os.DirEntry[str], str, str]]:
    """Yields (entry, shard's number, extension or '' for a folder) for the files and folders of shards."""
    for entry in os.scandir(directory):
        if match := _SHARD_FILE.fullmatch(entry.name):
            yield entry, match[1], match[2]


def _fingerprint(shards: Sequence[_Shard]) -> str:
    digest = hashlib.blake2b(str(ENTRY).encode(), digest_size=16)  # indexes of other layouts are not read
    for shard in shards:
        for suffix in (".parquet", "_stats.json", ".tar" if shard.is_tar else ""):
            status = os.stat(shard.path + suffix)
            digest.update(os.fsencode(f"{shard.path}{suffix} {status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()


def name_in(url: str, where: str) -> str:
    """Returns the last part of a URL's path, without extension.

    Args:
        url: the URL.
        where: the file that holds it, for errors.

    Raises:
        FormatError: the path ends in no file name.
    """
    path = url.partition("?")[0].partition("#")[0]
    name = os.path.splitext(urllib.parse.unquote(path.rpartition("/")[2]))[0]
    if not name:
        raise FormatError(where, repr(url), "a URL that ends in a file name", "remove the URL from the list")
    return name


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest().rstrip(b"\0")  # numpy removes the zeros too

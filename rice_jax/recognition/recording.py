"""Whether the file of a recording is complete: a live stream has an end only if its file says so."""

import contextlib
import io
import struct
from pathlib import Path

import av

FORMATS = "mov,mp4,matroska,webm"  # FFmpeg's names
BOX = struct.Struct(">I4s")  # of an MP4: size in bytes, with this head, and kind
FRAGMENTED = b"mvex"  # box in the index of an MP4 that fragments follow
INDEX_BYTES = 1_000_000  # in which a fragmented MP4 has it


def is_complete(path: Path) -> bool:
    """Whether the header of an MP4 or Matroska file has the length of the recording, which is written last."""
    with contextlib.suppress(av.error.FFmpegError), path.open("rb") as file:
        if FRAGMENTED in file.read(INDEX_BYTES):
            return False
        file.seek(0)
        with av.open(_Pipe(file), "r", container_options={"format_whitelist": FORMATS}) as container:
            return container.duration is not None
    return False


def has_index_at_end(path: Path) -> bool:
    """Whether a file is an MP4 that no one can read before its end is written."""
    with path.open("rb") as file:
        size, kind = _box(file)
        if kind != b"ftyp":
            return False
        while size >= BOX.size and kind not in (b"moov", b"mdat"):
            file.seek(size - BOX.size, io.SEEK_CUR)
            size, kind = _box(file)
        return kind == b"mdat"


def _box(file: io.BufferedReader) -> tuple[int, bytes]:
    head = file.read(BOX.size)
    return BOX.unpack(head) if len(head) == BOX.size else (0, b"")


class _Pipe:
    """A file that cannot be rewound: FFmpeg would otherwise estimate a length from the file's size."""

    def __init__(self, file: io.BufferedReader):
        self.read = file.read

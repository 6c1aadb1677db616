"""Reads forms (`multipart/form-data`) whose files go to disk as they arrive.

Starlette's parser takes a form that ends early for whole, opens a file for every part, and fails on some charsets.
"""

import codecs
import io
import types
from collections.abc import AsyncIterable, Mapping
from typing import IO, Any, NamedTuple

import python_multipart
from fastapi import HTTPException
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from rice_jax.serving.scratch import Spool

CHARSETS = ("utf-8", "ascii", "iso8859-1")  # others do not mean text of single characters, or are never sent
MAX_FIELDS = 9
MAX_TEXT_BYTES = 4000  # of a field
NONE: Mapping[str, int] = types.MappingProxyType({})


class File(NamedTuple):
    """A file of a form: some bytes of the file that holds all of them, or bytes in memory."""

    content_type: str  # "" = unknown
    stored: IO[bytes]
    start: int
    size: int

    def read(self) -> bytes:
        """The content."""
        self.stored.seek(self.start)
        return self.stored.read(self.size)


class Form(NamedTuple):
    """The parts of a form in order, with their names."""

    fields: list[tuple[str, str]]
    files: list[tuple[str, File]]


async def read_form(
    content_type: str,
    body: AsyncIterable[bytes],
    stored: IO[bytes],
    max_files: int,
    small: Mapping[str, int] = NONE,
) -> Form:
    """Reads a form.

    Args:
        content_type: header of the request.
        body: of the request, in pieces.
        stored: an empty file that receives the content of all files, one after another.
        max_files: largest number of files, without the small ones.
        small: {name: largest number of bytes} of files that stay in memory, at most one of each name.

    Raises:
        HTTPException: the form is malformed, ends early, or has too many or too large parts.
    """
    _, options = parse_options_header(content_type)
    if b"boundary" not in options:
        raise HTTPException(400, "found no boundary in the content type, expected one")
    spool = Spool(stored)
    reader = _Reader(spool, _charset(options.get(b"charset", b"utf-8")), max_files, small)
    try:
        parser = python_multipart.MultipartParser(options[b"boundary"], reader.callbacks())
        async for piece in body:
            parser.write(piece)
            await spool.store_if_large()
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"the form is malformed: {error}") from error
    if not reader.ended:
        raise HTTPException(400, "the form ends before its closing boundary, so a part of it is missing")
    await spool.store()
    return reader.form


def _charset(given: bytes) -> str:
    name = given.decode("latin-1")
    try:
        if (found := codecs.lookup(name).name) in CHARSETS:
            return found
    except (LookupError, ValueError):  # a name with a null character is a ValueError
        pass
    raise HTTPException(400, f"found the charset {name[:40]!r}, expected utf-8")


class _Reader:
    """Receives the parser's calls."""

    def __init__(self, spool: Spool, charset: str, max_files: int, small: Mapping[str, int]):
        self.form, self.ended = Form([], []), False
        self._spool, self._charset = spool, charset
        self._max_files, self._num_stored = max_files, 0
        self._limits, self._small = small, dict.fromkeys(small, False)  # {name: whether there was one}
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value, self._text = bytearray(), bytearray(), bytearray()
        self._name, self._is_file, self._start = "", False, 0

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._add_content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise HTTPException(400, "found a part of the form without a name, expected one for each part")
        self._name, self._is_file = self._decode(options[b"name"]), b"filename" in options
        self._start = self._spool.size
        self._text.clear()
        if self._is_file and self._name in self._small:
            if self._small[self._name]:
                raise HTTPException(400, f"found several files named {self._name}, expected one")
            self._small[self._name] = True
        elif self._is_file:
            self._num_stored += 1
            if self._num_stored > self._max_files:
                raise HTTPException(413, f"found more files than the limit of {self._max_files}")
        if not self._is_file and len(self.form.fields) >= MAX_FIELDS:
            raise HTTPException(400, f"found more fields than the limit of {MAX_FIELDS}")

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._is_file and self._name not in self._small:
            self._spool.add(data[start:end])
            return
        self._text += data[start:end]
        limit = self._limits[self._name] if self._is_file else MAX_TEXT_BYTES
        if len(self._text) > limit:
            raise HTTPException(413, f"{self._name}: exceeds the size of {limit:,} bytes")

    def _end_part(self) -> None:
        if self._is_file:
            kind, size = self._headers.get(b"content-type", b"").decode("latin-1"), self._spool.size - self._start
            file = File(kind, self._spool.file, self._start, size)
            if self._name in self._small:
                file = File(kind, io.BytesIO(self._text), 0, len(self._text))
            self.form.files.append((self._name, file))
        else:
            self.form.fields.append((self._name, self._decode(self._text, f"{self._name}: ")))

    def _end(self) -> None:
        self.ended = True

    def _decode(self, text: bytes | bytearray, where: str = "") -> str:
        try:
            return text.decode(self._charset)
        except UnicodeDecodeError as error:
            hint = "; a file's part needs a filename" if where else ""
            raise HTTPException(400, f"{where}found text in the form that is not {self._charset}{hint}") from error

"""Checks of uploads: requests, pictures, and videos are checked before any work is done for them.

Refused uploads raise an `HTTPException` whose detail says what was found and what was expected.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pydantic
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from jaxtyping import UInt8
from starlette.datastructures import FormData, UploadFile

from rice_jax.input.pictures import TooLarge, decoding_cost, open_picture
from rice_jax.recognition.container import Reading, VideoLimits, VideoTooLarge, choose_stream, restarts
from rice_jax.recognition.video import read_video
from rice_jax.types import DataError

PICTURES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}  # {Pillow's format: media type}
PICTURE_KINDS = "JPEG, PNG, or WebP"
ANYTHING = "application/octet-stream"  # sent by clients that do not know the type
# FFmpeg's names of formats. Other formats can refer to further files or addresses, which FFmpeg would open.
VIDEOS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
NUM_LARGEST = 10  # pictures of the largest size in a request: each may take half a second, and 100 bytes of an upload
DECODE_SECONDS = 30.0  # for each picture of a video that is looked at
MAX_TOP = 100
MAX_TEXT = 1000  # characters of a gallery's id

Prepare = Callable[[bytes | np.ndarray], np.ndarray]  # `Engine.prepare`


@dataclasses.dataclass(frozen=True)
class Limits:
    """The server's limits.

    Attributes:
        upload_bytes: size of a request's body.
        upload_seconds: time in which a request's body must arrive.
        picture_bytes: size of a picture's file, which is held in memory.
        frames: number of pictures in a request.
        pixels: size of a picture or of a video's frame; those of a request together may cost `NUM_LARGEST` times as
            much to decode (`input.pictures.decoding_cost`).
        video_seconds: length of a video.
        requests: number of requests with pictures in flight.
        streams: number of streams in memory.
        stream_seconds: idle time after which a stream is removed.
    """

    upload_bytes: int = 200_000_000
    upload_seconds: float = 60.0
    picture_bytes: int = 20_000_000
    frames: int = 100
    pixels: int = 25_000_000
    video_seconds: float = 900.0
    requests: int = 32
    streams: int = 100
    stream_seconds: float = 60.0


class Query(pydantic.BaseModel, extra="forbid"):
    """Which images to search, and how many to return."""

    gallery: str | None = pydantic.Field(
        None, max_length=MAX_TEXT, description="Id of the gallery to search; all images if it is left out."
    )
    top: int = pydantic.Field(5, ge=1, le=MAX_TOP, description="Number of images to return.")


class Prepared(NamedTuple):
    """A frame that is ready to be encoded."""

    time: float  # seconds from the beginning
    picture: UInt8[np.ndarray, "S S 3"]


class Upload(NamedTuple):
    """The content of a form: frames or a video, and the query."""

    frames: list[UploadFile]
    video: UploadFile | None
    query: Query


def require_type(request: Request, *expected: str) -> None:
    """Refuses a body of another media type (415)."""
    given = _bare(request.headers.get("content-type"))
    if given not in expected:
        raise HTTPException(415, f"found the content type {_quote(given)}, expected {' or '.join(expected)}")


async def read_picture(request: Request, limits: Limits) -> bytes:
    """Reads a body that is a picture's file, up to the limit."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        _require_bytes(len(body), limits, "the picture")
    return bytes(body)


def read_form(form: FormData, limits: Limits) -> Upload:
    """Checks the parts of a form: either one `video` or several `frames`, and the fields of `Query`."""
    files: dict[str, list[UploadFile]] = {"frames": [], "video": []}
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in files:
            if isinstance(value, str):
                raise HTTPException(400, f"{name}: found text, expected a file")
            files[name].append(value)
        elif not isinstance(value, str):
            raise HTTPException(400, f"found a file named {_quote(name)}, expected frames or one video")
        elif fields.setdefault(name, value) is not value:
            raise HTTPException(400, f"{name}: found twice, expected once")
    frames, videos = files["frames"], files["video"]
    if len(videos) > 1 or (frames and videos):
        raise HTTPException(400, f"found {len(frames)} frames and {len(videos)} videos, expected frames or one video")
    if not frames and not videos:
        raise HTTPException(400, "found no frames, expected files named frames, or one named video")
    if len(frames) > limits.frames:
        raise HTTPException(413, f"found {len(frames)} frames, expected at most {limits.frames}")
    for number, file in enumerate(frames, start=1):
        if _bare(file.content_type) not in (*PICTURES.values(), ANYTHING):
            raise HTTPException(415, f"frame {number}: found {_quote(file.content_type)}, expected {PICTURE_KINDS}")
    for file in videos:
        if not (_bare(file.content_type).startswith("video/") or _bare(file.content_type) == ANYTHING):
            raise HTTPException(415, f"video: found {_quote(file.content_type)}, expected a video")
    try:
        query = Query.model_validate(fields)
    except pydantic.ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
    return Upload(frames, videos[0] if videos else None, query)


def read_pictures(
    files: Sequence[UploadFile], limits: Limits, interval_seconds: float, prepare: Prepare
) -> Generator[Prepared, None, None]:
    """The pictures of a clip, taken to be `interval_seconds` apart; each file is closed once it has been read.

    All are measured before the first is decoded.
    """
    names = [f"frame {place}" for place in range(1, len(files) + 1)]
    cost = 0
    for name, file in zip(names, files, strict=True):
        _require_bytes(file.size or 0, limits, name)
        cost += _measure(file.file.read(), limits, name)
        file.file.seek(0)
        if cost > NUM_LARGEST * limits.pixels:
            raise HTTPException(413, f"{name} exceeds the limit of {NUM_LARGEST * limits.pixels:,} pixels in a request")
    for place, (name, file) in enumerate(zip(names, files, strict=True)):
        with file.file as opened:
            encoded = opened.read()
        yield Prepared(place * interval_seconds, _prepare(encoded, prepare, name))


def read_frames(
    video: UploadFile, limits: Limits, interval_seconds: float, prepare: Prepare, directory: Path, reading: Reading
) -> Generator[Prepared, None, None]:
    """The frames of a video, decoded one by one; refused as soon as it turns out to be too long or too large.

    Args:
        video: the uploaded file.
        limits: the server's limits.
        interval_seconds: distance between the frames.
        prepare: `Engine.prepare`.
        directory: holds the video as a file until the last frame has been read or the iterator is closed.
        reading: is filled when the last frame has been read.
    """
    of_video = VideoLimits(pixels=limits.pixels, seconds=DECODE_SECONDS, formats=VIDEOS)
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        shutil.copyfileobj(video.file, file)
        file.flush()
        _check_video(file.name, limits)
        try:
            for frame in read_video(file.name, interval_seconds, reading, of_video):
                assert isinstance(frame.picture, np.ndarray), "a video's frames are decoded"
                if frame.time > limits.video_seconds:
                    raise HTTPException(413, f"the video exceeds the limit of {limits.video_seconds:g} seconds")
                yield Prepared(frame.time, prepare(frame.picture))
        except DataError as error:
            code = 413 if isinstance(error, VideoTooLarge) else 400
            raise HTTPException(code, str(error).replace(file.name, "the video")) from error


def prepare_picture(encoded: bytes, limits: Limits, prepare: Prepare, name: str) -> UInt8[np.ndarray, "S S 3"]:
    """Prepares a picture for the encoder, after checking its header: the format, and the size in pixels."""
    _measure(encoded, limits, name)
    return _prepare(encoded, prepare, name)


def _measure(encoded: bytes, limits: Limits, name: str) -> int:
    """Checks a picture's header; returns what decoding it costs."""
    try:
        picture = open_picture(encoded, formats=tuple(PICTURES))
    except TooLarge as error:
        raise HTTPException(413, f"{name}: {error}") from error
    except OSError as error:
        found = "is not an image that can be read" if encoded else "is empty"
        raise HTTPException(400, f"{name} {found}, expected {PICTURE_KINDS}") from error
    _require_size(picture.size, limits, name)
    return decoding_cost(picture, encoded)


def _prepare(encoded: bytes, prepare: Prepare, name: str) -> UInt8[np.ndarray, "S S 3"]:
    try:
        return prepare(encoded)
    except DataError as error:
        raise HTTPException(400, f"{name}: {error}") from error


def describe(errors: Sequence[Mapping[str, Any]]) -> str:
    """The errors that pydantic found, in one line."""
    return "; ".join(
        f"{error['loc'][-1]}: {error['msg']}"
        + (f", found {_quote(error['input'])}" if error["type"] != "missing" else "")
        for error in errors[:5]
    )


def _check_video(path: str, limits: Limits) -> None:
    """Refuses what is no video, and one whose header announces too many seconds."""
    try:
        with av.open(f"file:{path}", container_options={"format_whitelist": VIDEOS}) as container:
            stream = choose_stream(container)
            seconds = 0 if restarts(container) else (container.duration or 0) / av.time_base
    except (av.error.FFmpegError, ValueError) as error:
        raise HTTPException(400, "the video cannot be read, expected one such as mp4 or webm") from error
    if stream is None or not stream.codec_context or not stream.codec_context.width:
        raise HTTPException(400, "found no pictures in the video, expected at least one")
    if seconds > limits.video_seconds:
        found = f"the video is {seconds:.0f} seconds long"
        raise HTTPException(413, f"{found}, which exceeds the limit of {limits.video_seconds:g}")


def _require_bytes(size: int, limits: Limits, name: str) -> None:
    if size > limits.picture_bytes:
        raise HTTPException(413, f"{name} exceeds the limit of {limits.picture_bytes:,} bytes")


def _require_size(size: tuple[int, int], limits: Limits, name: str) -> None:
    width, height = size
    if width * height > limits.pixels:
        found = f"{name} has {width} × {height} = {width * height:,} pixels"
        raise HTTPException(413, f"{found}, which exceeds the limit of {limits.pixels:,}")


def _bare(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"

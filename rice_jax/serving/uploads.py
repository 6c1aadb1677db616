"""What a server takes from strangers: checks of requests, pictures and videos before work is done for them.

Whatever is refused raises an `HTTPException`, whose detail says what was found and what was expected.
"""

import dataclasses
import io
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pydantic
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from jaxtyping import UInt8
from PIL import Image
from starlette.datastructures import FormData, UploadFile

from rice_jax.recognition.video import read_video
from rice_jax.types import DataError

PICTURES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}  # formats as Pillow calls them
TAKEN = "JPEG, PNG or WebP"
ANYTHING = "application/octet-stream"  # what clients say who do not know
# Formats as FFmpeg calls them. Others name further files or addresses, which it would open.
VIDEOS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
MAX_TOP = 100
MAX_TEXT = 1000  # characters of a gallery's id; more are nobody's

Prepare = Callable[[bytes | np.ndarray], np.ndarray]  # `Engine.prepare`


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server takes, and of how much.

    Attributes:
        upload_bytes: of a request's body.
        upload_seconds: in which it has to arrive.
        picture_bytes: of a picture's file, which is held in memory.
        frames: of a request.
        pixels: of a picture, or of a video's frame.
        video_seconds: of a video.
        requests: that bring pictures, at once.
        streams: that are kept.
        stream_seconds: after which a stream that gets no picture is forgotten.
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


class Wanted(pydantic.BaseModel, extra="forbid"):
    """Among which images to look, and how many to name."""

    gallery: str | None = pydantic.Field(None, max_length=MAX_TEXT, description="Its id; without it, all images.")
    top: int = pydantic.Field(5, ge=1, le=MAX_TOP, description="How many images to name.")


class Prepared(NamedTuple):
    """A frame as the encoder takes it."""

    time: float  # seconds from the beginning
    picture: UInt8[np.ndarray, "S S 3"]


class Upload(NamedTuple):
    """A form's files and fields: frames, or a video."""

    frames: list[UploadFile]
    video: UploadFile | None
    wanted: Wanted


def require_type(request: Request, *expected: str) -> None:
    """Refuses a body that is of none of these media types (415)."""
    given = _bare(request.headers.get("content-type"))
    if given not in expected:
        raise HTTPException(415, f"found the content type {_quote(given)}, expected {' or '.join(expected)}")


async def read_picture(request: Request, limits: Limits) -> bytes:
    """Reads a body that is a picture's file, as far as it may go."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        _require_bytes(len(body), limits, "the picture")
    return bytes(body)


def read_form(form: FormData, limits: Limits) -> Upload:
    """Looks at the parts of a form: one `video`, or several `frames`; `gallery` and `top`."""
    files: dict[str, list[UploadFile]] = {"frames": [], "video": []}
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in files:
            if isinstance(value, str):
                raise HTTPException(400, f"{name}: found a text, expected a file")
            files[name].append(value)
        elif not isinstance(value, str):
            raise HTTPException(400, f"found a file as {_quote(name)}, expected frames, or one video")
        elif fields.setdefault(name, value) is not value:
            raise HTTPException(400, f"{name}: found it twice, expected it once")
    frames, videos = files["frames"], files["video"]
    if len(videos) > 1 or (frames and videos):
        raise HTTPException(400, f"found {len(frames)} frames and {len(videos)} videos, expected frames, or one video")
    if not frames and not videos:
        raise HTTPException(400, "found no frames, expected files as frames, or one as video")
    if len(frames) > limits.frames:
        raise HTTPException(413, f"found {len(frames)} frames, expected at most {limits.frames}")
    for number, file in enumerate(frames, start=1):
        if _bare(file.content_type) not in (*PICTURES.values(), ANYTHING):
            raise HTTPException(415, f"frame {number}: found {_quote(file.content_type)}, expected a {TAKEN}")
    for file in videos:
        if not (_bare(file.content_type).startswith("video/") or _bare(file.content_type) == ANYTHING):
            raise HTTPException(415, f"video: found {_quote(file.content_type)}, expected a video")
    try:
        wanted = Wanted.model_validate(fields)
    except pydantic.ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
    return Upload(frames, videos[0] if videos else None, wanted)


def read_pictures(
    files: Iterable[UploadFile], limits: Limits, interval_seconds: float, prepare: Prepare
) -> Iterator[Prepared]:
    """The pictures of a clip, as if they were `interval_seconds` apart; each file is closed when it has been read."""
    for place, file in enumerate(files):
        name = f"frame {place + 1}"
        _require_bytes(file.size, limits, name)
        with file.file as opened:
            encoded = opened.read()
        yield Prepared(place * interval_seconds, prepare_picture(encoded, limits, prepare, name))


def read_frames(
    video: UploadFile, limits: Limits, interval_seconds: float, prepare: Prepare, directory: Path
) -> Iterator[Prepared]:
    """The frames of a video, decoded as they are asked for; refused as soon as it turns out too long or too large.

    Args:
        video: what was uploaded.
        limits: that it has to keep.
        interval_seconds: between the frames.
        prepare: the engine's.
        directory: where it is a file of its own until the last frame has been read, or this is closed.
    """
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        shutil.copyfileobj(video.file, file)
        file.flush()
        _check_video(file.name, limits)
        try:
            for frame in read_video(file.name, interval_seconds):
                _require_size(frame.picture.shape[1::-1], limits, f"the frame at second {frame.time:g}")
                if frame.time > limits.video_seconds:
                    raise HTTPException(413, f"the video is longer than {limits.video_seconds:g} seconds")
                yield Prepared(frame.time, prepare(frame.picture))
        except DataError as error:
            raise HTTPException(400, str(error).replace(file.name, "the video")) from error


def prepare_picture(encoded: bytes, limits: Limits, prepare: Prepare, name: str) -> UInt8[np.ndarray, "S S 3"]:
    """Prepares a picture for the encoder, if its header says that it is one, and not too large."""
    try:
        with Image.open(io.BytesIO(encoded), formats=list(PICTURES)) as picture:
            size = picture.size
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"{name} has too many pixels, expected at most {limits.pixels:,}") from error
    except Exception as error:  # Pillow's readers raise whatever they come upon in a damaged file
        found = "is not an image that can be read" if encoded else "is empty"
        raise HTTPException(400, f"{name} {found}, expected a {TAKEN}") from error
    _require_size(size, limits, name)
    try:
        return prepare(encoded)
    except DataError as error:
        raise HTTPException(400, f"{name}: {error}") from error


def describe(errors: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic found wrong, in a line."""
    return "; ".join(
        f"{error['loc'][-1]}: {error['msg']}"
        + (f", found {_quote(error['input'])}" if error["type"] != "missing" else "")
        for error in errors[:5]
    )


def _check_video(path: str, limits: Limits) -> None:
    try:
        with av.open(path, container_options={"format_whitelist": VIDEOS}) as container:
            codecs = [stream.codec_context for stream in container.streams.video]
            seconds = (container.duration or 0) / av.time_base
            size = (codecs[0].width, codecs[0].height) if codecs and codecs[0] else (0, 0)
    except (av.error.FFmpegError, ValueError) as error:
        raise HTTPException(400, "the video cannot be read, expected one such as mp4 or webm") from error
    if size == (0, 0):
        raise HTTPException(400, "the video holds no pictures that can be read")
    _require_size(size, limits, "the video")
    if seconds > limits.video_seconds:
        raise HTTPException(413, f"the video is {seconds:.0f} seconds long, expected at most {limits.video_seconds:g}")


def _require_bytes(size: int, limits: Limits, name: str) -> None:
    if size > limits.picture_bytes:
        raise HTTPException(413, f"{name} has more than {limits.picture_bytes:,} bytes, expected at most so many")


def _require_size(size: tuple[int, int], limits: Limits, name: str) -> None:
    width, height = size
    if width * height > limits.pixels:
        found = f"{name} has {width} × {height} = {width * height:,} pixels"
        raise HTTPException(413, f"{found}, expected at most {limits.pixels:,}")


def _bare(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"

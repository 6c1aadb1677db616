"""Checks of uploads: requests, pictures, and videos are checked before any work is done for them.

Refused uploads raise an `HTTPException` whose detail says what was found and what was expected.
"""

import collections
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Mapping, Sequence
from typing import IO, Annotated, Any, Literal, NamedTuple, TypeVar

import av
import numpy as np
import pydantic
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from jaxtyping import UInt8

from rice_jax.input.pictures import TooLarge, decoding_cost, open_picture
from rice_jax.recognition.container import Reading, VideoLimits, VideoTooLarge, choose_stream, restarts
from rice_jax.recognition.subtitles import Sentence, parse_subtitles
from rice_jax.recognition.video import read_video
from rice_jax.serving.forms import File, Form
from rice_jax.serving.limits import Limits
from rice_jax.serving.scratch import Spool
from rice_jax.types import DataError

FORM = "multipart/form-data"
JSON, MAX_JSON = "application/json", 20_000  # bytes
PICTURES_FIELD = "pictures"  # of a form for `check_pictures`
SUBTITLES = "subtitles"  # of a form for `check_form`
SUBTITLE_TYPES = ("text/", "application/")
PICTURES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}  # {Pillow's format: media type}
PICTURE_KINDS = "JPEG, PNG, or WebP"
# Clients know many names, such as image/jpg, and some know none. The content decides; the type only tells early, and
# more clearly, that something else was sent.
PICTURE_TYPES = ("image/",)
VIDEO_TYPES = ("video/", "application/mp4", "application/x-matroska", "application/ogg", "application/vnd.ms-asf")
ANYTHING = ("", "application/octet-stream", "application/x-octet-stream", "binary/octet-stream")
# FFmpeg's names of formats. Other formats can refer to further files or addresses, which FFmpeg would open.
VIDEOS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
# Pictures of the largest size whose cost (`decoding_cost`) those of a request may have together: each may take half a
# second, and 100 bytes of an upload.
NUM_LARGEST = 10
DECODE_SECONDS = 30.0  # for each picture of a video that is looked at
MAX_TOP = 100
MAX_LISTED = 500
MAX_OFFSET = 10**12
MAX_TEXT = 1000  # characters of a gallery's id, or of a condition
MAX_CONDITIONS = 6

Model = TypeVar("Model", bound=pydantic.BaseModel)
Prepare = Callable[[bytes | np.ndarray], np.ndarray]  # `Engine.prepare`


class Selection(pydantic.BaseModel, extra="forbid"):
    """Some of the products."""

    gallery: str | None = pydantic.Field(
        None, max_length=MAX_TEXT, description="Id of the gallery to search; all products if it is left out."
    )
    where: list[Annotated[str, pydantic.Field(max_length=MAX_TEXT, pattern=r"\S.*=")]] = pydantic.Field(
        [],
        max_length=MAX_CONDITIONS,
        description="COLUMN=VALUE: search only products with this value in the shop's CSV. Repeat it for another value "
        "of a column, or for another column.",
    )


class Query(Selection):
    """Which products to search, and how many to return."""

    top: int = pydantic.Field(5, ge=1, le=MAX_TOP, description="Number of products to return.")


class ClipQuery(Query):
    """A query about a clip or a video."""

    text: str = pydantic.Field(
        "", max_length=MAX_TEXT, description="What is said in the clip, in place of `subtitles`; not for a video."
    )


class StreamQuery(Query):
    """A query about a stream's picture."""

    time: float = pydantic.Field(
        ge=-1e12, le=1e12, allow_inf_nan=False, description="Time of the picture, seconds from any starting point."
    )


class WordsQuery(Query):
    """Words to search with."""

    q: str = pydantic.Field(min_length=1, max_length=MAX_TEXT, description="Such as `red armchair`.")
    by: Literal["pictures", "titles"] | None = pydantic.Field(
        None, description="What the words are compared with; the default is what the index's text tower allows."
    )


class Listing(Selection):
    """Which products to list: `limit` of them from `offset` on."""

    offset: int = pydantic.Field(0, ge=0, le=MAX_OFFSET, description="Number of products to leave out.")
    limit: int = pydantic.Field(100, ge=1, le=MAX_LISTED, description="Number of products to list.")


class SourceQuery(Query):
    """What to follow, and which products to search."""

    url: str = pydantic.Field(
        min_length=1, max_length=MAX_TEXT, description="An RTMP, RTSP, or HLS URL, or the path of a file or camera."
    )
    max_delay: float = pydantic.Field(5.0, gt=0, le=60, description="Seconds after which a late picture is dropped.")


class SpokenText(pydantic.BaseModel, extra="forbid"):
    """What is said in a stream."""

    text: str = pydantic.Field(min_length=1, max_length=MAX_TEXT, description="What is said.")
    start: float = pydantic.Field(
        ge=-1e12, le=1e12, allow_inf_nan=False, description="Seconds, by the clock of the stream's pictures."
    )
    end: float = pydantic.Field(ge=-1e12, le=1e12, allow_inf_nan=False, description="Seconds, at least `start`.")

    @pydantic.field_validator("text")
    @classmethod
    def _has_words(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("expected words")
        return text

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> "SpokenText":
        if self.end < self.start:
            raise ValueError(f"expected an end of {self.start:g} or later")
        return self


class Prepared(NamedTuple):
    """A frame that is ready to be encoded."""

    time: float  # seconds from the beginning
    picture: UInt8[np.ndarray, "S S 3"]


class Upload(NamedTuple):
    """The content of a form: frames or a video, what is said, and the query."""

    frames: list[File]
    video: File | None
    subtitles: File | None
    query: ClipQuery


def require_once(names: Iterable[str]) -> None:
    """Refuses several values for one name (400), but for `where`."""
    for name, count in collections.Counter(names).items():
        if count > 1 and name != "where":
            raise HTTPException(400, f"{name[:80]}: found twice, expected once")


def require_form(content_type: str, parameters: Iterable[str]) -> None:
    """Refuses a request that is not a form (415), and one with parameters in its address, not in the form (422)."""
    for name in parameters:
        raise HTTPException(422, f"{name[:80]}: found in the request's address, expected in the form")
    if _bare(content_type) != FORM:
        raise HTTPException(415, f"found the content type {_quote(_bare(content_type))}, expected {FORM}")


async def read_picture(content_type: str, body: AsyncIterable[bytes], stored: IO[bytes], limits: Limits) -> File:
    """Reads a body that is a picture's file, up to the limit, into an empty file."""
    if not _is_type(content_type, PICTURE_TYPES):
        found = f"found the content type {_quote(_bare(content_type))}"
        raise HTTPException(415, f"{found}, expected {' or '.join(PICTURES.values())}")
    spool = Spool(stored)
    async for piece in body:
        _require_bytes(spool.size + len(piece), limits, "the picture")
        spool.add(piece)
        await spool.store_if_large()
    await spool.store()
    return File(content_type, stored, 0, spool.size)


async def read_json(content_type: str, body: AsyncIterable[bytes], model: type[Model]) -> Model:
    """Reads a small body that is a JSON object."""
    if _bare(content_type) != JSON:
        raise HTTPException(415, f"found the content type {_quote(_bare(content_type))}, expected {JSON}")
    text = bytearray()
    async for piece in body:
        text += piece
        if len(text) > MAX_JSON:
            raise HTTPException(413, f"the request exceeds the limit of {MAX_JSON:,} bytes of JSON")
    try:
        return model.model_validate_json(bytes(text))
    except pydantic.ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error


def check_form(form: Form) -> Upload:
    """Checks the parts of a form: one `video` or several `frames`, `subtitles`, and the fields of `ClipQuery`."""
    files: dict[str, list[File]] = {"frames": [], "video": [], SUBTITLES: []}
    for name, file in form.files:
        if name not in files:
            raise HTTPException(400, f"found a file named {_quote(name)}, expected frames or one video, and subtitles")
        files[name].append(file)
    for name, _ in form.fields:
        if name in files:
            raise HTTPException(400, f"{name}: found text, expected a file, whose part has a filename")
    require_once(name for name, _ in form.fields)
    frames, videos = files["frames"], files["video"]
    if len(videos) > 1 or (frames and videos):
        raise HTTPException(400, f"found {len(frames)} frames and {len(videos)} videos, expected frames or one video")
    if not frames and not videos:
        raise HTTPException(400, "found no frames, expected files named frames, or one named video")
    _require_pictures(frames, "frame")
    for file in videos:
        if not _is_type(file.content_type, VIDEO_TYPES):
            raise HTTPException(415, f"video: found {_quote(file.content_type)}, expected a video")
    for file in files[SUBTITLES]:
        if not _is_type(file.content_type, SUBTITLE_TYPES):
            raise HTTPException(415, f"subtitles: found {_quote(file.content_type)}, expected .srt, .vtt, or .json")
    try:
        conditions = [text for name, text in form.fields if name == "where"]
        query = ClipQuery.model_validate(dict(form.fields) | {"where": conditions})
    except pydantic.ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
    subtitles = next(iter(files[SUBTITLES]), None)
    if query.text and (videos or subtitles):
        beside = "subtitles" if subtitles else "a video"
        raise HTTPException(400, f"text: found beside {beside}, expected with frames; a video takes subtitles")
    return Upload(frames, next(iter(videos), None), subtitles, query)


def read_speech(upload: Upload, interval_seconds: float) -> list[Sentence] | None:
    """What is said in a video, or in a clip of pictures `interval_seconds` apart; None = the request does not tell."""
    if upload.subtitles:
        try:
            return parse_subtitles(upload.subtitles.read(), SUBTITLES)
        except DataError as error:
            raise HTTPException(400, str(error)) from error
    text = " ".join(upload.query.text.split())
    return [Sentence(0.0, len(upload.frames) * interval_seconds, text)] if text else None


def check_pictures(form: Form) -> list[File]:
    """Checks the parts of a form: one or more `pictures`, and nothing else."""
    for name in [name for name, _ in (*form.fields, *form.files) if name != PICTURES_FIELD]:
        raise HTTPException(400, f"found {_quote(name)} in the form, expected files named {PICTURES_FIELD}")
    if form.fields:
        raise HTTPException(400, f"{PICTURES_FIELD}: found text, expected files, whose parts have a filename")
    files = [file for _, file in form.files]
    if not files:
        raise HTTPException(400, f"found no pictures, expected files named {PICTURES_FIELD}")
    _require_pictures(files, "picture")
    return files


def _require_pictures(files: Sequence[File], called: str) -> None:
    for number, file in enumerate(files, start=1):
        if not _is_type(file.content_type, PICTURE_TYPES):
            raise HTTPException(415, f"{called} {number}: found {_quote(file.content_type)}, expected {PICTURE_KINDS}")


def read_pictures(
    files: Sequence[File], limits: Limits, interval_seconds: float, prepare: Prepare, called: str = "frame"
) -> Generator[Prepared, None, None]:
    """The pictures of a clip, taken to be `interval_seconds` apart; all are measured before the first is decoded."""
    names = [f"{called} {place}" for place in range(1, len(files) + 1)]
    cost = 0
    for name, file in zip(names, files, strict=True):
        _require_bytes(file.size, limits, name)
        cost += _measure(file.read(), limits, name)
        if cost > NUM_LARGEST * limits.pixels:
            raise HTTPException(413, f"{name} exceeds the limit of {NUM_LARGEST * limits.pixels:,} pixels in a request")
    for place, (name, file) in enumerate(zip(names, files, strict=True)):
        yield Prepared(place * interval_seconds, _prepare(file.read(), prepare, name))


def read_frames(
    video: File, limits: Limits, interval_seconds: float, prepare: Prepare, reading: Reading
) -> Generator[Prepared, None, None]:
    """The frames of a video, decoded one by one; refused as soon as it turns out to be too long or too large.

    Args:
        video: the only file of a form.
        limits: the server's limits.
        interval_seconds: distance between the frames.
        prepare: `Engine.prepare`.
        reading: is filled when the last frame has been read.
    """
    of_video = VideoLimits(pixels=limits.pixels, seconds=DECODE_SECONDS, formats=VIDEOS)
    path = video.stored.name  # which holds nothing else
    _check_video(path, limits)
    try:
        for frame in read_video(path, interval_seconds, reading, of_video):
            assert isinstance(frame.picture, np.ndarray), "a video's frames are decoded"
            if frame.time > limits.video_seconds:
                raise HTTPException(413, f"the video exceeds the limit of {limits.video_seconds:g} seconds")
            yield Prepared(frame.time, prepare(frame.picture))
    except DataError as error:
        code = 413 if isinstance(error, VideoTooLarge) else 400
        raise HTTPException(code, str(error).replace(path, "the video")) from error


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
        f"{([part for part in error['loc'] if isinstance(part, str)] or ['the request'])[-1]}: {error['msg']}"
        + (f", found {_quote(error['input'])}" if error["type"] not in ("missing", "json_invalid") else "")
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


def _is_type(content_type: str, expected: Sequence[str]) -> bool:
    bare = _bare(content_type)
    return bare in ANYTHING or bare.startswith(tuple(expected))


def _bare(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"

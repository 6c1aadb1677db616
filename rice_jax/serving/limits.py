"""The server's limits, each of which is a flag of `rice_jax.serve`."""

import dataclasses
from typing import Any

MEGA = 1_000_000
SUBTITLE_BYTES = 2 * MEGA  # size of a file of subtitles, which no user needs to change: that of an hour has 100 KB


def _limit(default: int | float, text: str, *, flag: str = "", unit: int = 1) -> Any:
    """A field of `Limits`: its default, help text, and flag (if it has another name or unit)."""
    return dataclasses.field(default=default, metadata={"text": text, "flag": flag, "unit": unit})


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of each request, then limits of the server."""

    upload_bytes: int = _limit(200 * MEGA, "size of a request", flag="upload_megabytes", unit=MEGA)
    upload_seconds: float = _limit(60.0, "time in which a request must arrive")
    frames: int = _limit(100, "pictures of a clip")
    picture_bytes: int = _limit(20 * MEGA, "size of a picture's file", flag="picture_megabytes", unit=MEGA)
    pixels: int = _limit(25 * MEGA, "size of a picture or of a video's frames", flag="megapixels", unit=MEGA)
    video_seconds: float = _limit(900.0, "length of a video")
    decode_seconds: float = _limit(120.0, "time for decoding")
    requests: int = _limit(32, "requests at once; more get a 503")
    arriving_bytes: int = _limit(2000 * MEGA, "size of all requests on disk", flag="arriving_megabytes", unit=MEGA)
    connections: int = _limit(400, "connections")
    client_connections: int = _limit(100, "connections from one address")
    header_seconds: float = _limit(10.0, "time for a request's header")
    streams: int = _limit(100, "streams of pictures at once")
    stream_seconds: float = _limit(60.0, "idle time after which such a stream ends")
    sources: int = _limit(8, "sources followed at once")
    listeners: int = _limit(100, "listeners to events")


def at_limit(number: int, noun: str, state: str) -> str:
    """Says that the server takes no more, such as "2 connections are open, which is this server's limit"."""
    found = f"1 {noun} is" if number == 1 else f"{number} {noun}s are"
    return f"{found} {state}, which is this server's limit"

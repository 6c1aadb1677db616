"""The server's limits, each of which is a flag of `rice_jax.serve`."""

import dataclasses
from typing import Any

MEGA = 1_000_000


def _limit(default: int | float, text: str, *, flag: str = "", unit: int = 1, server: bool = False) -> Any:
    """A field of `Limits`: its default, help text, flag (if it has another name or unit), and whether it is shared."""
    return dataclasses.field(default=default, metadata={"text": text, "flag": flag, "unit": unit, "server": server})


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of each request, then limits of the server."""

    upload_bytes: int = _limit(200 * MEGA, "size of the request", flag="upload_megabytes", unit=MEGA)
    upload_seconds: float = _limit(60.0, "time in which it must arrive")
    frames: int = _limit(100, "pictures of a clip")
    picture_bytes: int = _limit(20 * MEGA, "size of a picture's file", flag="picture_megabytes", unit=MEGA)
    pixels: int = _limit(25 * MEGA, "size of a picture or of a video's frames", flag="megapixels", unit=MEGA)
    video_seconds: float = _limit(900.0, "length of a video")
    decode_seconds: float = _limit(120.0, "time for decoding")
    requests: int = _limit(32, "requests at once; more get a 503", server=True)
    arriving_bytes: int = _limit(
        2000 * MEGA, "size of all requests on disk", flag="arriving_megabytes", unit=MEGA, server=True
    )
    connections: int = _limit(400, "connections", server=True)
    client_connections: int = _limit(100, "connections from one address", server=True)
    header_seconds: float = _limit(10.0, "time for a request's header", server=True)
    streams: int = _limit(100, "streams of pictures at once", server=True)
    stream_seconds: float = _limit(60.0, "idle time after which such a stream ends", server=True)
    sources: int = _limit(8, "sources followed at once", server=True)
    listeners: int = _limit(100, "listeners to events", server=True)

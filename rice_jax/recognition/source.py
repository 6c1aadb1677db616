"""One connection to a live source: a URL, a camera, or a file that grows."""

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from rice_jax.recognition.allowed import CONTAINERS, FORMATS, PROTOCOLS, WEB, Allowed, SourceRefused, Web
from rice_jax.recognition.clock import Clock, Stamped, look
from rice_jax.recognition.container import (
    LIMITS,
    LONGEST_ON_AIR,
    USUAL_RATE,
    VideoTooLarge,
    choose_stream,
    decoder_options,
    require_size,
)
from rice_jax.recognition.display import display
from rice_jax.recognition.recording import has_index_at_end, is_complete
from rice_jax.types import DataError

OPEN_SECONDS, SILENT_SECONDS = 20.0, 20.0  # after which a connection that brings no picture is given up
LISTEN_SECONDS = 60.0  # for a sender
LOOK_SECONDS = 0.1  # between two looks at a file's size
COMPLETE_SECONDS = 5.0  # without growth after which a file may be complete
WAITING = 0.05  # share of the time that reading waits at least, unless more arrives than is decoded
ANALYZED = "3000000"  # microseconds; FFmpeg would look for sound in RTMP for 90 seconds
REMEMBERED = 600  # packets, which is more than a segment of HLS
COMPLETE = "is a complete recording, which does not grow; recognize it as a video"
HLS, DEVICE = "hls", "v4l2"  # FFmpeg's names

logger = logging.getLogger(__name__)


class SourceLost(DataError):
    """A connection has failed or ended; another one may succeed."""


class SourceEnded(DataError):
    """A recording is complete, so that nothing more will come."""


@dataclass(frozen=True)
class LiveSource:
    """Where a live stream comes from.

    Attributes:
        address: a URL that FFmpeg reads (RTMP, RTSP, HLS, …), a camera's device file, or the path of a file that grows.
        listen: wait at the address of an RTMP or RTSP URL for a sender, instead of asking there.
        max_delay: time in seconds for which packets may pile up before they are skipped; above 0.
        allowed: what may be opened; None = whatever FFmpeg opens.
    """

    address: str
    listen: bool = False
    max_delay: float = 5.0
    allowed: Allowed | None = None

    def __post_init__(self) -> None:
        if not 0 < self.max_delay < math.inf:
            raise DataError(f"max_delay: found {self.max_delay}, expected more than 0 seconds, and finite")
        try:
            str(self)
        except ValueError as error:
            raise DataError(f"{self.address!r}: {error}") from error
        if self.listen and self.scheme not in ("rtmp", "rtsp"):
            raise DataError(f"{self}: expected an rtmp:// or rtsp:// address to listen at")
        if not self.address:
            raise DataError("'': found no address, expected a URL, a file that grows, or a camera")

    @property
    def scheme(self) -> str:
        """Of a URL; "" = a path."""
        return self.address.split("://")[0].lower() if "://" in self.address else ""

    def __str__(self) -> str:
        """The address without the secrets that URLs hold: user, password, and query."""
        if not self.scheme:
            return self.address
        parts = urlsplit(self.address)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class GrowingFile:
    """A file that something else writes to; reading waits at its end.

    Attributes:
        waited: seconds spent at the end.
        complete: whether the file is complete and has been read.
    """

    def __init__(self, path: Path, stop: threading.Event):
        """Opens the file.

        Args:
            path: of the file.
            stop: ends the waiting.

        Raises:
            OSError: it cannot be opened.
        """
        self._path, self._stop, self.waited, self.complete = path, stop, 0.0, False
        self._file = path.open("rb")

    def read(self, size: int) -> bytes:
        """Reads up to `size` bytes, at least one; none at the stop, or if the file is complete, replaced, or cut."""
        silent, check = 0.0, COMPLETE_SECONDS
        while not (found := self._file.read(size)) and not self._ended():
            if silent < SILENT_SECONDS <= silent + LOOK_SECONDS:
                logger.warning("%s: has not grown for %.0f seconds", self._path, SILENT_SECONDS)
            if silent >= check:
                self.complete, check = is_complete(self._path), check + COMPLETE_SECONDS
            before = time.monotonic()
            self._stop.wait(LOOK_SECONDS)
            self.waited += max(LOOK_SECONDS, time.monotonic() - before)
            silent += LOOK_SECONDS
        return found

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _ended(self) -> bool:
        return self.complete or self._stop.is_set() or self._replaced()

    def _replaced(self) -> bool:
        own = os.fstat(self._file.fileno())
        try:
            return not os.path.samestat(own, self._path.stat()) or own.st_size < self._file.tell()
        except FileNotFoundError:
            return True


class Backlog:
    """Tells when more arrives than is decoded: reading then hardly ever waits.

    Attributes:
        late: whether packets are to be skipped.
    """

    def __init__(self, max_delay: float, late: bool = False):
        """Starts.

        Args:
            max_delay: seconds with hardly any waiting after which packets are late.
            late: whether they are from the beginning.
        """
        self._max_delay, self.late = max_delay, late
        self._waited = self._elapsed = 0.0

    def note(self, waited: float, elapsed: float) -> None:
        """Adds the seconds since the previous packet, and those of them that reading has waited."""
        self._waited += waited
        self._elapsed += elapsed
        waits = self._waited > WAITING * self._max_delay
        if waits or self._elapsed > self._max_delay:
            self.late, self._waited, self._elapsed = not waits, 0.0, 0.0


class Seen:
    """The last packets of HLS: a new connection begins with a segment that the previous one may have shown."""

    def __init__(self) -> None:
        """Starts with none."""
        self._order: deque[tuple] = deque(maxlen=REMEMBERED)

    def add(self, packet: av.Packet) -> bool:
        """Adds a packet; returns whether it is new."""
        key = packet.pts, packet.dts, packet.size
        new = key not in self._order
        if new:
            self._order.append(key)
        return new


def live_pictures(
    source: LiveSource, interval: Fraction, stop: threading.Event, seen: Seen
) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"]]]:
    """Connects to a source, and looks at its pictures as they come (`clock.look`).

    A file is followed from its end. Packets that cannot be decoded are left out. If more arrives than is decoded,
    packets are skipped until reading waits again, and then until the next one that needs no earlier ones.

    Args:
        source: of the stream.
        interval: seconds, above 0.
        stop: ends it, at the latest when the next picture comes.
        seen: packets of earlier connections, which are left out.

    Yields:
        When each picture is looked at, in seconds from the first one, and the picture: sRGB, upright.

    Raises:
        DataError: the source can never be followed.
        SourceEnded: it is a file that is complete.
        SourceLost: there is no connection, it breaks, it has no video, or the pictures are too large.
    """
    if source.listen:
        logger.info("%s: waiting for a sender", source)
    file = None
    try:
        if source.allowed:
            source.allowed.require(source.address)
        file = None if source.scheme or _is_camera(source) else _open_file(source, stop)
        with _open(source, file) as container:
            yield from _look_at(container, file, source, interval, seen)
    except (av.error.ProtocolNotFoundError, av.error.DemuxerNotFoundError) as error:
        raise DataError(f"{source}: cannot be followed: {error.strerror}") from error
    except SourceRefused as error:  # what it redirects or refers to may change
        raise SourceLost(f"{source}: {error}") from error
    except VideoTooLarge as error:  # a damaged header may say so
        raise SourceLost(str(error)) from error
    except av.error.ExitError as error:
        raise SourceLost(f"{source}: does not answer") from error
    except (av.error.FFmpegError, OSError) as error:
        if not (file and file.complete):
            raise SourceLost(f"{source}: {error.strerror}") from error
    finally:
        if file:
            file.close()
    if file and file.complete:
        raise SourceEnded(f"{source}: {COMPLETE}")


def _open_file(source: LiveSource, stop: threading.Event) -> GrowingFile:
    path = Path(source.address)
    if has_index_at_end(path):
        if is_complete(path):
            raise SourceEnded(f"{source}: {COMPLETE}")
        raise DataError(
            f"{source}: is an MP4 whose index is written at its end, expected one that can be read while it grows: "
            "MPEG-TS, Matroska, FLV, or fragmented MP4"
        )
    return GrowingFile(path, stop)


def _is_camera(source: LiveSource) -> bool:
    return Path(source.address).is_char_device()


def _open(source: LiveSource, file: GrowingFile | None) -> av.container.InputContainer:
    # The first two keep FFmpeg from waiting for a rate or for sound; the others are of RTSP and HLS.
    options = {"fpsprobesize": "0", "analyzeduration": ANALYZED, "rtsp_transport": "tcp", "live_start_index": "-1"}
    device = DEVICE if _is_camera(source) else None
    if source.allowed and source.scheme in WEB:
        # FFmpeg would take `Web`'s connections for its own.
        options |= {"format_whitelist": FORMATS, "http_persistent": "0", "http_multiple": "0"}
        web, seconds = Web(source.allowed), (OPEN_SECONDS, SILENT_SECONDS)
        return av.open(web.final(source.address), "r", options=options, io_open=web.open, timeout=seconds)
    if source.allowed and not device:
        options |= {"protocol_whitelist": PROTOCOLS.get(source.scheme, "file"), "format_whitelist": CONTAINERS}
    if file:
        return av.open(file, "r", options=options)
    if source.listen:
        # Without a value for `listen_timeout`, FFmpeg refuses its own default.
        options |= {"listen": "1", "rtsp_flags": "listen", "listen_timeout": f"{LISTEN_SECONDS:.0f}"}
    timeout = LISTEN_SECONDS if source.listen else OPEN_SECONDS
    return av.open(source.address, "r", format=device, options=options, timeout=(timeout, SILENT_SECONDS))


def _look_at(
    container: av.container.InputContainer, file: GrowingFile | None, source: LiveSource, interval: Fraction, seen: Seen
) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"]]]:
    stream = choose_stream(container)
    if stream is None or stream.codec_context is None:
        raise SourceLost(f"{source}: {'has no video' if stream is None else 'has a video of an unknown codec'}")
    if container.format.name == HLS and container.duration is not None:
        raise SourceLost(f"{source}: has ended, and is a recording now")  # which is no news, however often it is read
    context = stream.codec_context
    require_size(source, context.width, context.height, LIMITS)
    context.options = decoder_options(LIMITS)
    context.thread_type = "SLICE"  # threads that decode a picture each would hold pictures back
    logger.info("%s: connected; %d × %d pixels", source, context.width, context.height)
    clock = Clock(None, LONGEST_ON_AIR, None, min(1 / Fraction(stream.average_rate or USUAL_RATE), Fraction(1)))
    shown = clock.play(_decode(container, stream, file, source, seen if container.format.name == HLS else None))
    decoded: av.VideoFrame | None = None
    reformatter = VideoReformatter()
    picture, size = np.zeros((0, 0, 3), np.uint8), (0, 0)
    for second, frame in look(shown, interval, Fraction(stream.time_base or 0), clock):
        if clock.restarts:
            logger.warning("%s: its clock has jumped by %.1f seconds", source, clock.restarts[-1][1])
            clock.restarts.clear()  # nothing may grow for as long as a stream is followed
        if frame is not decoded:
            require_size(source, frame.width, frame.height, LIMITS)
            if decoded and size != (frame.width, frame.height):
                logger.info("%s: now %d × %d pixels", source, frame.width, frame.height)
            decoded, size = frame, (frame.width, frame.height)
            picture = display(frame, int(context.color_trc), int(context.color_primaries), reformatter)
        yield float(second), picture


def _decode(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    file: GrowingFile | None,
    source: LiveSource,
    seen: Seen | None,
) -> Iterator[Stamped]:
    """Decodes what is not late."""
    backlog, tick = Backlog(source.max_delay, late=file is not None), Fraction(stream.time_base or 0)
    needs_key, latest = True, _seconds(file)
    for packet in _demux(container, file, backlog):
        if backlog.late:
            needs_key, latest = True, _seconds(file)
            continue
        if _seconds(file) - latest > SILENT_SECONDS:
            raise SourceLost(f"{source}: has sent no picture that can be decoded for {SILENT_SECONDS:.0f} seconds")
        if packet.stream.index != stream.index or not packet.size:
            continue
        known = seen is not None and not seen.add(packet)
        if known or (needs_key and not packet.is_keyframe):
            needs_key = True
            continue
        needs_key = False
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        for frame in frames:
            latest = _seconds(file)
            yield Stamped(None if frame.pts is None or not tick else frame.pts * tick, frame.duration * tick, frame)


def _seconds(file: GrowingFile | None) -> float:
    """Seconds of a clock that stops while a file does not grow, since a new connection would wait there as well."""
    return time.monotonic() - (file.waited if file else 0.0)


def _demux(container: av.container.InputContainer, file: GrowingFile | None, backlog: Backlog) -> Iterator[av.Packet]:
    """Reads the packets of all streams, and notes how long each takes."""
    packets = container.demux()
    previous = time.monotonic()
    while True:
        before, waited = time.monotonic(), file.waited if file else 0.0
        try:
            packet = next(packets)
        except (StopIteration, IndexError):  # at the end, PyAV looks for streams that have begun since (FLV, MPEG)
            return
        now = time.monotonic()
        backlog.note(file.waited - waited if file else now - before, now - previous)
        previous = now
        yield packet

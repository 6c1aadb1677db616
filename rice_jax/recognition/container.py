"""Decodes the pictures of a video file, past damage, and looks at some of them."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from rice_jax.recognition.clock import Clock, Shown, Stamped, look
from rice_jax.recognition.display import display
from rice_jax.types import DataError

# The longest time for which a picture may stay; a later one follows a restart of the clock. Formats for broadcasting,
# whose clocks restart at any time, get less.
LONGEST, LONGEST_ON_AIR = Fraction(600), Fraction(60)
USUAL_RATE = 25  # pictures a second where nothing says otherwise
MAX_ERRORS = 100  # while reading packets
LATEST = 64  # packets; decoders lag behind by up to 16, and their threads
THREADS = 4  # of a decoder; each holds several pictures
EXPECTED = "expected a video such as mp4"


class VideoTooLarge(DataError):
    """A video exceeds one of `VideoLimits`."""


@dataclasses.dataclass(frozen=True)
class VideoLimits:
    """What a video file may be.

    Attributes:
        pixels: of a picture; larger ones are not decoded.
        side: width and height of a picture in pixels.
        work: pixels that may be decoded for each second of the video.
        seconds: time that decoding may take until the next picture that is looked at.
        formats: FFmpeg's names of the formats that are read, separated by commas; None = all.
    """

    pixels: int = 2**26
    side: int = 2**14
    work: int = 2**31
    seconds: float = math.inf
    formats: str | None = None


LIMITS = VideoLimits()  # of those that the user's own machine can decode


@dataclasses.dataclass
class Reading:
    """What is known about a video once its last frame has been read.

    Attributes:
        end: when its last picture ends, in seconds; None = unknown.
        warnings: what is wrong with the video, one sentence each.
    """

    end: float | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Packets:
    """The packets read so far.

    Attributes:
        pictures: number of packets of the stream.
        broken: number of those that could not be decoded.
        first_broken: when the first of them was met, in seconds.
        error: what was wrong with it.
        corrupt: number of pictures that the decoder has patched up.
        reached: when the latest packet of any stream ends, on the file's clock.
        latest: when the latest packets are decoded, in ticks of the stream.
        delay: number of packets by which the decoder's pictures lag behind; None = it has given none yet.
    """

    pictures: int = 0
    broken: int = 0
    first_broken: Fraction = Fraction(0)
    error: str = ""
    corrupt: int = 0
    reached: Fraction = Fraction(0)
    latest: deque[int | None] = dataclasses.field(default_factory=lambda: deque(maxlen=LATEST))
    delay: int | None = None

    def note(self, error: av.error.FFmpegError, now: Fraction) -> None:
        """Counts an error."""
        if not self.broken:
            self.first_broken, self.error = now, str(error.strerror)
        self.broken += 1


class _Budget:
    """What decoding may cost until the next picture that is looked at."""

    def __init__(self, path: Path, interval: Fraction, limits: VideoLimits):
        self._path, self._limits = path, limits
        self._pixels = limits.work * max(interval, Fraction(1))
        self.renew()

    def renew(self) -> None:
        """Starts again, after a picture has been looked at."""
        self._spent, self._since = 0, time.monotonic()

    def spend(self, pixels: int) -> None:
        """Counts pixels.

        Raises:
            VideoTooLarge: the budget is exceeded.
        """
        self._spent += pixels
        if self._spent > self._pixels:
            limit = f"{self._limits.work:,} pixels for a second of the video"
        elif time.monotonic() - self._since > self._limits.seconds:
            limit = f"{self._limits.seconds:g} seconds of decoding for a picture"
        else:
            return
        raise VideoTooLarge(f"{self._path}: exceeds the limit of {limit}")


def decode_video(
    path: Path, interval: Fraction, limits: VideoLimits, reading: Reading
) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"]]]:
    """Looks at pictures of a video file (`clock.look`).

    Args:
        path: of the file.
        interval: seconds, above 0.
        limits: of the video.
        reading: is filled when the last picture has been read.

    Yields:
        When each picture is looked at, in seconds, and the picture: sRGB, upright.

    Raises:
        DataError: the file holds no video, or most of it cannot be decoded.
        VideoTooLarge: it exceeds a limit.
    """
    formats = {"format_whitelist": limits.formats} if limits.formats else {}
    try:
        # The prefix keeps a colon in the name from being taken for that of a protocol.
        with av.open(f"file:{path}", options=decoder_options(limits), container_options=formats) as container:
            yield from _look_at(container, path, interval, limits, reading)
    except av.error.FFmpegError as error:
        raise DataError(f"{path}: cannot be decoded: {error.strerror}; {EXPECTED}") from error


def _look_at(
    container: av.container.InputContainer, path: Path, interval: Fraction, limits: VideoLimits, reading: Reading
) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"]]]:
    stream = choose_stream(container)
    if stream is None:
        raise DataError(f"{path}: found no video stream, {EXPECTED}")
    context = stream.codec_context
    if context is None:
        raise DataError(f"{path}: its codec is unknown, {EXPECTED}")
    require_size(path, context.width, context.height, limits)
    context.options = decoder_options(limits)
    # After a damaged packet, threads that decode a frame each never find back into VP8 and VP9.
    context.thread_type = "SLICE" if context.name.startswith(("vp8", "vp9", "libvpx")) else "AUTO"
    context.thread_count = 1 if context.thread_type.name == "SLICE" else THREADS
    packets, clock, budget = _Packets(), _clock(container, stream), _Budget(path, interval, limits)
    announced, reformatter = _announced_end(container, stream), VideoReformatter()

    def to_the_end() -> Iterator[Shown]:
        yield from clock.play(_decode(container, stream, packets, clock, budget))
        if announced is not None and not clock.restarts and not _missing(container, stream, packets, clock):
            clock.extend(announced)

    decoded: tuple[av.VideoFrame, np.ndarray] | None = None
    for second, frame in look(to_the_end(), interval, Fraction(stream.time_base or 0), clock):
        if decoded is None or decoded[0] is not frame:
            require_size(path, frame.width, frame.height, limits)
            decoded = frame, display(frame, int(context.color_trc), int(context.color_primaries), reformatter)
        yield float(second), decoded[1]
        budget.renew()
    if decoded is None:
        error = f"cannot be decoded: {packets.error}" if packets.broken else "found no frame"
        raise DataError(f"{path}: {error}; {EXPECTED}")
    if 2 * packets.broken > packets.pictures:
        raise DataError(f"{path}: cannot be decoded: {_damage(packets)}; {EXPECTED}")
    reading.end = float(clock.end)
    reading.warnings += _warnings(packets, clock, _missing(container, stream, packets, clock))


def decoder_options(limits: VideoLimits) -> dict[str, str]:
    """Keeps a decoder from pictures that grow too large on the way; it counts what it adds at their edges."""
    return {"max_pixels": str(limits.pixels * 5 // 4 + 2**20)}


def choose_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The stream that a player shows: never a cover or another attached picture; None = there is none."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    return next((stream for stream in streams if best and stream.index == best.index), streams[0] if streams else None)


def restarts(container: av.container.InputContainer) -> bool:
    """Whether clocks may restart in the container's format, so that its duration means little."""
    return av.format.Flags.ts_discont in av.format.Flags(container.format.flags)


def require_size(source: object, width: int, height: int, limits: VideoLimits) -> None:
    if width * height > limits.pixels or max(width, height) > limits.side:
        found = f"has pictures of {width} × {height} pixels"
        expected = f"the limit of {limits.pixels:,}, or {limits.side:,} for a side"
        raise VideoTooLarge(f"{source}: {found}, which exceeds {expected}")


def _clock(container: av.container.InputContainer, stream: av.VideoStream) -> Clock:
    """A clock for the container's format."""
    frame = 1 / Fraction(stream.average_rate or USUAL_RATE)
    if frame > LONGEST:
        frame = Fraction(1, USUAL_RATE)
    if restarts(container):  # it may begin with pictures that need earlier ones, but not with such sound
        sounds = [
            sound.start_time * sound.time_base
            for sound in container.streams.audio
            if sound.start_time is not None and sound.time_base
        ]
        return Clock(min(sounds, default=None), LONGEST_ON_AIR, None, frame)
    start = None if container.start_time is None else Fraction(container.start_time, av.time_base)
    end = None if container.duration is None else (start or 0) + Fraction(container.duration, av.time_base)
    return Clock(start, LONGEST, end, frame)


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream, packets: _Packets, clock: Clock, budget: _Budget
) -> Iterator[Stamped]:
    """Decodes a stream packet by packet; skips and counts those that are broken."""
    for packet in _demux(container, packets, clock):
        budget.spend(0)
        begins = packet.dts if packet.pts is None else packet.pts
        if begins is not None and packet.time_base:
            packets.reached = max(packets.reached, (begins + (packet.duration or 0)) * packet.time_base)
        if packet.stream.index != stream.index or not packet.size:  # an empty packet repeats the last picture
            continue
        packets.pictures += 1
        packets.latest.append(packet.dts)
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            packets.note(error, clock.end)
            continue
        budget.spend(sum(frame.width * frame.height for frame in frames))
        yield from (_stamp(frame, container, stream, packets) for frame in frames)
    try:
        frames = stream.codec_context.decode(None)
    except av.error.FFmpegError as error:
        packets.note(error, clock.end)
        return
    yield from (_stamp(frame, container, stream, packets) for frame in frames)


def _demux(container: av.container.InputContainer, packets: _Packets, clock: Clock) -> Iterator[av.Packet]:
    """Reads the packets of all streams, and goes on after errors."""
    for _ in range(MAX_ERRORS):
        try:
            yield from container.demux()
            return
        except IndexError:  # at the end, PyAV looks for streams that have begun since the file was opened (FLV, MPEG)
            return
        except av.error.FFmpegError as error:
            packets.note(error, clock.end)


def _stamp(
    frame: av.VideoFrame, container: av.container.InputContainer, stream: av.VideoStream, packets: _Packets
) -> Stamped:
    packets.corrupt += frame.is_corrupt
    tick = Fraction(stream.time_base or 0)
    ticks = _avi_ticks(frame, stream, packets) if container.format.name == "avi" else frame.pts
    return Stamped(None if ticks is None or not tick else ticks * tick, frame.duration * tick, frame)


def _avi_ticks(frame: av.VideoFrame, stream: av.VideoStream, packets: _Packets) -> int | None:
    """When a picture of an AVI is shown: AVIs hold times of decoding only, from which FFmpeg guesses wrong times."""
    if frame.dts not in packets.latest:
        return frame.dts
    place = packets.latest.index(frame.dts)
    if packets.delay is None:
        packets.delay = place if stream.codec_context.has_b_frames else 0
    return packets.latest[max(place - packets.delay, 0)]


def _announced_end(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction | None:
    """When the last picture ends according to the header, on the file's clock; None = unknown.

    Before the first packet is read: FFmpeg changes `start_time` on the way.
    """
    if stream.duration is not None and stream.time_base:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    if container.duration is not None and not container.streams.audio:
        return Fraction(container.duration, av.time_base)  # counted from 0, wherever the first picture is
    return None


def _missing(
    container: av.container.InputContainer, stream: av.VideoStream, packets: _Packets, clock: Clock
) -> tuple[Fraction, Fraction] | None:
    """How many seconds were found, and how many the header announces, if clearly fewer were found."""
    if restarts(container) or clock.restarts:
        return None
    announced = Fraction(container.duration or 0, av.time_base)
    if (
        container.format.name == "avi" and stream.frames and stream.average_rate
    ):  # FFmpeg's duration is that of the file
        announced = stream.frames / Fraction(stream.average_rate)
    found = packets.reached - min(Fraction(container.start_time or 0, av.time_base), Fraction(0))
    return (found, announced) if announced - found > max(Fraction(1), clock.stay) else None


def _warnings(packets: _Packets, clock: Clock, missing: tuple[Fraction, Fraction] | None) -> list[str]:
    found = []
    if packets.broken:
        found.append(f"{_damage(packets)}; skipped")
    if packets.corrupt:
        found.append(f"{_count(packets.corrupt, 'picture is', 'pictures are')} damaged in part")
    if missing:
        seconds, announced = map(float, missing)
        found.append(f"its header announces {announced:.1f} seconds, but the file holds {seconds:.1f}")
    if clock.restarts:
        (second, jump), times = map(float, clock.restarts[0]), len(clock.restarts)
        jumps, left_out = ("jumps", "jump is") if times == 1 else (f"jumps {times} times, first", "jumps are")
        direction = "back" if jump < 0 else "ahead"
        found.append(
            f"its clock {jumps} {direction} by {abs(jump):.1f} seconds at second {second:.1f}; the {left_out} left out"
        )
    if clock.strays:
        found.append(f"{_count(clock.strays, 'picture has a time', 'pictures have times')} out of order")
    return found


def _damage(packets: _Packets) -> str:
    first = f"the first at second {float(packets.first_broken):.1f} ({packets.error})"
    return f"{packets.broken} of {packets.pictures} packets {'is' if packets.broken == 1 else 'are'} damaged, {first}"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"

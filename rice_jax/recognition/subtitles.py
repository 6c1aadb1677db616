"""What is said in a video, with its times: subtitle files, and what speech recognizers write."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.subtitles.subtitle import AssSubtitle

from rice_jax.types import DataError

SUFFIXES = (".srt", ".vtt", ".json")
TIME = r"(?:\d+:)?\d\d?:\d\d[.,]\d+"
TIMES = re.compile(rf"\s*({TIME})\s+-->\s+({TIME})(\s.*)?")
STYLE = re.compile(r"\{\\[^}]*\}")  # FFmpeg turns tags into those of ASS
RECOGNIZED = '{"segments": [{"start": 0.0, "end": 1.5, "text": "…"}]}'


class Sentence(NamedTuple):
    """What is said from one moment to another."""

    start: float  # seconds
    end: float
    text: str
    confidence: float | None = None  # of the speech recognizer; None = unknown


def read_subtitles(path: Path) -> list[Sentence]:
    """Reads the subtitles of a video.

    Args:
        path: a SubRip file (.srt), a WebVTT file (.vtt), or JSON (.json) as Whisper and other speech recognizers write
            it: an object with `segments`, or a list of them, each with `start` and `end` in seconds, `text`, and
            perhaps `confidence` (0 to 1) or `avg_logprob`.

    Returns:
        Sentences by their start, without empty ones; markup is removed.

    Raises:
        DataError: the file has another form, which the message names with its line, or is not UTF-8.
        OSError: the file cannot be read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: expected a subtitle file, whose name ends in {', '.join(SUFFIXES)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: found bytes that are not UTF-8 ({error}); convert the file") from error
    found = _recognized(text, path) if path.suffix.lower() == ".json" else _subtitles(text, path)
    return sorted(sentence for sentence in found if sentence.text)


def said_between(sentences: Sequence[Sentence], start: float, end: float) -> tuple[Sentence, ...]:
    """The sentences whose middle lies between two times, in seconds; the end is excluded."""
    return tuple(one for one in sentences if start <= (one.start + one.end) / 2 < end)


def join_sentences(sentences: Sequence[Sentence]) -> str:
    """Sentences as one text, with commas between them as in data sets (`input.texts.clean`); "" = nothing is said."""
    return ",".join(sentence.text for sentence in sentences)


def _subtitles(text: str, path: Path) -> Iterator[Sentence]:
    for number, line in enumerate(text.splitlines(), start=1):  # FFmpeg leaves out or mends what it cannot read
        times = TIMES.fullmatch(line)
        if "-->" in line and not (times and _seconds(times[1]) <= _seconds(times[2])):
            found = line.strip()[:80]
            raise DataError(f"{path}:{number}: found {found!r}, expected times such as 00:01:02,500 --> 00:01:04,000")
    try:
        with av.open(str(path)) as file:
            for packet in file.demux(subtitles=0):
                for subtitle in packet.decode():
                    if isinstance(subtitle, AssSubtitle) and packet.pts is not None and packet.time_base:
                        start, length = packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base
                        text = STYLE.sub("", subtitle.dialogue.decode())
                        yield Sentence(float(start), float(start + length), _one_line(text))
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path}: found no subtitles ({error}); expected SubRip or WebVTT") from error


def _recognized(text: str, path: Path) -> Iterator[Sentence]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: {error.msg}; expected JSON such as {RECOGNIZED}") from error
    segments = found.get("segments") if isinstance(found, dict) else found
    if not isinstance(segments, list):
        raise DataError(f"{path}: found no list of segments, expected JSON such as {RECOGNIZED}")
    for number, segment in enumerate(segments, start=1):
        where = f"{path}: segment {number}"
        if not isinstance(segment, dict) or not isinstance(segment.get("text"), str):
            raise DataError(f"{where}: found {str(segment)[:80]}, expected `start`, `end`, and a `text`")
        confidence = segment.get("confidence")
        if confidence is None and (logarithm := segment.get("avg_logprob")) is not None:
            confidence = math.exp(min(0.0, _number(logarithm, "avg_logprob", where)))
        if confidence is not None and not 0 <= _number(confidence, "confidence", where) <= 1:
            raise DataError(f"{where}: found a confidence of {confidence}, expected 0 to 1")
        start, end = (_number(segment.get(name), name, where) for name in ("start", "end"))
        if not 0 <= start <= end:
            raise DataError(f"{where}: found second {start:g} to {end:g}, expected it to begin before it ends")
        yield Sentence(start, end, _one_line(segment["text"]), confidence)


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{where}: found {value!r} as `{name}`, expected a number")
    return float(value)


def _seconds(time: str) -> float:
    *rest, seconds = time.replace(",", ".").split(":")
    return float(seconds) + sum(int(part) * 60**power for power, part in enumerate(reversed(rest), start=1))


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""What is said in a video, with its times: subtitle files, and what speech recognizers write."""

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import av
from av.subtitles.subtitle import AssSubtitle

from rice_jax.types import DataError

SUFFIXES = (".srt", ".vtt", ".json")
TIME = r"(?:\d+:)?\d\d?:\d\d[.,]\d+"
TIMES = re.compile(rf"\s*({TIME})\s+-->\s+({TIME})(\s.*)?")
STYLE = re.compile(r"\{\\[^{}]*\}")  # FFmpeg turns tags into those of ASS
# The same in WebVTT, where FFmpeg also escapes what ASS would take for a tag or a sign of its own.
ESCAPED = re.compile(r"\\(N|h|\{\{\}|\u2060)|\{[^}]*\}")
PLAIN = {"N": "\n", "h": " ", "{{}": "{", "\u2060": "\\"}
SILENCE = ({"text": ""}, {"text": "", "result": []})  # an utterance of Vosk in which nothing is said
RECOGNIZED = '{"segments": [{"start": 0.0, "end": 1.5, "text": "…"}]}'
# Whisper takes a segment for silence if both are exceeded.
NO_SPEECH, LOGPROB = 0.6, -1.0
WORD_CONFIDENCES = ("probability", "score", "conf", "p")  # of Whisper, WhisperX, Vosk, and whisper.cpp


class Sentence(NamedTuple):
    """What is said from one moment to another."""

    start: float  # seconds
    end: float
    text: str
    confidence: float | None = None  # of the speech recognizer; 0 = it takes it for silence; None = unknown


def read_subtitles(path: Path) -> list[Sentence]:
    """Reads the subtitles of a video from a file.

    Args:
        path: its name ends in .srt, .vtt, or .json; see `parse_subtitles`.

    Raises:
        DataError: it has another name or form.
        OSError: it cannot be read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: expected a subtitle file, whose name ends in {', '.join(SUFFIXES)}")
    return parse_subtitles(path.read_bytes(), str(path))


def parse_subtitles(content: bytes, name: str) -> list[Sentence]:
    """Reads the subtitles of a video.

    Args:
        content: of a SubRip or WebVTT file, or JSON as speech recognizers write it (docs/text.md). The content tells
            which.
        name: of the file, for errors.

    Returns:
        Sentences by their start, without empty ones; markup is removed.

    Raises:
        DataError: the file has another form, which the message names with its line, or is not UTF-8.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: found bytes that are not UTF-8 ({error}); convert the file") from error
    found = _recognized(text, name) if text.lstrip()[:1] in ("{", "[") else _subtitles(text, name)
    return sorted((sentence for sentence in found if sentence.text), key=lambda sentence: sentence[:3])


def confident(sentences: Sequence[Sentence], least: float) -> list[Sentence]:
    """The sentences whose confidence is unknown or at least `least`."""
    return [one for one in sentences if one.confidence is None or one.confidence >= least]


def said_between(sentences: Sequence[Sentence], start: float, end: float) -> tuple[Sentence, ...]:
    """The sentences whose middle lies between two times, in seconds; the end is excluded."""
    return tuple(one for one in sentences if start <= (one.start + one.end) / 2 < end)


def join_sentences(sentences: Sequence[Sentence]) -> str:
    """Sentences as one text, with commas between them as in data sets (`input.texts.clean`); "" = nothing is said."""
    return ",".join(sentence.text for sentence in sentences)


def _subtitles(text: str, name: str) -> Iterator[Sentence]:
    for number, line in enumerate(text.splitlines(), start=1):  # FFmpeg leaves out or mends what it cannot read
        times = TIMES.fullmatch(line)
        if "-->" in line and not (times and _seconds(times[1]) <= _seconds(times[2])):
            found = line.strip()[:80]
            raise DataError(f"{name}:{number}: found {found!r}, expected times such as 00:01:02,500 --> 00:01:04,000")
    kind, num_read = "webvtt" if text.startswith("WEBVTT") else "srt", 0
    try:
        with av.open(io.BytesIO(text.encode()), "r", format=kind) as file:
            for packet in file.demux(subtitles=0):
                for subtitle in packet.decode():
                    if isinstance(subtitle, AssSubtitle) and packet.pts is not None and packet.time_base:
                        start, length = packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base
                        num_read += 1
                        yield Sentence(float(start), float(start + length), _one_line(_said(subtitle, kind)))
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{name}: found no subtitles ({error}); expected SubRip, WebVTT, or JSON") from error
    if not num_read and kind == "srt":
        raise DataError(f"{name}: found no subtitles, expected SubRip, WebVTT, or JSON")


def _said(subtitle: AssSubtitle, kind: str) -> str:
    if kind == "srt":
        return STYLE.sub("", subtitle.dialogue.decode(errors="replace"))
    text = subtitle.ass.decode(errors="replace").split(",", 8)[-1]  # `dialogue` takes an escaped brace for a comment
    return ESCAPED.sub(lambda found: PLAIN.get(found[1], ""), text)


class _Malformed(Exception):
    """Why a segment cannot be read."""


def _recognized(text: str, name: str) -> Iterator[Sentence]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}:{error.lineno}: {error.msg}; expected JSON such as {RECOGNIZED}") from error
    except ValueError as error:  # Python limits the digits that it reads
        raise DataError(f"{name}: found a number with too many digits; expected JSON such as {RECOGNIZED}") from error
    except RecursionError as error:
        raise DataError(f"{name}: is nested too deeply; expected JSON such as {RECOGNIZED}") from error
    number = 0
    for value in found if isinstance(found, list) else [found]:
        if value in SILENCE:
            continue
        key = next((key for key in FORMS if isinstance(value, dict) and isinstance(value.get(key), list)), None)
        if key is None and value is found:
            raise DataError(f"{name}: found no list of segments, expected JSON such as {RECOGNIZED}")
        read = _read_segment if key is None else FORMS[key]
        segments = [value] if key is None else [value[key]] if read is _read_words else value[key]
        for segment in segments:
            number += 1
            try:
                yield _checked(read(segment))
            except _Malformed as error:
                raise DataError(f"{name}:{_line(text, segment)}: segment {number}: {error}") from error


def _checked(sentence: Sentence) -> Sentence:
    if not 0 <= sentence.start <= sentence.end:
        found = f"found second {sentence.start:g} to {sentence.end:g}"
        raise _Malformed(f"{found}, expected it to begin before it ends")
    if sentence.confidence is not None and not 0 <= sentence.confidence <= 1:
        raise _Malformed(f"found a confidence of {sentence.confidence:g}, expected 0 to 1")
    return sentence


def _read_segment(segment: Any) -> Sentence:
    """A segment of Whisper, faster-whisper, or WhisperX, or any other with times in seconds."""
    text = _text(segment, "`start`, `end`, and a `text`")
    start, end = (_number(segment.get(name), name) for name in ("start", "end"))
    return Sentence(start, end, text, _confidence(segment, segment.get("words")))


def _read_cpp(segment: Any) -> Sentence:
    """A segment of whisper.cpp."""
    text, times = _text(segment, "`offsets` and a `text`"), segment.get("offsets")
    if not isinstance(times, dict):
        raise _Malformed(f"found {_short(times)} as `offsets`, expected `from` and `to` in milliseconds")
    start, end = (_number(times.get(name), name) / 1000 for name in ("from", "to"))
    return Sentence(start, end, text, _confidence(segment, segment.get("tokens")))


def _read_chunk(segment: Any) -> Sentence:
    """A chunk of the speech recognizers in transformers; where it does not know the last end, there is none."""
    text, times = _text(segment, "a `timestamp` and a `text`"), segment.get("timestamp")
    if not (isinstance(times, list) and len(times) == 2):
        raise _Malformed(f"found {_short(times)} as `timestamp`, expected the start and the end in seconds")
    start = _number(times[0], "timestamp")
    return Sentence(start, start if times[1] is None else _number(times[1], "timestamp"), text)


def _read_milliseconds(segment: Any) -> Sentence:
    """A sentence of FunASR."""
    text = _text(segment, "`start`, `end`, and a `text`")
    start, end = (_number(segment.get(name), name) / 1000 for name in ("start", "end"))
    return Sentence(start, end, text, _confidence(segment, None))


def _read_words(words: Any) -> Sentence:
    """The words of an utterance of Vosk."""
    if not words or not all(isinstance(word, dict) and isinstance(word.get("word"), str) for word in words):
        raise _Malformed(f"found {_short(words)}, expected words with `start`, `end`, `word`, and `conf`")
    start, end = _number(words[0].get("start"), "start"), _number(words[-1].get("end"), "end")
    return Sentence(start, end, _one_line(" ".join(word["word"] for word in words)), _confidence({}, words))


FORMS: dict[str, Callable[[Any], Sentence]] = {
    "segments": _read_segment,
    "transcription": _read_cpp,
    "chunks": _read_chunk,
    "sentence_info": _read_milliseconds,
    "result": _read_words,
}


def _confidence(segment: dict[str, Any], words: Any) -> float | None:
    """That of the segment, or the mean of its words'."""
    if (given := segment.get("confidence")) is not None:
        return _number(given, "confidence")
    if (logarithm := segment.get("avg_logprob")) is not None:
        logarithm, silence = _number(logarithm, "avg_logprob"), segment.get("no_speech_prob")
        is_silence = silence is not None and _number(silence, "no_speech_prob") > NO_SPEECH and logarithm < LOGPROB
        return 0.0 if is_silence else math.exp(min(0.0, logarithm))
    given = [_number(value, name) for name, value in _word_confidences(words)]
    return fmean(given) if given else None


def _word_confidences(words: Any) -> Iterator[tuple[str, Any]]:
    for word in words if isinstance(words, list) else ():
        for name in WORD_CONFIDENCES if isinstance(word, dict) else ():
            if word.get(name) is not None:
                yield name, word[name]
                break


def _text(segment: Any, expected: str) -> str:
    if not isinstance(segment, dict) or not isinstance(segment.get("text"), str):
        raise _Malformed(f"found {_short(segment)}, expected {expected}")
    return _one_line(segment["text"])


def _number(value: Any, name: str) -> float:
    # A number of many digits is larger than any float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise _Malformed(f"found {_short(value)} as `{name}`, expected a number")
    return float(value)


def _line(text: str, segment: Any) -> int:
    """The line where a value begins, by parsing again with the places of all objects."""
    places: list[tuple[int, Any]] = []
    decoder: Any = json.JSONDecoder()

    def parse(where: tuple[str, int], *rest: Any) -> tuple[Any, int]:
        found, end = json.decoder.JSONObject(where, *rest)  # type: ignore[attr-defined]
        places.append((where[1], found))
        return found, end

    decoder.parse_object = parse
    decoder.scan_once = json.scanner.py_make_scanner(decoder)  # type: ignore[attr-defined]
    try:
        decoder.decode(text)
    except RecursionError:  # the parser in Python takes fewer levels than the one in C
        return 1
    first = segment[0] if isinstance(segment, list) and segment else segment
    return 1 + text.count("\n", 0, min((place for place, found in places if found == first), default=0))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _seconds(time: str) -> float:
    *rest, seconds = time.replace(",", ".").split(":")
    return float(seconds) + sum(int(part) * 60**power for power, part in enumerate(reversed(rest), start=1))


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text

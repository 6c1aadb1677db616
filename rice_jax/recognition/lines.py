"""Results as lines of JSON, with numbers rounded to four places."""

from datetime import UTC, datetime

from rice_jax.recognition.changes import Event
from rice_jax.recognition.engine import Match
from rice_jax.recognition.recognizer import Segment


def segment_line(segment: Segment) -> dict:
    """A part of a video."""
    line = {
        "start": _rounded(segment.start),
        "end": _rounded(segment.end),
        "product": segment.product and _product(segment.product),
        "confidence": _rounded(segment.confidence),
        "products": [_product(match) for match in segment.products],
    }
    if segment.speech is not None:
        line["speech"] = [
            {key: _rounded(value) if key != "text" else value for key, value in said._asdict().items()}
            for said in segment.speech
        ]
    return line


def event_line(event: Event) -> dict:
    """An event of a live stream."""
    line = {
        "event": event.event,
        "time": datetime.fromtimestamp(event.date, UTC).isoformat(timespec="milliseconds"),
        "second": _rounded(event.second),
        "product": _product(event.product),
        "confidence": _rounded(event.confidence),
    }
    if event.event == "gone":
        return line | {"seconds": _rounded(event.seconds), "reason": event.reason}
    return line | {"products": [_product(match) for match in event.products]}


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def _product(match: Match) -> dict:
    return match._asdict() | {"score": _rounded(match.score), "confidence": _rounded(match.confidence)}

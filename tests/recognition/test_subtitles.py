"""Subtitles, and what speech recognizers write."""

import json
import math

import pytest

from rice_jax.recognition.subtitles import Sentence, read_subtitles, said_between
from rice_jax.types import DataError

SRT = """1
00:00:04,500 --> 00:00:06,000
<i>the red</i>, {\\an8}armchair
  is sold

2
00:00:01,250 --> 00:00:03,000
这一款我自己家里也在用

3
01:00:00,000 --> 01:00:01,000
<b></b>
"""
VTT = """WEBVTT

NOTE a comment

00:04.500 --> 00:06.000 line:0
<v Host>A &amp; B</v>

00:00:01.250 --> 00:00:03.000
一
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_subtitle_files(tmp_path, newline):
    """By time, without markup and empty cues; with and without a byte order mark."""
    (tmp_path / "a.srt").write_bytes(SRT.replace("\n", newline).encode("utf-8-sig"))
    assert read_subtitles(tmp_path / "a.srt") == [
        Sentence(1.25, 3.0, "这一款我自己家里也在用"),
        Sentence(4.5, 6.0, "the red, armchair is sold"),
    ]
    (tmp_path / "a.VTT").write_bytes(VTT.replace("\n", newline).encode())
    assert read_subtitles(tmp_path / "a.VTT") == [Sentence(1.25, 3.0, "一"), Sentence(4.5, 6.0, "A & B")]


def test_speech_recognizers(tmp_path):
    """Whisper's object with a logarithm, and a list with confidences or without."""
    path = tmp_path / "a.json"
    whisper = {"id": 0, "start": 2.5, "end": 4, "text": " hello  you", "avg_logprob": -0.5, "tokens": [1]}
    path.write_text(json.dumps({"text": " hello you", "segments": [whisper], "language": "en"}))
    assert read_subtitles(path) == [Sentence(2.5, 4.0, "hello you", pytest.approx(math.exp(-0.5)))]
    items = [{"start": 1, "end": 2, "text": "b", "confidence": 0.25}, {"start": 0, "end": 1, "text": "a"}]
    path.write_text(json.dumps([*items, {"start": 5, "end": 6, "text": " "}]))
    assert read_subtitles(path) == [Sentence(0, 1, "a"), Sentence(1, 2, "b", 0.25)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "", "whose name ends in .srt, .vtt, .json"),
        ("a.srt", "", "found no subtitles"),
        ("a.srt", "hello", "found no subtitles"),
        (
            "a.srt",
            SRT.replace("00:00:01,250", "soon"),
            r"a.srt:7: found 'soon --> 00:00:03,000', expected times such as",
        ),
        ("a.srt", SRT.replace("00:00:01,250", "00:00:09,250"), r"a.srt:7: found '00:00:09,250 --> 00:00:03,000'"),
        ("a.vtt", VTT.replace("00:06.000", "6"), r"a.vtt:5: found '00:04.500 --> 6 line:0'"),
        ("a.json", '{"segments": [\n{]}', "a.json:2: .*; expected JSON such as"),
        ("a.json", '{"text": "a"}', "found no list of segments"),
        ("a.json", '[{"start": 0, "end": 1}]', "segment 1: found .*expected `start`, `end`, and a `text`"),
        ("a.json", '[{"start": "0", "end": 1, "text": "a"}]', "segment 1: found '0' as `start`, expected a number"),
        ("a.json", '[{"start": 0, "end": NaN, "text": "a"}]', "found nan as `end`"),
        ("a.json", '[{"start": 2, "end": 1, "text": "a"}]', "second 2 to 1, expected it to begin before it ends"),
        ("a.json", '[{"start": 0, "end": 1, "text": "a", "confidence": 2}]', "a confidence of 2, expected 0 to 1"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=expected):
        read_subtitles(tmp_path / name)


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "a.srt").write_bytes(SRT.encode("gbk"))
    with pytest.raises(DataError, match="a.srt: found bytes that are not UTF-8 .*; convert the file"):
        read_subtitles(tmp_path / "a.srt")


def test_a_sentence_belongs_to_where_its_middle_is():
    sentences = [Sentence(0, 2, "a"), Sentence(2, 8, "b"), Sentence(8, 9, "c")]
    parts = [said_between(sentences, start, end) for start, end in ((0.0, 1.0), (1.0, 5.0), (5.0, 9.0))]
    assert [[one.text for one in part] for part in parts] == [[], ["a"], ["b", "c"]]

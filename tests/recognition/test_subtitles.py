"""Subtitles, and what speech recognizers write."""

import json
import math

import pytest

from rice_jax.recognition.subtitles import Sentence, confident, parse_subtitles, read_subtitles, said_between
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


def test_signs_with_a_meaning_in_ass_are_only_text():
    """FFmpeg turns subtitles into ASS, where a brace begins a tag and a backslash a sign."""
    said = r"A&nbsp;B {x} \o/ \N \h, <b>b</b> {\an8}c"
    text = f"WEBVTT\n\n00:01.000 --> 00:02.000\n{said}\n{{d"
    assert [one.text for one in parse_subtitles(text.encode(), "x")] == [r"A B {x} \o/ \N \h, b {\an8}c {d"]


def test_tags_that_do_not_end_are_text():
    """A megabyte of them is read in a moment; looking for the end of each would take most of an hour."""
    said = r"{\b" * 350_000
    for file in ("1\n00:00:01,000 --> 00:00:02,000\n", "WEBVTT\n\n00:01.000 --> 00:02.000\n"):
        [sentence] = parse_subtitles((file + said + "red").encode(), "x")
        assert sentence.text.replace(" ", "") == said + "red", "FFmpeg may divide it"


def test_speech_recognizers(tmp_path):
    """Whisper's object with a logarithm, and a list with confidences or without."""
    path = tmp_path / "a.json"
    whisper = {"id": 0, "start": 2.5, "end": 4, "text": " hello  you", "avg_logprob": -0.5, "tokens": [1]}
    path.write_text(json.dumps({"text": " hello you", "segments": [whisper], "language": "en"}))
    assert read_subtitles(path) == [Sentence(2.5, 4.0, "hello you", pytest.approx(math.exp(-0.5)))]
    items = [{"start": 1, "end": 2, "text": "b", "confidence": 0.25}, {"start": 0, "end": 1, "text": "a"}]
    path.write_text(json.dumps([*items, {"start": 5, "end": 6, "text": " "}]))
    assert read_subtitles(path) == [Sentence(0, 1, "a"), Sentence(1, 2, "b", 0.25)]


FORMS = {
    "whisper": (
        {"segments": [{"start": 1, "end": 2, "text": "a", "avg_logprob": -1.5, "no_speech_prob": 0.7, "words": []}]},
        Sentence(1, 2, "a", 0.0),
    ),
    "faster-whisper": (
        {"segments": [{"start": 1, "end": 2, "text": "a", "avg_logprob": -0.1, "no_speech_prob": 0.9}]},
        Sentence(1, 2, "a", pytest.approx(math.exp(-0.1))),
    ),
    "whisperx": (
        {
            "segments": [
                {
                    "start": 1,
                    "end": 2,
                    "text": " 这款 ",
                    "words": [{"word": "这", "start": 1, "end": 1.4, "score": 0.5}, {"word": "款", "score": 0.75}],
                }
            ],
            "word_segments": [],
        },
        Sentence(1, 2, "这款", 0.625),
    ),
    "whisper.cpp": (
        {
            "result": {"language": "en"},
            "transcription": [
                {
                    "timestamps": {"from": "00:00:01,000", "to": "00:00:02,000"},
                    "offsets": {"from": 1000, "to": 2000},
                    "text": " a",
                    "tokens": [{"text": "a", "p": 0.25}],
                }
            ],
        },
        Sentence(1, 2, "a", 0.25),
    ),
    "transformers": (
        {"text": "a b", "chunks": [{"timestamp": [3.0, None], "text": " b"}, {"timestamp": [1.0, 2.5], "text": "a"}]},
        Sentence(1, 2.5, "a"),
        Sentence(3, 3, "b"),
    ),
    "funasr": (
        [{"key": "x", "text": "好", "sentence_info": [{"start": 430, "end": 1500, "text": "好", "spk": 0}]}],
        Sentence(0.43, 1.5, "好"),
    ),
    "vosk in silence": ({"text": ""},),
    "vosk": (
        [
            {
                "result": [
                    {"conf": 1.0, "start": 1.0, "end": 1.5, "word": "the"},
                    {"conf": 0.5, "start": 1.5, "end": 2, "word": "mug"},
                ],
                "text": "the mug",
            },
            {"text": ""},
            {"text": "", "result": []},
            {"text": "lamp", "start": 3, "end": 4},
        ],
        Sentence(1, 2, "the mug", 0.75),
        Sentence(3, 4, "lamp"),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_speech_recognizers(tmp_path, name):
    content, *expected = FORMS[name]
    (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False, indent=1))
    assert read_subtitles(tmp_path / "a.json") == expected


def test_the_content_tells_the_form():
    assert parse_subtitles(SRT.encode(), "speech") == parse_subtitles(("\ufeff" + SRT).encode(), "speech.vtt")
    assert [one.text for one in parse_subtitles(VTT.encode(), "x.srt")] == ["一", "A & B"]
    assert parse_subtitles(b'\n [{"start": 0, "end": 1, "text": "\\ud83d!"}]', "x") == [Sentence(0, 1, "?!")]
    assert parse_subtitles(b"WEBVTT\n", "x") == parse_subtitles(b"[]", "x") == [], "nothing is said"


def test_what_is_unsure_is_left_out():
    some = [Sentence(0, 1, "a", 0.2), Sentence(1, 2, "b"), Sentence(2, 3, "c", 0.5), Sentence(3, 4, "d", 0.0)]
    assert [one.text for one in confident(some, 0.5)] == ["b", "c"]
    assert confident(some, 0.0) == some


def test_a_segment_is_named_with_its_line():
    good = {"start": 0, "end": 1, "text": "a", "words": [{"word": "a", "probability": 1.0}]}
    text = json.dumps({"language": "en", "segments": [good, good, good | {"end": "soon"}, good]}, indent=1)
    line = 1 + text.splitlines().index('   "end": "soon",') - 2
    with pytest.raises(DataError, match=f"^talk.json:{line}: segment 3: found 'soon' as `end`, expected a number"):
        parse_subtitles(text.encode(), "talk.json")


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
        ("a.json", '[{"start": 0, "end": 1%s, "text": "a"}]' % ("0" * 400), "found 10+… as `end`, expected a number"),
        (
            "a.json",
            '[{"start": 0, "end": 1, "text": "a", "words": %s}, 1]' % ("[" * 400 + "]" * 400),
            "a.json:1: segment 2: found 1, expected",
        ),
        ("a.json", '[{"start": %s}]' % ("9" * 5000), "a.json: found a number with too many digits; expected JSON"),
        ("a.json", "[" * 100_000, "a.json: is nested too deeply; expected JSON such as"),
        ("a.json", '{"segments": [\n\n"a"]}', "a.json:1: segment 1: found 'a', expected `start`, `end`, and a `text`"),
        ("a.json", '{"segments": [\n{"words": 1}]}', "a.json:2: segment 1: found {'words': 1}, expected `start`"),
        (
            "a.json",
            '{"transcription": [{"text": "a", "offsets": 1}]}',
            "segment 1: found 1 as `offsets`, expected `from`",
        ),
        (
            "a.json",
            '{"transcription": [{"text": "a", "offsets": {"from": 1}}]}',
            "found None as `to`, expected a number",
        ),
        (
            "a.json",
            '{"chunks": [{"text": "a", "timestamp": [1]}]}',
            r"found \[1\] as `timestamp`, expected the start and",
        ),
        ("a.json", '{"result": []}', r"segment 1: found \[\], expected words with `start`, `end`, `word`, and `conf`"),
        ("a.json", '{"result": [{"word": "a", "conf": 1}]}', "segment 1: found None as `start`, expected a number"),
        ("a.json", '[{"start": 0, "end": 1, "text": "a", "avg_logprob": "x"}]', "found 'x' as `avg_logprob`, expected"),
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

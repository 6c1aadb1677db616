"""Text files as Windows and its editors write them."""

import codecs
import json

import pytest

from data import build, doctor
from data.errors import FormatError
from data.lpr4m.evaluation_files import read_queries, read_texts
from data.lpr4m.rows import index_rows
from tests.data import raw_lpr4m, raw_movingfashion, raw_rope

WRITE = {"lpr4m": raw_lpr4m.write_raw, "movingfashion": raw_movingfashion.write_raw, "rope": raw_rope.write_raw}


def as_on_windows(raw):
    """Adds byte order marks and carriage returns to every text file; returns their number."""
    texts = [path for path in raw.rglob("*") if path.suffix in (".txt", ".json")]
    for path in texts:
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    return len(texts)


def records(data_dir):
    return {path.relative_to(data_dir): path.read_bytes() for path in data_dir.rglob("*.array_record*")}


@pytest.mark.parametrize("name", WRITE)
def test_byte_order_marks_and_carriage_returns_are_no_content(tmp_path, capsys, name):
    raw = WRITE[name](tmp_path / "raw")
    build.main([name, "--raw_dir", str(raw), "--data_dir", str(tmp_path / "plain")])
    assert as_on_windows(raw) >= 2
    build.main([name, "--raw_dir", str(raw), "--data_dir", str(tmp_path / "windows")])
    assert records(tmp_path / "windows") == records(tmp_path / "plain") != {}
    assert doctor.main([name, str(raw)]) == 0, capsys.readouterr().out


def test_marks_of_joined_files(tmp_path):
    parts = [codecs.BOM_UTF8 + f"clip{i}\tIt is {i}\r\n".encode() for i in range(2)]
    (tmp_path / "asr.txt").write_bytes(b"".join(parts))
    assert read_texts(tmp_path / "asr.txt") == {"clip0": "It is 0", "clip1": "It is 1"}


def test_a_mark_hides_no_repeated_clip(tmp_path):
    row = "\t".join(["live-1-2", *[""] * 10]).encode() + b"\n"
    (tmp_path / "rows.txt").write_bytes(codecs.BOM_UTF8 + row + row)
    with pytest.raises(FormatError, match=r"rows\.txt:2: found clip live-1-2 again"):
        index_rows([tmp_path / "rows.txt"], 10)


def test_lines_that_end_in_carriage_returns_alone(tmp_path):
    (tmp_path / "asr.txt").write_bytes(b"clip0\tIt is 0\rclip1\tIt is 1\r")
    with pytest.raises(FormatError, match=r"asr\.txt:1: found a .*expected lines that end in .*convert the"):
        read_texts(tmp_path / "asr.txt")


def test_half_of_a_surrogate_pair_is_no_text(tmp_path):
    path = tmp_path / "test_videoid_to_gtimage_1.json"
    path.write_text('{"live-1-2": ["\\ud83d\\ude00"]}')
    assert read_queries(tmp_path)[0].image_ids == ("\N{GRINNING FACE}",)
    path.write_text('{"live-1-2": ["\\ud83d"]}')
    with pytest.raises(FormatError, match=r"gtimage_1\.json:1: found .*surrogates not allowed, expected JSON in UTF-8"):
        read_queries(tmp_path)


def test_an_id_that_is_no_clip(tmp_path):
    (tmp_path / "test_videoid_to_gtimage_1.json").write_text(json.dumps({"clip_0001": ["a-0.jpg"]}))
    with pytest.raises(FormatError, match="found query 'clip_0001', expected a clip id LIVE-START-END: .*; rename the"):
        read_queries(tmp_path)


def test_file_names_that_are_not_utf8(tmp_path, capsys):
    """They are read, and reported with their bytes escaped, except where a name is stored."""
    raw = raw_lpr4m.write_raw(tmp_path / "raw\udcff", num_train=1, num_lives=1, queries_per_live=1, parts=1)
    next((raw / "images").iterdir()).write_bytes(b"")
    arguments = ["lpr4m", "--raw_dir", str(raw), "--max_skipped_percent=99", "--configs=query,gallery"]
    build.main([*arguments, "--data_dir", str(tmp_path / "data")])
    reports = [path.read_text(encoding="utf-8") for path in tmp_path.glob("data/lpr4m/*/skipped.jsonl")]
    skipped = [json.loads(line)["file"] for report in reports for line in report.splitlines()]
    assert any(file.startswith(f"{raw}/images/") for file in skipped)
    capsys.readouterr()
    assert doctor.main(["lpr4m", str(raw), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"]["pictures"]["first"][0]["file"].startswith(f"{raw}/images/")
    with pytest.raises(SystemExit, match=r"--data_dir: found '.*\\udcfe', expected a path in UTF-8"):
        build.main([*arguments, "--data_dir", str(tmp_path / "data\udcfe")])
    clip = next(path for path in (raw / "frames").iterdir() if path.name in reports[0] + str(read_queries(raw)))
    (clip / "\udcff-0009.jpg").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"found '\\udcff-0009', expected a frame id clip_id-NNNN; rename"):
        build.main([*arguments, "--data_dir", str(tmp_path / "data"), "--overwrite"])

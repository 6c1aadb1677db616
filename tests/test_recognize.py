"""The command `recognize`, in this process."""

import dataclasses
import json
import sys
from datetime import UTC, datetime

import pytest

from rice_jax import recognize
from rice_jax.index.store import write_index
from rice_jax.index.text import Texts, embed_titles
from tests.programs import start, wait_for
from tests.recognition.streams import free_port, sender
from tests.shop import make_shop, png, write_mp4, write_products
from tests.text_model import write_text_model


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(autouse=True)
def leave_the_users_cache_alone(monkeypatch):
    monkeypatch.setattr(recognize, "keep_compiled", lambda: None)


def run(capsys, *arguments):
    recognize.main([str(argument) for argument in arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_video_gives_lines_and_a_page(shop, tmp_path, capsys):
    video = write_mp4(tmp_path / "video.mp4", [shop.pictures[row] for row in (1, 10, 5)], 9)
    page, said = tmp_path / "out.html", tmp_path / "said.vtt"
    said.write_text("WEBVTT\n\n00:07.000 --> 00:09.500\nthe mug\n\n00:20.000 --> 00:21.000\nthe lamp\n")
    arguments = [video, f"--index={shop.directory}", "--top=2"]
    plain = run(capsys, *arguments)
    lines = run(capsys, *arguments, f"--report={page}", f"--subtitles={said}")
    assert [[one["text"] for one in line.pop("speech")] for line in lines] == [["the mug"], [], ["the lamp"]]
    assert lines == plain
    assert [(line["start"], line["end"]) for line in lines] == [(0, 8.5), (8.5, 17.5), (17.5, 27)]
    first, gap, last = lines
    assert first["product"] == {"id": "p1", "gallery": "a", "title": "title p1", "image_id": "p1", "fields": {}} | {
        name: first["product"][name] for name in ("score", "confidence")
    }
    assert list(first["product"]) == ["id", "gallery", "title", "score", "confidence", "image_id", "fields"]
    assert gap["product"] is None and last["product"]["id"] == "p5"
    assert [len(line["products"]) for line in lines] == [2, 2, 2]
    assert all(0 <= line["confidence"] <= 1 for line in lines)
    assert all(text in page.read_text(encoding="utf-8") for text in ("video.mp4", "the mug", "the lamp"))


def test_speech_that_is_unsure_is_left_out(shop, tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(png(shop.pictures[6]))
    said = tmp_path / "said.json"
    some = [{"start": 0, "end": 1, "text": text, "confidence": sure} for text, sure in (("mug", 0.9), ("mud", 0.2))]
    said.write_text(json.dumps(some))
    recognize.main([str(tmp_path), f"--index={shop.directory}", f"--subtitles={said}", "--min_speech=0.5"])
    out, err = capsys.readouterr()
    assert [one["text"] for one in json.loads(out)["speech"]] == ["mug"]
    assert f"warning: {said}: 1 of 2 sentences are left out, whose confidence is below 0.5" in err


def test_a_text_tower_may_have_moved(shop, tmp_path, capsys):
    pytest.importorskip("tokenizers")
    (tmp_path / "0.png").write_bytes(png(shop.pictures[6]))
    (tmp_path / "0.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\n红色\n")
    tower, moved = write_text_model(tmp_path / "tower"), tmp_path / "moved"
    titles = ["红色", "鞋", "", "", "", "", "", "红色"]
    text = embed_titles(Texts(tower, batch_size=4), 0.5, titles, {})
    write_index(tmp_path / "index", dataclasses.replace(shop.index, text=text))
    tower.rename(moved)
    arguments = [str(tmp_path), f"--index={tmp_path / 'index'}", f"--subtitles={tmp_path / '0.srt'}"]
    with pytest.raises(SystemExit) as stopped:
        recognize.main(arguments)
    message = str(stopped.value)
    assert (
        message.startswith(f"CheckpointError: {tower}: has embedded the titles")
        and "(--text_model, text_model=)" in message
    )
    [line] = run(capsys, *arguments, f"--text_model={moved}", "--top=8")
    assert line["speech"][0]["text"] == "红色" and line["products"][0]["id"] in ("p0", "p7"), "titles count"


def test_frames_in_a_directory_of_one_gallery_re_ranked(shop, tmp_path, capsys):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png(shop.pictures[6]))
    arguments = f"--index={shop.directory}", "--gallery=b", "--rerank=2", "--interval_seconds=0.5"
    [line] = run(capsys, tmp_path, *arguments, f"--checkpoint={shop.index.about.checkpoint}")
    assert line["end"] == 3 and {match["id"] for match in line["products"]} == {"p6", "p7"}


def test_only_products_of_which_the_shops_csv_says_so(shop, tmp_path, capsys):
    fields = [{"Category": "lamp" if row in (2, 5) else "mug", "price": str(row)} for row in range(8)]
    index = write_products(shop, tmp_path, shop.index.product_ids, fields=fields)
    (tmp_path / "frames").mkdir()
    for number in range(4):
        (tmp_path / "frames" / f"{number}.png").write_bytes(png(shop.pictures[1]))
    [line] = run(capsys, tmp_path / "frames", f"--index={index}", "--where=category=lamp")
    assert {match["id"]: match["fields"] for match in line["products"]} == {
        "p2": {"Category": "lamp", "price": "2"}, "p5": {"Category": "lamp", "price": "5"}
    }  # fmt: skip
    conditions = "--where=price=1", "--where=price=2", "--where=category=mug"
    [line] = run(capsys, tmp_path / "frames", f"--index={index}", *conditions)
    assert [match["id"] for match in line["products"]] == ["p1"]
    with pytest.raises(SystemExit, match="DataError: where: found no column 'color' in the index; .*'Category', 'pri"):
        run(capsys, tmp_path / "frames", f"--index={index}", "--where=color=red")
    with pytest.raises(SystemExit):
        run(capsys, tmp_path / "frames", f"--index={index}", "--where=lamp")
    assert "--where: found 'lamp', expected COLUMN=VALUE" in capsys.readouterr().err


def test_a_broken_frame_is_left_out_of_the_page_too(shop, tmp_path, capsys):
    for number, row in enumerate([1, 1, 1, 5, 5, 5]):
        (tmp_path / f"{number}.png").write_bytes(png(shop.pictures[row]))
    (tmp_path / "2.png").write_bytes(png(shop.pictures[1])[:100])
    page = tmp_path / "page.html"
    recognize.main([str(tmp_path), f"--index={shop.directory}", f"--report={page}"])
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["end"] == 6 and page.stat().st_size > 1000
    broken, count, _ = err.splitlines()
    assert broken.startswith(f"warning: frame at second 2: {tmp_path / '2.png'} cannot be decoded: ")
    assert count == "warning: 1 of 6 frames cannot be decoded"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["video.mp4", "--index=nowhere"], "DataError: video.mp4: does not exist"),
        (["broken.txt", "--gallery=c"], "DataError: found no gallery 'c'"),
        (
            ["broken.txt", "--subtitles=broken.txt"],
            "DataError: broken.txt: expected a subtitle file, whose name ends in",
        ),
        (
            ["broken.txt", "--report=out.html"],
            "DataError: 1 of 2 frames cannot be decoded; .* second 1: .*: it is empty",
        ),
        (["broken.txt", "--checkpoint=nowhere"], "CheckpointError: .*nowhere: found no checkpoint"),
        (["broken.txt", "--index=nowhere"], "FileNotFoundError: nowhere/index.parquet: found no index"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(shop, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.png").write_bytes(png(shop.pictures[0]))
    (tmp_path / "bad.png").write_bytes(b"")
    (tmp_path / "broken.txt").write_text("good.png\nbad.png\n")
    with pytest.raises(SystemExit, match=message):
        recognize.main([f"--index={shop.directory}", *arguments])
    assert capsys.readouterr().out == "" and not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("flag", ["--top=0", "--rerank=-1", "--interval_seconds=0", "--interval_seconds=inf"])
def test_impossible_numbers(flag, capsys):
    with pytest.raises(SystemExit):
        recognize.main(["video.mp4", "--index=index", flag])
    assert "expected --top of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("report, message", [("video.mp4", "is the video"), (".", "is a directory")])
def test_where_no_page_can_be_written(tmp_path, monkeypatch, capsys, report, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "video.mp4").write_bytes(b"video")
    with pytest.raises(SystemExit):
        recognize.main(["video.mp4", "--index=index", f"--report={report}"])
    assert message in capsys.readouterr().err and (tmp_path / "video.mp4").read_bytes() == b"video"


@pytest.fixture
def film(shop, tmp_path):
    return write_mp4(tmp_path / "film.mp4", [shop.pictures[row] for row in (1, 5)], 9, codec="libx264")


def follow(shop, source, *arguments):
    arguments = f"--follow={source}", f"--index={shop.directory}", "--listen", "--max_delay=1000", *arguments
    return start([sys.executable, "-m", "rice_jax.recognize", *arguments])


def test_a_live_stream_gives_events_until_sigterm(shop, film):
    url = f"rtmp://127.0.0.1:{free_port()}/live/x"
    with follow(shop, url, "--top=1") as process:
        with sender(film, url, "flv"):
            wait_for(process, "connected")
        wait_for(process, "next try in 1 s")
        process.terminate()
        output, errors = process.communicate()
    lines = [json.loads(line) for line in output.splitlines()]
    assert process.returncode == 0, errors
    told = [(line["event"], line["product"]["id"], line["second"], line.get("reason")) for line in lines]
    assert told[:2] == [("shown", "p1", 0, None), ("gone", "p1", 8.5, "changed")]
    assert told[2:] == [("shown", "p5", 8.5, None), ("gone", "p5", 17, "stopped")]
    assert lines[1]["seconds"] == 8.5 and lines[0]["products"] == [lines[0]["product"]]
    assert lines[0]["confidence"] == lines[0]["product"]["confidence"] > 0.9
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times) and times[0].tzinfo == UTC
    assert "waiting for a sender" in errors and "48 × 48 pixels" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["video.mp4", "--webhook=http://localhost"], "--webhook and --listen only with --follow"),
        (["video.mp4", "--listen"], "--webhook and --listen only with --follow"),
        (["--follow=a.ts", "--report=a.html"], "no --report with --follow"),
        (["video.mp4", "--follow=a.ts"], "not allowed with"),
        (["a.mp4", "--min_speech=0.5"], "--min_speech=0.5: expected 0 to 1, and only with --subtitles"),
        (["a.mp4", "--subtitles=a.srt", "--min_speech=2"], "--min_speech=2: expected 0 to 1"),
        (["--follow=a.ts", "--subtitles=a.srt"], "no --subtitles with --follow"),
    ],
)
def test_flags_that_do_not_go_together(arguments, message, capsys):
    with pytest.raises(SystemExit):
        recognize.main(["--index=index", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--follow=rtmp://localhost", "--webhook=here"], "DataError: webhook: found 'here', expected a URL"),
        (["--follow=http://localhost", "--listen"], "DataError: http://localhost: expected an rtmp:// or rtsp://"),
        (["--follow=a.ts", "--max_delay=0"], "DataError: max_delay: found 0.0"),
        (["--follow=rtpm://localhost"], "DataError: rtpm://localhost: cannot be followed: Protocol not found"),
    ],
)
def test_what_cannot_be_followed_is_said_in_a_line(shop, arguments, message):
    with pytest.raises(SystemExit, match=message):
        recognize.main([f"--index={shop.directory}", *arguments])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "expected --index, or --store=milvus and --uri"),
        (["--index=shop", "--store=milvus", "--uri=shop.db"], "expected --index, or --store=milvus and --uri"),
        (["--store=milvus"], "expected --index, or --store=milvus and --uri"),
        (["--store=milvus", "--uri=shop.db", "--rerank=5"], "expected no --rerank with --store=milvus, which holds"),
        (["--store=milvus", "--uri=shop.db", "--candidates=0"], "expected --candidates of 1 to 16384"),
    ],
)
def test_where_the_index_is(arguments, message, capsys):
    with pytest.raises(SystemExit):
        recognize.main(["video.mp4", *arguments])
    assert message in capsys.readouterr().err

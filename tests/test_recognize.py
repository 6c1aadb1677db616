"""The command `recognize`, in this process."""

import json

import pytest

from rice_jax import recognize
from tests.shop import make_shop, png, write_mp4, write_products


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
    page = tmp_path / "out.html"
    lines = run(capsys, video, f"--index={shop.directory}", "--top=2", f"--report={page}")
    assert [(line["start"], line["end"]) for line in lines] == [(0, 8.5), (8.5, 17.5), (17.5, 27)]
    first, gap, last = lines
    assert first["product"] == {"id": "p1", "gallery": "a", "title": "title p1", "image_id": "p1", "fields": {}} | {
        name: first["product"][name] for name in ("score", "confidence")
    }
    assert list(first["product"]) == ["id", "gallery", "title", "score", "confidence", "image_id", "fields"]
    assert gap["product"] is None and last["product"]["id"] == "p5"
    assert [len(line["products"]) for line in lines] == [2, 2, 2]
    assert all(0 <= line["confidence"] <= 1 for line in lines)
    assert "video.mp4" in page.read_text(encoding="utf-8")


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
        (["video.mp4"], "DataError: video.mp4: does not exist"),
        (["video.mp4", "--gallery=c"], "DataError: found no gallery 'c'"),
        (
            ["broken.txt", "--report=out.html"],
            "DataError: 1 of 2 frames cannot be decoded; .* second 1: .*: it is empty",
        ),
        (["video.mp4", "--checkpoint=nowhere"], "CheckpointError: .*nowhere: found no checkpoint"),
        (["video.mp4", "--index=nowhere"], "FileNotFoundError: nowhere/index.parquet: found no index"),
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

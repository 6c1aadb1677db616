"""The doctor finds every fault that was planted, and nothing else; the download script calls img2dataset rightly."""

import json
from pathlib import Path

import pytest

from data.doctor import main
from tests.data import raw_lpr4m, raw_movingfashion, raw_rope
from tests.data.raw_img2dataset import download
from tests.data.raw_lpr4m import clip_id_of, image_id_of, live_id_of
from tests.data.raw_movingfashion import edit, frame_of, image_of, video_of

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"


def examine(capsys, name: str, raw: Path, *arguments: str) -> tuple[int, dict]:
    """Returns the exit status and the JSON report."""
    status = main([name, str(raw), "--json", "--limit", "100", *arguments])
    return status, json.loads(capsys.readouterr().out)


def faults_of(report: dict) -> dict[str, dict[str, str]]:
    """{kind: {id: reason}}."""
    return {
        kind: {fault["id"]: fault["reason"] for fault in faults["first"]} for kind, faults in report["faults"].items()
    }


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def url_of(name: str) -> str:
    return f"https://example.org/pictures/{name}.jpg?size=full"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


# LPR4M


@pytest.mark.parametrize("num_columns", [11, 12, 13])
@pytest.mark.parametrize("is_downloaded", [False, True])
def test_clean_lpr4m(tmp_path, capsys, num_columns, is_downloaded):
    raw = raw_lpr4m.write_raw(tmp_path / "raw", num_columns=num_columns)
    if is_downloaded:
        download(raw, "training_video_00" if num_columns == 13 else "frames", is_tar=True)
    before = sorted(raw.iterdir())
    status, report = examine(capsys, "lpr4m", raw, "--min_frames", "3")
    assert (status, report["faults"], report["retry"]) == (0, {}, {"count": 0, "file": None})
    published = 641_821 if num_columns == 13 else 4_013_617
    assert report["counts"]["clips"] == {"found": 6, "published": published}
    assert report["counts"]["queries"] == {"found": 4, "published": 20_079}
    assert report["counts"]["gallery images"]["found"] == 8 and report["counts"]["livestreams"]["found"] == 2
    assert sorted(raw.iterdir()) == before


def test_every_fault_of_lpr4m_is_found_and_nothing_else(tmp_path, capsys):
    raw = raw_lpr4m.write_raw(tmp_path / "raw", num_train=12, parts=1, frames_per_clip=lambda clip: 4)
    frames = {(clip, frame): f"{clip_id_of(clip)}-{frame:04}" for clip in range(12) for frame in range(4)}

    # Pictures: of frames in img2dataset's output, and of images in files
    names = sorted(path.stem for path in (raw / "frames").rglob("*.jpg"))
    (raw / "frames" / clip_id_of(0) / f"{frames[0, 0]}.jpg").unlink()
    cut(raw / "frames" / clip_id_of(1) / f"{frames[1, 0]}.jpg")
    download(raw, "frames", is_tar=True, failures=[frames[2, 0]])
    (tmp_path / "urls.txt").write_text("".join(f"{url_of(name)}\n" for name in [*names, "needed-by-none"]))
    (raw / "images" / f"{image_id_of(1002)}.jpg").write_bytes(b"")
    (raw / "images" / f"{image_id_of(1003)}.jpg").unlink()
    cut(raw / "images" / f"{image_id_of(5)}.jpg")
    for number in range(2):  # pictures that no example needs
        path = raw / "more" / f"more-{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw_lpr4m.jpeg(number, (20, 30)))
    shards = download(raw, "more", is_tar=True, rows_per_shard=1)
    (shards / "00000_stats.json").unlink()
    (shards / "00001.tar").write_bytes(b"")

    # Rows
    part = raw / "training_videoinfo_full_part_00.txt"
    rows = [line.split("\t") for line in part.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
    rows[3][1:3] = "[]", "[]"
    rows[4][2] = "[[3,6,24,36],[3,6,60,36],[0,0,0,0],[3,6,24,36]]"
    rows[6][2] = "[[3,6,24,36],[0.1,0.2,0.6,0.8],[0,0,0,0],[3,6,24,36]]"
    rows[7].insert(4, "a tab too many")
    rows[8][2] = "[[24,6,3,36],[0,0,0,0],[0,0,0,0],[0,0,0,0]]"
    rows.append(rows[9])
    part.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")

    # Test files: queries are clips 12, 13 of livestream 1000 and 14, 15 of livestream 1001
    queries = [clip_id_of(12 + query, live=1000 + query // 2) for query in range(4)]
    truth = image_id_of(1001)  # of livestream 1000
    edit_json(raw / "test_videoid_to_gtimage_4.json", lambda clips: clips[queries[2]].append(truth))
    edit_json(raw / "test_videoid_to_gtimage_4.json", lambda clips: clips[queries[3]].append(truth))
    edit_json(
        raw / "test_liveid_to_gallery_2.json", lambda lives: lives[live_id_of(1000)].append(f"{image_id_of(1000)}.jpg")
    )
    boxes = next(raw.glob("test_frameid2gtbox_*.json"))
    edit_json(boxes, lambda of: of.update({f"{queries[0]}-0000": [[0.1, 0.2, 1.2, 0.8]]}))
    edit_json(boxes, lambda of: of.update({f"{queries[1]}-0000": [[2, 4, 20, 30]]}))
    titles = raw / "test_image_title_8.txt"
    titles.write_text(titles.read_text(encoding="utf-8") + f"{image_id_of(1000)}\tagain\n", encoding="utf-8")
    (raw / "test_videoid_asr_4.txt").write_text("no tab\n")

    status, report = examine(capsys, "lpr4m", raw, "--urls", str(tmp_path / "urls.txt"))
    faults = faults_of(report)
    assert status == 1
    assert faults.pop("urls") == {
        frames[0, 0]: "not attempted",
        frames[2, 0]: "failed_to_download",
        "needed-by-none": "not attempted",
    }
    assert faults.pop("pictures") == {
        frames[1, 0]: "undecodable",
        image_id_of(5): "undecodable",
        image_id_of(1002): "zero bytes",
        image_id_of(1003): "missing",
    }
    assert faults.pop("clips") == {clip_id_of(3): "0 usable frames, fewer than 1"}
    assert faults.pop("gallery images") == {f"{live_id_of(1000)}/{image_id_of(1000)}": "twice in its gallery"}
    assert report["faults"]["ground truth"]["count"] == 2
    assert faults.pop("ground truth") == {truth: "not in the gallery of its livestream"}
    found = {kind: {name: reason.partition("found ")[2] for name, reason in of.items()} for kind, of in faults.items()}
    expected = {
        "boxes": {
            frames[4, 1]: "",  # outside the frame
            f"{queries[0]}-0000": "",
            frames[6, 1]: "box [0.1, 0.2, 0.6, 0.8]",
            f"{queries[1]}-0000": "box [2.0, 4.0, 20.0, 30.0]",
        },
        "rows": {f"{part.name}:8": "12 columns", f"{part.name}:9 column 2 (boxes)": "box [24, 6, 3, 36]"},
        "ids": {f"{part.name}:13": f"clip {clip_id_of(9)}", f"{titles.name}:9": f"{image_id_of(1000)} again"},
        "files": {"test_videoid_asr_4.txt:1": "'no tab'"},
        "shards": {"more_img2dataset": "shard 00000 without 00000_stats.json", "00001.tar": "a truncated tar"},
    }
    assert found.keys() == expected.keys()
    for kind, of in expected.items():
        assert found[kind].keys() == of.keys(), kind
        assert all(found[kind][name].startswith(text) for name, text in of.items()), kind
    outside = {name for name, reason in faults["boxes"].items() if reason == "outside the frame"}
    assert outside == {frames[4, 1], f"{queries[0]}-0000"}

    retry = Path(report["retry"]["file"])
    assert retry == raw / "retry_urls.txt" and report["retry"]["count"] == 4
    names = [frames[0, 0], frames[1, 0], frames[2, 0], "needed-by-none"]
    assert sorted(retry.read_text().splitlines()) == sorted(map(url_of, names))


def test_what_was_downloaded_again_heals(tmp_path, capsys):
    raw = raw_lpr4m.write_raw(tmp_path / "raw")
    failed, damaged = (raw / "frames" / clip_id_of(1) / f"{clip_id_of(1)}-{frame:04}.jpg" for frame in range(2))
    again = {path.name: path.read_bytes() for path in (failed, damaged)}
    cut(damaged)
    download(raw, "frames", is_tar=True, failures=[failed.stem])
    status, report = examine(capsys, "lpr4m", raw)
    retry = raw / "retry_urls.txt"
    assert status == 1 and sorted(retry.read_text().splitlines()) == [url_of(Path(name).stem) for name in again]
    for name, encoded in again.items():
        raw_movingfashion.write(raw / "retried" / name, encoded)
    download(raw, "retried", is_tar=True, output="frames_again")
    status, report = examine(capsys, "lpr4m", raw)
    assert (status, report["faults"]) == (0, {}) and not retry.exists()


def test_files_that_are_not_there(tmp_path, capsys):
    raw = raw_lpr4m.write_raw(tmp_path / "raw", parts=1)
    (raw / "training_videoinfo_full_part_00.txt").unlink()
    (raw / "test_liveid_to_gallery_2.json").write_text('{"live":')
    status, report = examine(capsys, "lpr4m", raw)
    assert status == 1 and list(report["faults"]) == ["files"]
    no_rows, cut_json = (fault["reason"] for fault in report["faults"]["files"]["first"])
    assert "found no training_videoinfo_full_part_*.txt" in no_rows and "test_liveid_to_gallery_2.json:1" in cut_json
    assert report["counts"]["clips"] == {"found": 0, "published": 4_013_617}
    assert report["counts"]["queries"]["found"] == 4


def test_few_frames_and_where_the_list_goes(tmp_path, capsys):
    raw = raw_lpr4m.write_raw(tmp_path / "raw")
    frame = f"{clip_id_of(0)}-0001"
    (raw / "frames" / clip_id_of(0) / f"{frame}.jpg").unlink()
    (tmp_path / "urls.txt").write_text(f"{url_of(frame)}\n{url_of('another')}\n\nhttps://example.org/\n")
    (tmp_path / "out").mkdir()
    options = ["--urls", str(tmp_path / "urls.txt"), "--out", str(tmp_path / "out"), "--min_frames", "3"]
    status, report = examine(capsys, "lpr4m", raw, *options)
    faults = faults_of(report)
    assert status == 1 and faults.keys() == {"pictures", "clips", "urls"}
    assert faults["pictures"] == {frame: "missing"}  # what was tried is not known: there are only files
    assert faults["clips"] == {clip_id_of(0): "2 usable frames, fewer than 3"}
    assert "found 'https://example.org/'" in faults["urls"]["urls.txt:4"]
    assert (tmp_path / "out" / "retry_urls.txt").read_text() == f"{url_of(frame)}\n"
    assert not (raw / "retry_urls.txt").exists()


def test_a_list_that_is_no_text_is_a_fault(tmp_path, capsys):
    raw = raw_lpr4m.write_raw(tmp_path / "raw")
    (tmp_path / "gbk.txt").write_bytes("https://example.org/王.jpg\n".encode("gbk"))
    (tmp_path / "urls.txt").write_text(f"{url_of('another')}\n")
    status, report = examine(
        capsys, "lpr4m", raw, "--urls", *(str(tmp_path / f"{name}.txt") for name in ("gbk", "urls"))
    )
    assert status == 1 and "bytes that are not UTF-8" in faults_of(report).pop("files")["gbk.txt:1"]
    assert report["counts"]["URLs listed"]["found"] == 1, "the other list is read"


def test_the_words_of_a_report(tmp_path, capsys):
    raw = raw_lpr4m.write_raw(tmp_path / "raw")
    assert main(["lpr4m", str(raw)]) == 0
    words = capsys.readouterr().out
    assert "clips: 6 / 4,013,617 published\n" in words and words.endswith("\n\nno faults found\n")
    for path in (raw / "frames" / clip_id_of(1)).iterdir():
        path.unlink()
    assert main(["lpr4m", str(raw), "--limit", "2"]) == 1
    words = capsys.readouterr().out
    assert f"\npictures: 8 faulty\n  {clip_id_of(1)}-0000: missing  [" in words
    assert words.count(": missing") == 2 and "  … and 6 more\n" in words


def test_wrong_arguments(tmp_path, capsys):
    raw = str(tmp_path)
    for arguments in (
        ["sample", raw],
        ["lpr4m", f"{raw}/a"],
        ["lpr4m", raw, "--min_frames=0"],
        ["lpr4m", raw, "--urls", "a"],
        ["lpr4m", raw, "--out", f"{raw}/a"],
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2


# MovingFashion


def test_clean_movingfashion(tmp_path, capsys):
    raw = raw_movingfashion.write_raw(tmp_path / "raw")
    status, report = examine(capsys, "movingfashion", raw, "--min_frames", "3")
    assert (status, report["faults"]) == (0, {})
    assert report["counts"]["training videos"] == {"found": 7, "published": 13_526}
    assert report["counts"]["test videos"] == {"found": 3, "published": 1_329}
    assert report["counts"]["gallery images"] == {"found": 4, "published": 1_341}


def test_every_fault_of_movingfashion_is_found_and_nothing_else(tmp_path, capsys):
    raw = raw_movingfashion.write_raw(tmp_path / "raw", num_train=10, num_test=8)
    for path in frame_of(raw, video_of(0), 0).parent.iterdir():
        path.unlink()
    for product in (2, 8):
        cut(frame_of(raw, video_of(product), 1))
    frame_of(raw, video_of(3), 0).rename(frame_of(raw, video_of(3), 0).with_name("first.jpg"))
    (raw / image_of(4)).write_bytes(b"")
    (raw / image_of(15)).unlink()
    edit(raw, "train", lambda products: products["5"].update(source="regular"))
    other = "imgs/other/" + Path(image_of(7)).name
    raw_movingfashion.write(raw / other, (raw / image_of(7)).read_bytes())
    edit(raw, "train", lambda products: products["6"].update(img_path=other))
    status, report = examine(capsys, "movingfashion", raw)
    faults = faults_of(report)
    assert status == 1
    assert faults.pop("training videos") == {Path(video_of(0)).stem: "0 usable frames, fewer than 1"}
    assert report["faults"]["pictures"]["count"] == 4, "one 0001.jpg in each of two videos"
    assert faults.pop("pictures") == {
        "0001": "undecodable",
        Path(image_of(4)).stem: "zero bytes",
        Path(image_of(15)).stem: "missing",
    }
    assert {kind: list(of) for kind, of in faults.items()} == {
        "rows": ["train.json: 5 source"],
        "ids": ["train.json: 7"],
        "files": [Path(video_of(3)).stem],
    }


# ROPE


@pytest.mark.parametrize("is_downloaded", [False, True])
def test_clean_rope(tmp_path, capsys, is_downloaded):
    raw = raw_rope.write_raw(tmp_path / "raw")
    if is_downloaded:
        for domain in raw_rope.FILES:
            download(raw, domain, is_tar=True)
    before = sorted(raw.iterdir())
    status, report = examine(capsys, "rope", raw, "--min_frames", "2")
    assert (status, report["faults"]) == (0, {})
    assert report["counts"]["training products"] == {"found": 6, "published": 187_431}
    assert report["counts"]["test products"] == {"found": 4, "published": 2_527}
    assert report["counts"]["training pages"] == {"found": 9, "published": 3_025_236}
    assert report["counts"]["test lives"] == {"found": 6, "published": 30_981}
    assert sorted(raw.iterdir()) == before


def test_every_fault_of_rope_is_found_and_nothing_else(tmp_path, capsys):
    raw = raw_rope.write_raw(tmp_path / "raw", num_train=12, num_test=8, num_pictures=lambda domain, product: 3)
    product = raw_rope.product_of
    item = {domain: [raw_rope.item_of(domain, number) for number in range(20)] for domain in raw_rope.FILES}

    def picture(domain: str, number: int, frame: int = 0) -> Path:
        return raw / domain / raw_rope.picture_of(domain, item[domain][number], frame)

    # Lines
    raw_rope.edit(raw, "training_product_pages_pair", lambda lines: lines.append("99000, 5, 6"))
    raw_rope.edit(raw, "training_page_images", lambda lines: lines.append("5"))
    raw_rope.edit(raw, "training_video_frames", lambda lines: lines.append("5, first, a.jpg"))
    path = raw / "test_live_asrs.txt"
    path.write_bytes(path.read_bytes() + b"5, \xff\n")
    # Joins
    pairs = "training_product_videos_pair"
    raw_rope.edit(raw, pairs, lambda lines: lines.remove(f"{product(0)}, {item['videos'][0]}"))
    raw_rope.edit(raw, pairs, lambda lines: lines.append(f"{product(0)}, {item['videos'][1]}"))
    raw_rope.edit(raw, pairs, lambda lines: lines.append(f"{product(0)}, 77777"))
    raw_rope.edit(raw, "test_page_titles", lambda lines: lines.append(lines[0]))
    (raw / "test_video_asrs.txt").unlink()
    # Pictures: of lives in img2dataset's output, of the others in files
    cut(picture("pages", 1))
    picture("videos", 2).write_bytes(b"")
    for frame in range(3):
        picture("pages", 3, frame).unlink()
    missing = [picture("pages", 3, frame).stem for frame in range(3)]
    picture("videos", 4).unlink()
    picture("videos", 4, 1).unlink()
    failed, damaged = picture("lives", 5), picture("lives", 6)
    cut(damaged)
    names = [*(path.stem for path in (raw / "lives").iterdir()), *missing]
    shards = download(raw, "lives", is_tar=True, failures=[failed.stem])
    (shards / "99999.parquet").write_bytes(b"")
    (tmp_path / "urls.txt").write_text("".join(f"{url_of(name)}\n" for name in names))

    status, report = examine(capsys, "rope", raw, "--min_frames", "2", "--urls", str(tmp_path / "urls.txt"))
    faults = faults_of(report)
    assert status == 1
    assert faults.pop("pictures") == {
        picture("pages", 1).stem: "undecodable",
        picture("videos", 2).stem: "zero bytes",
        picture("videos", 4).stem: "missing",
        picture("videos", 4, 1).stem: "missing",
        damaged.stem: "undecodable",
    }
    assert faults.pop("urls") == dict.fromkeys(missing, "not attempted") | {failed.stem: "failed_to_download"}
    assert faults.pop("training pages") == {
        f"{product(3)}/{item['pages'][3]}": "0 usable frames, fewer than 1",
    }
    assert faults.pop("training videos") == {
        item["videos"][0]: "in no pair file",
        item["videos"][1]: "several products",
        f"{product(0)}/77777": "no pictures",
        f"{product(4)}/{item['videos'][4]}": "1 usable frames, fewer than 2",
    }
    assert faults.pop("lines") == {item["pages"][12]: "again"}
    assert set(faults.pop("rows")) == {
        "training_product_pages_pair.txt:19",
        "training_page_images.txt:55",
        "training_video_frames.txt:55",
        "test_live_asrs.txt:13",
    }
    assert "shard 99999 without" in faults.pop("shards")["lives_img2dataset"]
    (reason,) = faults.pop("files").values()
    assert "found no test_video_asrs.txt" in reason
    assert not faults
    retry = Path(report["retry"]["file"]).read_text().splitlines()
    assert sorted(retry) == sorted(map(url_of, [*missing, failed.stem, damaged.stem]))


# Downloading

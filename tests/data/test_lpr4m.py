"""LPR4M's builder: what it writes, what it refuses, what it skips and reports."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data.build import main
from data.errors import FormatError
from data.lpr4m.rows import parse_row
from tests.data.raw_lpr4m import clip_id_of, image_id_of, write_raw
from tests.data.raw_lpr4m import live_id_of as live_id_of_number

REPOSITORY = Path(__file__).resolve().parents[2]
UUID = "fff8b484-2eeb-11ee-b7bb-77cb20e634dc"
CLIP = "7b601b02-2c63-11ee-bb6d-b8cef60c2fd0-1667916122888-1667916252390"


class Encoded(tfds.decode.SkipDecoding):
    """Leaves pictures as bytes, also in a sequence."""

    def decode_batch_example_np(self, pictures):
        return list(pictures)


def build(raw_dir: Path, data_dir: Path, *arguments: str) -> None:
    main(["lpr4m", "--raw_dir", str(raw_dir), "--data_dir", str(data_dir), *arguments])


def open_set(data_dir: Path, config: str):
    builder = tfds.builder_from_directory(data_dir / "lpr4m" / config / "1.0.0")
    (split,) = builder.info.splits
    decoders = {name: Encoded() for name in ("frames", "image") if name in builder.info.features}
    return builder.as_data_source(split, decoders=decoders), dict(builder.info.metadata)


def report_of(data_dir: Path, config: str) -> list[dict]:
    return [json.loads(line) for line in (data_dir / "lpr4m" / config / "skipped.jsonl").read_text().splitlines()]


def part(raw_dir: Path, number: int = 0) -> Path:
    return raw_dir / f"training_videoinfo_full_part_{number:02}.txt"


def edit_row(raw_dir: Path, row: int, column: int, text: str) -> None:
    lines = part(raw_dir).read_text(encoding="utf-8").split("\n")
    columns = lines[row].split("\t")
    columns[column] = text
    lines[row] = "\t".join(columns)
    part(raw_dir).write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("num_columns", [11, 12, 13])
def test_a_training_example_is_its_row_and_its_files(tmp_path, num_columns):
    raw = write_raw(tmp_path / "raw", num_columns=num_columns, frames_per_clip=lambda clip: 13)
    build(raw, tmp_path / "data")
    source, metadata = open_set(tmp_path / "data", "train_750k" if num_columns == 13 else "train")
    assert metadata == {"num_rows": 6, "skipped": 0}
    # Two parts, dealt in turn: the set is in the order of the files.
    assert [example["clip_id"].decode() for example in source] == [clip_id_of(clip) for clip in (0, 2, 4, 1, 3, 5)]

    example, clip_id, image_id = source[1], clip_id_of(2), image_id_of(2)
    kept = list(range(10)) if num_columns == 13 else [0, 1, 2, 4, 5, 6, 8, 9, 10, 12]
    frame_ids = [f"{clip_id}-{frame:04}" for frame in kept]
    assert [frame_id.decode() for frame_id in example["frame_ids"]] == frame_ids
    frames = raw / ("training_video_00" if num_columns == 13 else "frames") / clip_id
    assert example["frames"] == [(frames / f"{frame_id}.jpg").read_bytes() for frame_id in frame_ids]
    image = f"training_image/{image_id}-0.jpg" if num_columns == 13 else f"images/{image_id}.jpg"
    assert example["image"] == (raw / image).read_bytes()
    # 3, 6, 24, 36 of 27 x 48 pixels; every fourth frame has none
    box = [6 / 48, 3 / 27, 36 / 48, 24 / 27]
    expected = [[0, 0, 0, 0] if frame % 4 == 3 else box for frame in kept]
    np.testing.assert_allclose(np.stack(example["boxes"]), expected, rtol=1e-6)
    texts = {name: example[name].decode() for name in example if isinstance(example[name], bytes) and name != "image"}
    assert texts == {
        "clip_id": clip_id,
        "live_id": live_id_of_number(0),
        "image_id": image_id,
        "title": "简约外套, 2",
        "asr": "这件|外套\x012",
        "category": "女装",
        "category_id": "1002",
        "product_id": "" if num_columns == 11 else "9002",
        "scale": "Medium",
        "duration": "long",
        "number": "few",
    }


def test_a_query_has_its_truth_its_boxes_and_its_types(tmp_path):
    raw = write_raw(tmp_path / "raw", frames_per_clip=lambda clip: 13)
    (raw / "test_image_category.txt").write_text(f"{image_id_of(1000)}\t女装\n", encoding="utf-8")
    build(raw, tmp_path / "data", "--configs", "query")
    source, metadata = open_set(tmp_path / "data", "query")
    assert metadata == {"num_queries": 4, "skipped": {}}
    example, clip_id = source[0], clip_id_of(6, live=1000)
    assert example["clip_id"].decode() == clip_id
    assert example["gallery_id"].decode() == live_id_of_number(1000)
    assert [image.decode() for image in example["image_ids"]] == [image_id_of(1000)]
    assert (example["title"].decode(), example["asr"].decode()) == ("商品 1000", "看这件, 好看")
    assert (example["category"].decode(), source[1]["category"].decode()) == ("女装", "")
    assert source[1]["asr"] == b""  # the file says null
    assert [int(frame[-4:]) for frame in example["frame_ids"]] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 12]
    # Annotated are frames 0 3 6 9 12, with two boxes in 0, 6, 12 (of which frame 3 and 9 have none).
    boxes = np.array([[0.2, 0.1, 0.8, 0.6], [0.5, 0.5, 1, 1]] * 3)
    np.testing.assert_allclose(np.stack(example["boxes"]), boxes, rtol=1e-6)
    assert example["box_frame"] == [0, 0, 5, 5, 9, 9]
    # mean area 0.3, visible in 3 of 5 annotated frames, 2 boxes a frame
    assert [example[name].decode() for name in ("scale", "duration", "number")] == ["medium", "medium", "few"]


@pytest.mark.parametrize("num_columns", [11, 13])
def test_a_gallery_is_in_the_order_of_its_file(tmp_path, num_columns):
    raw = write_raw(tmp_path / "raw", num_columns=num_columns)
    config = "gallery_750k" if num_columns == 13 else "gallery"
    build(raw, tmp_path / "data", "--configs", config)
    source, metadata = open_set(tmp_path / "data", config)
    assert metadata == {"num_images": 8, "skipped": {}}
    entries = [(example["gallery_id"].decode(), example["image_id"].decode()) for example in source]
    assert entries == [(live_id_of_number(1000 + i // 4), image_id_of(1000 + i)) for i in range(8)]
    image_id, live_id = image_id_of(1005), live_id_of_number(1001)
    file = f"gallery/{live_id}/{image_id}-0.jpg" if num_columns == 13 else f"images/{image_id}.jpg"
    assert source[5]["image"] == (raw / file).read_bytes()


def test_a_training_clip_for_a_detector_has_the_frames_with_a_box(tmp_path):
    raw = write_raw(tmp_path / "raw", frames_per_clip=lambda clip: 16)
    edit_row(raw, 0, column=2, text=str([[0, 0, 0, 0]] * 16))
    edit_row(raw, 1, column=2, text=str([[0, 0, 0, 0]] * 5 + [[3, 6, 24, 36], [0, 0, 54, 48]] + [[0, 0, 0, 0]] * 9))
    build(raw, tmp_path / "data", "--configs", "detection_train", "--max_skipped_percent", "10")
    source, metadata = open_set(tmp_path / "data", "detection_train")
    assert metadata == {"num_clips": 5, "skipped": 0}
    assert [example["clip_id"].decode() for example in source] == [clip_id_of(clip) for clip in (2, 4, 1, 3, 5)]
    box = [6 / 48, 3 / 27, 36 / 48, 24 / 27]
    # Of frames 5 and 6 the second has its box outside; elsewhere every fourth of 16 frames has none.
    for example, numbers in ((source[0], [5]), (source[1], [0, 1, 2, 4, 5, 8, 9, 10, 12, 14])):
        frame_ids = [f"{example['clip_id'].decode()}-{number:04}" for number in numbers]
        assert [name.decode() for name in example["frame_ids"]] == frame_ids
        folder = raw / "frames" / example["clip_id"].decode()
        assert example["frames"] == [(folder / f"{frame_id}.jpg").read_bytes() for frame_id in frame_ids]
        np.testing.assert_allclose(np.stack(example["boxes"]), [box] * len(numbers), rtol=1e-6)
        assert list(example["box_frame"]) == list(range(len(numbers)))
    assert [line["reason"] for line in report_of(tmp_path / "data", "detection_train")] == ["outside the frame"]


def test_a_test_clip_for_a_detector_has_every_annotated_frame(tmp_path):
    raw = write_raw(tmp_path / "raw", num_lives=1, queries_per_live=2, frames_per_clip=lambda clip: 40)
    (raw / "frames" / clip_id_of(7, live=1000) / f"{clip_id_of(7, live=1000)}-0003.jpg").unlink()
    build(raw, tmp_path / "data", "--configs", "detection_test", "--max_skipped_percent", "10")
    source, metadata = open_set(tmp_path / "data", "detection_test")
    assert (len(source), metadata) == (2, {"num_clips": 2, "skipped": 0})
    example, clip_id = source[0], clip_id_of(6, live=1000)
    assert (example["clip_id"].decode(), example["live_id"].decode()) == (clip_id, live_id_of_number(1000))
    assert [int(name[-4:]) for name in example["frame_ids"]] == list(range(0, 40, 3))
    assert list(example["box_frame"]) == [index for index in range(0, 14, 2) for _ in range(2)]
    np.testing.assert_allclose(np.stack(example["boxes"]), [[0.2, 0.1, 0.8, 0.6], [0.5, 0.5, 1, 1]] * 7, rtol=1e-6)
    assert [int(name[-4:]) for name in source[1]["frame_ids"]] == [0, *range(6, 40, 3)]
    assert list(source[1]["box_frame"][:4]) == [0, 0, 1, 1]
    assert not (tmp_path / "data/lpr4m/train").exists()


def test_the_unit_of_boxes_can_be_given_by_its_earlier_name_too(tmp_path):
    raw = write_raw(tmp_path / "raw", num_lives=1, queries_per_live=1, frames_per_clip=lambda clip: 3)
    for unit in ("normalized", "normalised"):
        build(raw, tmp_path / unit, "--configs", "query", "--option", f"box_units={unit}")
    boxes = [open_set(tmp_path / unit, "query")[0][0]["boxes"] for unit in ("normalized", "normalised")]
    np.testing.assert_array_equal(*map(np.stack, boxes))
    with pytest.raises(SystemExit, match="expected a box in the unit of the file, pixels"):
        build(raw, tmp_path / "pixels", "--configs", "query", "--option", "box_units=pixels")


def test_subset_queries_need_no_box_file(tmp_path):
    raw = write_raw(tmp_path / "raw", num_columns=13)
    build(raw, tmp_path / "data", "--configs", "query_750k")
    source, _ = open_set(tmp_path / "data", "query_750k")
    example = source[0]
    clip_id = example["clip_id"].decode()
    files = [raw / "query" / clip_id / f"{frame.decode()}.jpg" for frame in example["frame_ids"]]
    assert example["frames"] == [file.read_bytes() for file in files]
    assert example["scale"] == b"" and not len(example["boxes"])


def test_building_twice_gives_equal_files_and_leaves_what_stands(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw")
    for data in ("a", "b"):
        build(raw, tmp_path / data)
    names = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*array_record*")]
    assert len(names) == 4
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)

    capsys.readouterr()
    before = {name: (tmp_path / "a" / name).stat().st_mtime_ns for name in names}
    build(raw, tmp_path / "a")
    assert capsys.readouterr().out.count("already exists") == 3
    assert before == {name: (tmp_path / "a" / name).stat().st_mtime_ns for name in names}


def test_overwrite_builds_what_the_files_now_say(tmp_path):
    raw = write_raw(tmp_path / "raw")
    build(raw, tmp_path / "data", "--configs", "train")
    edit_row(raw, 0, column=4, text="新标题")
    part(raw, 1).unlink()
    build(raw, tmp_path / "data", "--configs", "train", "--overwrite")
    source, metadata = open_set(tmp_path / "data", "train")
    assert metadata == {"num_rows": 3, "skipped": 0} and len(source) == 3
    assert source[0]["title"].decode() == "新标题"
    assert not list((tmp_path / "data").rglob("incomplete*"))


def test_the_dummy_data_shows_the_layout(tmp_path):
    build(REPOSITORY / "data/lpr4m/dummy_data", tmp_path)
    assert [len(open_set(tmp_path, config)[0]) for config in ("train", "query", "gallery")] == [2, 1, 2]


# What is refused


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        (5, "1012\t", r"part_00\.txt:2: found 12 columns, expected 11 .*fix the row"),
        (0, "clip", r"part_00\.txt:2 column 0: found 'clip', expected a clip id LIVE-START-END: .*; rename the clip"),
        (1, "[", r"part_00\.txt:2 column 1 \(frames\): found '\[', expected a list as JSON"),
        (1, "[1, 2, 3]", r"part_00\.txt:2 column 1 \(frames\): found .* expected a list of strings"),
        (1, '["../../secret"]', r"expected a path inside the raw directory"),
        (2, "print(1)", r"part_00\.txt:2 column 2 \(boxes\): found 'print\(1\)'"),
        (2, "[[1, 2, 3, 4]]", r"part_00\.txt:2 column 2 \(boxes\): found 1 boxes for 3 frames, expected one per frame"),
        (2, "[[1, 2, 3], [1, 2, 3], 4]", r"part_00\.txt:2 .*expected four numbers"),
        (2, "[[NaN, 2, 3, 4], [0,0,0,0], [0,0,0,0]]", r"part_00\.txt:2 .*expected four numbers"),
        (2, "[[9, 2, 3, 4], [0,0,0,0], [0,0,0,0]]", r"part_00\.txt:2 .*box \[9, 2, 3, 4\], expected .*x2 ≥ x1"),
        (2, "[[0.1, 0.2, 0.3, 0.4], [0,0,0,0], [0,0,0,0]]", r"part_00\.txt:2: .*unit of the file, pixels"),
        (4, "pictures/1.jpg", r"part_00\.txt:2 column 4: found 'pictures/1.jpg', expected an image path in rows of 13"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, column, text, message):
    raw = write_raw(tmp_path / "raw", num_train=4, frames_per_clip=lambda clip: 3)
    if text == '["../../secret"]':
        edit_row(raw, 1, 2, "[[0, 0, 0, 0]]")
    edit_row(raw, 1, column, text)
    with pytest.raises(SystemExit, match=message):
        build(raw, tmp_path / "data", "--configs", "train")
    assert not list((tmp_path / "data").rglob("1.0.0"))
    assert not list((tmp_path / "data").rglob("incomplete*"))


def test_a_tab_too_many_is_found_in_the_first_row_too():
    row = f"{CLIP}\t[]\t[]\t{UUID}\ttitle\t1012\tcoats\tan\tasr text\tsmall\tlong\tfew\n"
    with pytest.raises(FormatError, match=r"rows.txt:1 column 7: found 'an', expected a numeric product id"):
        parse_row(row.encode(), "rows.txt:1", 12)


def test_text_that_is_not_utf8_is_named():
    with pytest.raises(FormatError, match=r"rows.txt:7: found bytes that are not UTF-8"):
        parse_row("外套".encode("gbk"), "rows.txt:7", 11)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: part(raw).write_bytes(part(raw).read_bytes() * 2), r"_00\.txt:4: found clip .* again, first at"),
        (lambda raw: part(raw).unlink(), r"found parts 01, expected all parts from 00 on"),
        (lambda raw: part(raw).write_text(""), r"part_00\.txt: found an empty file"),
        (lambda raw: part(raw).write_text("a b c\n"), r"_00\.txt:1: found 1 tab-separated columns, exp"),
        (lambda raw: [path.unlink() for path in raw.glob("training*")], r"found no training_videoinfo_full_part"),
        (lambda raw: next(raw.glob("*gtimage*")).unlink(), r"found no test_videoid_to_gtimage_\*\.json"),
        (lambda raw: (raw / "test_videoid_to_gtimage_1.json").write_text("{}"), r"expected one file test_videoid_to_"),
        (lambda raw: next(raw.glob("*gtimage*")).write_text('{"a":\n['), r"gtimage_4\.json:2: found .*expected JSON"),
        (lambda raw: next(raw.glob("*gtimage*")).write_text('{"a": []}'), r"found query 'a', expected a clip id"),
        (lambda raw: next(raw.glob("*gtimage*")).write_text(f'{{"{CLIP}": []}}'), r"found no ground truth"),
        (lambda raw: next(raw.glob("*gallery*")).write_text('{"a": [], "a": []}'), r"found key 'a' twice"),
        (lambda raw: next(raw.glob("*asr*")).write_text("a\tb\nc\n"), r"asr_4\.txt:2: found 'c', expected id, a tab"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path, damage, message):
    raw = write_raw(tmp_path / "raw")
    damage(raw)
    with pytest.raises(SystemExit, match=message):
        build(raw, tmp_path / "data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--configs", "train,tset"], r"--configs: found tset, expected some of train, query"),
        (["--option", "units=pixels"], r"--option: found units, expected some of box_units"),
        (["--option", "box_units=metres"], r"box_units: found 'metres', expected auto, pixels or normalized"),
        (["--raw_dir", "nowhere"], r"nowhere: found no such directory(.|\n)*training_videoinfo_full_part_00"),
        (["--raw_dir", "{empty}"], r"empty: found an empty directory(.|\n)*training_videoinfo_full_part_00"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = [argument.format(empty=empty) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        build(write_raw(tmp_path / "raw", num_train=2, parts=1), tmp_path / "data", *arguments)


# What is skipped


def test_bad_pictures_are_skipped_counted_and_listed(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", frames_per_clip=lambda clip: 4)
    frames = [raw / "frames" / clip_id_of(0) / f"{clip_id_of(0)}-{frame:04}.jpg" for frame in range(4)]
    frames[0].unlink()
    frames[1].write_bytes(b"")
    frames[2].write_bytes(frames[2].read_bytes()[:-40])
    for file in (raw / "frames" / clip_id_of(2)).iterdir():
        file.write_bytes(b"<html>404</html>")
    edit_row(raw, 2, column=1, text="[]")
    edit_row(raw, 2, column=2, text="[]")
    (raw / "images" / f"{image_id_of(1)}.jpg").unlink()  # of clips 1 and 4

    with pytest.raises(SystemExit, match=r"skipped.jsonl: found 3 of 6 clips skipped .*expected at most 1 %"):
        build(raw, tmp_path / "data", "--configs", "train")
    assert not list((tmp_path / "data").rglob("1.0.0"))
    build(raw, tmp_path / "data", "--configs", "train", "--max_skipped_percent", "60")
    source, metadata = open_set(tmp_path / "data", "train")
    assert metadata == {"num_rows": 6, "skipped": 3}
    assert [example["clip_id"].decode() for example in source] == [clip_id_of(clip) for clip in (0, 3, 5)]
    assert source[0]["frames"] == [frames[3].read_bytes()]
    np.testing.assert_array_equal(source[0]["boxes"], [[0, 0, 0, 0]])  # the fourth frame's, not the first's

    report = report_of(tmp_path / "data", "train")
    pictures = [(Path(line["file"]), line["reason"]) for line in report if line["kind"] == "pictures"]
    assert pictures[:3] == list(zip(frames, ["missing", "zero bytes", "undecodable"], strict=False))
    assert len(pictures) == 3 + 4 + 1
    clips = {line["id"]: (line["file"], line["reason"]) for line in report if line["kind"] == "clips"}
    assert clips == {
        clip_id_of(2): (f"{part(raw)}:2", "no usable frame"),
        clip_id_of(4): (f"{part(raw)}:3", "no frames"),
        clip_id_of(1): (f"{part(raw, 1)}:1", "image missing"),
    }
    assert "3 of 6 clips skipped (1 no usable frame, 1 no frames, 1 image missing)" in capsys.readouterr().out


def test_skipped_queries_and_gallery_images_are_in_the_metadata(tmp_path):
    raw = write_raw(tmp_path / "raw")
    clip_id, live_id, image_id = clip_id_of(7, live=1000), live_id_of_number(1000), image_id_of(1002)
    for file in (raw / "frames" / clip_id).iterdir():
        file.unlink()
    (raw / "images" / f"{image_id}.jpg").write_bytes(b"")
    build(raw, tmp_path / "data", "--configs", "query,gallery", "--max_skipped_percent", "30")
    source, metadata = open_set(tmp_path / "data", "query")
    assert (len(source), metadata) == (3, {"num_queries": 4, "skipped": {clip_id: "no frames"}})
    source, metadata = open_set(tmp_path / "data", "gallery")
    assert (len(source), metadata) == (7, {"num_images": 8, "skipped": {f"{live_id}/{image_id}": "image zero bytes"}})
    assert [line["kind"] for line in report_of(tmp_path / "data", "gallery")] == ["pictures", "gallery images"]


def test_an_image_twice_in_a_gallery_is_kept_once(tmp_path):
    raw = write_raw(tmp_path / "raw", num_lives=1)
    (file,) = raw.glob("test_liveid_to_gallery_*.json")
    galleries = {live: [*images, images[0]] for live, images in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(galleries))
    build(raw, tmp_path / "data", "--configs", "gallery", "--max_skipped_percent", "20")
    source, metadata = open_set(tmp_path / "data", "gallery")
    assert (len(source), metadata) == (4, {"num_images": 5, "skipped": {}})
    assert [line["reason"] for line in report_of(tmp_path / "data", "gallery")] == ["twice in its gallery"]


def test_a_box_outside_its_frame_takes_the_frame_with_it(tmp_path):
    raw = write_raw(tmp_path / "raw", frames_per_clip=lambda clip: 3)
    edit_row(raw, 0, column=2, text="[[0, 0, 28, 48], [0, 0, 54, 48], [-1, 2, 5, 6]]")  # of 27 x 48
    build(raw, tmp_path / "data", "--configs", "train", "--max_skipped_percent", "10")
    example = open_set(tmp_path / "data", "train")[0][0]
    np.testing.assert_allclose(np.stack(example["boxes"]), [[0, 0, 1, 1], [2 / 48, 0, 6 / 48, 5 / 27]], rtol=1e-6)
    (line,) = report_of(tmp_path / "data", "train")
    assert (line["id"], line["reason"]) == (f"{clip_id_of(0)}-0001", "outside the frame")
    assert line["file"] == f"{part(raw)}:1"


def test_a_shard_of_nothing_but_skipped_clips_can_be_read(tmp_path):
    raw = write_raw(tmp_path / "raw", num_train=4, parts=2)
    for row in range(2):
        edit_row(raw, row, column=1, text="[]")
        edit_row(raw, row, column=2, text="[]")
    build(raw, tmp_path / "data", "--configs", "train", "--max_skipped_percent", "50")
    source, _ = open_set(tmp_path / "data", "train")
    assert [example["clip_id"].decode() for example in source] == [clip_id_of(1), clip_id_of(3)]


def test_a_set_without_examples_is_refused(tmp_path):
    raw = write_raw(tmp_path / "raw")
    for folder in (raw / "frames").iterdir():
        for file in folder.iterdir():
            file.unlink()
    with pytest.raises(SystemExit, match=r"raw: found no usable example for train \(6 of 6 clips skipped"):
        build(raw, tmp_path / "data", "--configs", "train", "--max_skipped_percent", "100")
    assert not list((tmp_path / "data").rglob("1.0.0"))


# Values


# How it runs

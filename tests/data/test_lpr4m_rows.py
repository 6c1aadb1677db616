"""How rows, ids, texts and boxes of LPR4M are read, and how a build is stopped and shared among workers."""

import json
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data.box_units import detect_units, relative_box
from data.errors import FormatError, Unusable
from data.lpr4m.clip_types import clip_types
from data.lpr4m.evaluation_files import read_texts
from data.lpr4m.ids import live_id_of, parse_image_id
from data.lpr4m.rows import RowBlock, index_rows, parse_row, read_rows
from data.pictures import choose_frames, read_picture
from data.text import parse_list
from tests.data.raw_lpr4m import clip_id_of, image_id_of, jpeg, write_raw
from tests.data.test_lpr4m import CLIP, REPOSITORY, UUID, build, edit_row, open_set, part, report_of


def test_frames_are_chosen_as_the_reference_does():
    recorded = json.loads((Path(__file__).parent / "chosen_frames.json").read_text())
    assert len(recorded) == 25
    for num_frames, indices in recorded.items():
        frames = [f"frame {index}" for index in range(int(num_frames))]
        assert choose_frames(frames, max_frames=10) == [(index, f"frame {index}") for index in indices]


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        (UUID, UUID),
        (f"{UUID}.jpg", UUID),
        (f"{UUID}-0.jpg", UUID),
        (f"gallery/live/{UUID}-12.JPG", UUID),
        ("fff8b484-2eeb-11ee-b7bb-123456789012.jpg", "fff8b484-2eeb-11ee-b7bb-123456789012"),
        ("fff8b484-2eeb-11ee-b7bb-123456789012-3", "fff8b484-2eeb-11ee-b7bb-123456789012"),
    ],
)
def test_an_image_id_loses_extension_and_index_only(name, image_id):
    assert parse_image_id(name) == image_id


def test_a_clip_names_its_livestream():
    assert live_id_of(CLIP) == "7b601b02-2c63-11ee-bb6d-b8cef60c2fd0"


def test_lists_are_json_or_python_and_never_run(tmp_path):
    assert parse_list('["a", "外套"]', "x") == parse_list("['a', '外套']", "x") == ["a", "外套"]
    assert parse_list("[(1, 2, 3, 4)]", "x") == [(1, 2, 3, 4)]
    for text in (f"open({str(tmp_path / 'made')!r}, 'w')", "null", "", "{}", "[" * 10_000):
        with pytest.raises(FormatError):
            parse_list(text, "x")
    assert not (tmp_path / "made").exists()


def test_a_row_keeps_what_separators_a_text_holds():
    title, asr = "外套, a|b\x01\u2028\x0bc\r", "null"
    row = f"{CLIP}\t[]\t[]\t{UUID}\t{title}\t1012\t女装\t{asr}\t\t\t\n"
    parsed = parse_row(row.encode(), "rows.txt:1", 11)
    assert (parsed.title, parsed.asr, parsed.number) == (title, "", "")


def test_a_text_of_a_test_file_may_hold_tabs(tmp_path):
    (tmp_path / "asr.txt").write_text(f"{CLIP}\t这件,\t外套\x01|\n", encoding="utf-8")
    assert read_texts(tmp_path / "asr.txt") == {CLIP: "这件,\t外套\x01|"}


def test_units_follow_from_the_largest_coordinate():
    assert detect_units([(0, 0, 0, 0), (0.1, 0.2, 1.5, 1)]) == "normalized"
    assert detect_units([(0, 0, 0, 0), (0.1, 0.2, 1.6, 1)]) == "pixels"
    assert relative_box((0.1, 0.2, 0.3, 1.04), "normalized", (27, 48), "x") == (0.2, 0.1, 1.0, 0.3)
    with pytest.raises(Unusable):
        relative_box((0.1, 0.2, 0.3, 1.06), "normalized", (27, 48), "x")
    with pytest.raises(FormatError, match="expected a box in the unit of the file, normalized"):
        relative_box((1, 2, 3, 4), "normalized", (27, 48), "x")
    assert relative_box((0, 0, 0, 0), "pixels", (27, 48), "x") == (0, 0, 0, 0)
    for line in ((3, 5, 3, 9), (3, 5, 9, 5), (27, 5, 28, 9)):
        with pytest.raises(Unusable, match="no area"):
            relative_box(line, "pixels", (27, 48), "x")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("[0.5, 0.1, 0.4, 0.2]", "x2 ≥ x1"),
        ("[NaN, 0.1, 0.4, 0.2]", "expected four numbers"),
        ("[10, 20, 20, 30]", "expected a box in the unit of the file, pixels"),  # which the others then are not
    ],
)
def test_a_wrong_box_of_the_test_file_is_named(tmp_path, box, message):
    raw = write_raw(tmp_path / "raw")
    (file,) = raw.glob("test_frameid2gtbox_*.json")
    file.write_text(file.read_text().replace("[0.1, 0.2, 0.6, 0.8]", box, 1))
    with pytest.raises(SystemExit, match=message):
        build(raw, tmp_path / "data", "--configs", "detection_test")


def test_a_frame_with_a_box_outside_or_without_area_is_left_out_for_a_detector(tmp_path):
    raw = write_raw(tmp_path / "raw", frames_per_clip=lambda clip: 4)
    edit_row(raw, 0, column=2, text="[[3, 6, 24, 36], [9, 9, 9, 9], [0, 0, 54, 48], [0, 0, 0, 0]]")
    build(raw, tmp_path / "data", "--configs", "detection_train", "--max_skipped_percent", "20")
    assert len(open_set(tmp_path / "data", "detection_train")[0][0]["frames"]) == 1
    reasons = [line["reason"] for line in report_of(tmp_path / "data", "detection_train")]
    assert reasons == ["no area", "outside the frame"]


@pytest.mark.parametrize(
    ("areas", "num_boxes", "num_without", "types"),
    [
        ([0.19, 0.21], 3, 3, ("small", "short", "few")),
        ([0.25, 0.25, 0.25], 4, 2, ("medium", "medium", "medium")),
        ([0.5, 0.4], 7, 0, ("large", "long", "medium")),
        ([0.1, 0.1], 8, 1, ("small", "medium", "abundant")),
        ([], 0, 3, ("", "short", "")),
        ([], 0, 0, ("", "", "")),
    ],
)
def test_types_follow_from_the_boxes(areas, num_boxes, num_without, types):
    distractor = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    visible = [[tfds.features.BBox(0.0, 0.0, 1.0, area)] + [distractor] * (num_boxes - 1) for area in areas]
    found = clip_types(visible + [[]] * num_without)
    assert (found["scale"], found["duration"], found["number"]) == types


def test_any_whole_picture_is_taken_and_any_cut_one_refused(tmp_path):
    file = tmp_path / "a.jpg"
    whole = jpeg(3, (60, 80))
    for size in (len(whole), len(whole) - 2, len(whole) // 2, 200, 1):
        file.write_bytes(whole[:size])
        if size == len(whole):
            picture = read_picture(file)
            assert (picture.encoded, picture.width, picture.height) == (whole, 60, 80)
        else:
            with pytest.raises(Unusable, match="undecodable"):
                read_picture(file)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    path = tmp_path / "rows.txt"
    frames = json.dumps([f"{CLIP}-{frame:04}" for frame in range(20)])
    row = f"\t{frames}\t{[[1, 2, 3, 4]] * 20}\t{UUID}\ttitle\t1012\tcoats\tasr\tsmall\tlong\tfew\n"
    with path.open("w") as file:
        file.writelines(f"{clip_id_of(clip)}{row}" for clip in range(4000))
    tracemalloc.start()
    blocks = index_rows([path], rows_per_block=1000)
    num_rows = sum(1 for row in read_rows(blocks[3]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(blocks), num_rows) == (4, 1000)
    assert peak < path.stat().st_size / 10


def test_a_block_is_read_without_what_stands_before(tmp_path):
    raw = write_raw(tmp_path / "raw", num_train=7, parts=1)
    whole = [row.clip_id for row in read_rows(index_rows([part(raw)], 100)[0])]
    blocks = index_rows([part(raw)], 3)
    assert [block.num_rows for block in blocks] == [3, 3, 1]
    assert [row.clip_id for block in blocks for row in read_rows(block)] == whole
    assert [row.where for row in read_rows(blocks[1])] == [f"{part(raw)}:{line}" for line in (4, 5, 6)]
    assert isinstance(blocks[0], RowBlock)


def test_tensorflow_is_never_imported(tmp_path):
    raw = write_raw(tmp_path / "raw")
    code = (
        "import sys\n"
        "from data.build import main\n"
        f"main(['lpr4m', '--raw_dir', {str(raw)!r}, '--data_dir', {str(tmp_path / 'data')!r}])\n"
        "assert not {'tensorflow', 'torch', 'rice_jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    assert len(open_set(tmp_path / "data", "train")[0]) == 6


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_leaves_nothing_that_looks_whole_and_goes_on(tmp_path, capsys, how):
    raw = write_raw(tmp_path / "raw")
    code = (  # a build that stops at a frame of the second part, when the first is a shard
        "import signal, sys\n"
        "from data import build, pictures\n"
        "read = pictures.read_picture\n"
        f"stop = {f'{clip_id_of(1)}-0000.jpg'!r}\n"
        "pictures.read_picture = lambda path: signal.pause() if path.name == stop else read(path)\n"
        "build.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "lpr4m", "--raw_dir", raw, "--data_dir", tmp_path / "data"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.time() + 30
    unfinished = tmp_path / "data/lpr4m/train/unfinished_1.0.0"
    try:
        while len(list(unfinished.glob("*.array_record"))) < 2:  # a shard, and a shard begun
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(how)
        output = process.communicate()[0]
    assert process.returncode == (1 if how == signal.SIGTERM else -how), output
    assert not list((tmp_path / "data").rglob("1.0.0"))
    leftovers = list((tmp_path / "data").rglob("incomplete.*"))
    assert bool(leftovers) == (how == signal.SIGKILL)

    (raw / "frames" / clip_id_of(0) / f"{clip_id_of(0)}-0000.jpg").unlink()  # would be missed if it were read again
    build(raw, tmp_path / "data", "--configs", "train")
    told = capsys.readouterr()
    assert all(f"{path}: left by a build that was killed" in told.out for path in leftovers)
    assert "1 of 2 shards already exist" in told.err
    assert len(open_set(tmp_path / "data", "train")[0]) == 6
    assert not report_of(tmp_path / "data", "train") and not unfinished.exists()


def test_workers_write_what_one_process_writes(tmp_path):
    raw = write_raw(tmp_path / "raw")
    (raw / "images" / f"{image_id_of(1)}.jpg").unlink()
    for name, workers in (("one", "1"), ("two", "2")):
        arguments = ["--configs", "train", "--max_skipped_percent", "50", "--workers", workers]
        build(raw, tmp_path / name, *arguments)
    one, two = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two"))
    assert [path.relative_to(tmp_path / "one") for path in one] == [path.relative_to(tmp_path / "two") for path in two]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    edit_row(raw, 1, column=5, text="1012\t")
    with pytest.raises(SystemExit, match=r"part_00\.txt:2: found 12 columns"):
        build(raw, tmp_path / "three", "--configs", "train", "--workers", "2")


def test_a_query_frame_with_a_box_outside_counts_for_nothing(tmp_path):
    raw = write_raw(tmp_path / "raw", num_lives=1, queries_per_live=1, frames_per_clip=lambda clip: 7)
    clip_id = clip_id_of(6, live=1000)
    (file,) = raw.glob("test_frameid2gtbox_*.json")
    boxes = {
        f"{clip_id}-0000": [[0.0, 0.0, 0.5, 0.5]],
        f"{clip_id}-0003": [[0.5, 0.5, 1.2, 1.2], [0.0, 0.0, 1.0, 1.0]],
        f"{clip_id}-0006": [[0, 0, 0, 0], [0.0, 0.0, 1.0, 1.0]],  # out of view
    }
    file.write_text(json.dumps(boxes))
    build(raw, tmp_path / "data", "--configs", "query", "--max_skipped_percent", "40")
    example = open_set(tmp_path / "data", "query")[0][0]
    assert (len(example["frames"]), example["box_frame"], len(example["boxes"])) == (7, [0], 1)
    # of two annotated frames one has a box, of a quarter of the frame
    assert [example[name].decode() for name in ("scale", "duration", "number")] == ["medium", "medium", "few"]
    assert [line["id"] for line in report_of(tmp_path / "data", "query")] == [f"{clip_id}-0003"]


def test_pixel_boxes_of_queries_are_told_by_the_file(tmp_path):
    raw = write_raw(tmp_path / "raw", num_lives=1, queries_per_live=1, frames_per_clip=lambda clip: 3)
    (file,) = raw.glob("test_frameid2gtbox_*.json")
    file.write_text(json.dumps({f"{clip_id_of(6, live=1000)}-0000": [[0, 12, 27, 36]]}))
    build(raw, tmp_path / "data", "--configs", "query")
    (box,) = open_set(tmp_path / "data", "query")[0][0]["boxes"]
    np.testing.assert_allclose(box, [0.25, 0, 0.75, 1])

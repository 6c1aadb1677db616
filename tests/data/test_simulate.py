"""Tests of data/sample/simulate.py, run as its users run it: as a program that writes files."""

import csv
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data.sample import simulate as program

SAMPLE = pathlib.Path(__file__).parents[2] / "data" / "sample"
TRAIN, TEST, LIVES = 12, 41, 2
SMALL = (
    "--train_products=12",
    "--test_products=41",
    "--lives=2",
    "--min_frames=3",
    "--max_frames=6",
    "--clips_per_product=1",
)


def simulate(products, out, *flags):
    command = [sys.executable, SAMPLE / "simulate.py", "--products", products, "--out", out, "--workers=2", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def refused(main, capsys, *flags):
    """What a program writes to stderr that stops before it starts its workers, in this process."""
    with pytest.raises(SystemExit) as stopped:
        main([str(flag) for flag in flags])
    assert stopped.value.code
    return f"{capsys.readouterr().err}{stopped.value.code}"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulate") / "raw"
    done = simulate(SAMPLE, out, *SMALL, "--test_clips_per_product=1", "--categories")
    assert done.returncode == 0, done.stderr
    return out


def training_rows(raw):
    paths = sorted(raw.glob("training_videoinfo_full_part_*.txt"))
    assert [p.name[-6:-4] for p in paths] == [f"{i:02d}" for i in range(10)]
    return [line.split("\t") for path in paths for line in path.read_text().splitlines()]


def read_test(raw, name):
    (path,) = raw.glob(name)
    return path, json.loads(path.read_text())


def files_of(raw):
    return {p.relative_to(raw): hashlib.sha256(p.read_bytes()).hexdigest() for p in raw.rglob("*") if p.is_file()}


def test_training_rows(raw):
    rows = training_rows(raw)
    assert len(rows) == TRAIN
    for clip_id, frames, boxes, image_id, title, category_id, category, asr, *types in rows:
        frames, boxes = json.loads(frames), json.loads(boxes)
        assert 3 <= len(frames) == len(boxes) <= 6
        assert frames == [f"{clip_id}-{i:04d}" for i in range(len(frames))]
        start, end = (int(v) for v in clip_id.split("-")[-2:])
        assert end - start == 1000 * len(frames) and len(str(start)) == len(str(end)) == 13
        assert len(clip_id.split("-")) == 7
        for frame_id in frames:
            with Image.open(raw / "frames" / clip_id / f"{frame_id}.jpg") as picture:
                assert (picture.size, picture.format) == ((270, 480), "JPEG")
        assert (raw / "images" / f"{image_id}.jpg").is_file()
        assert title and asr and category and category_id.isdigit()
        assert len(types) == 3


def test_boxes_are_in_the_frame_and_give_scale_and_duration(raw):
    for row in training_rows(raw):
        boxes = np.array(json.loads(row[2]))
        assert boxes.dtype.kind == "i"
        seen = boxes[boxes.any(1)]
        assert len(seen)
        assert (seen[:, :2] >= 0).all() and (seen[:, 2:] > seen[:, :2]).all() and (seen[:, 2:] <= [270, 480]).all()
        area = ((seen[:, 2] - seen[:, 0]) * (seen[:, 3] - seen[:, 1])).mean() / (270 * 480)
        assert row[8] == ("small", "medium", "large")[int(area > 0.2) + int(area > 0.4)]
        share = len(seen) / len(boxes)
        assert row[9] == ("short", "medium", "long")[int(share > 0.4) + int(share > 0.7)]
        assert row[10] in ("few", "medium", "abundant")


def test_test_files(raw):
    path, truth = read_test(raw, "test_videoid_to_gtimage_*.json")
    assert path.name == f"test_videoid_to_gtimage_{TEST}.json" and len(truth) == TEST
    path, galleries = read_test(raw, "test_liveid_to_gallery_*.json")
    assert path.name == f"test_liveid_to_gallery_{LIVES}.json"
    assert sorted(len(g) for g in galleries.values()) == [20, 21]
    images = [i for gallery in galleries.values() for i in gallery]
    assert len(set(images)) == TEST and all((raw / "images" / f"{i}.jpg").is_file() for i in images)
    for clip_id, image_ids in truth.items():
        live_id = clip_id.rsplit("-", 2)[0]
        assert len(image_ids) == 1 and image_ids[0] in galleries[live_id]

    path, boxes = read_test(raw, "test_frameid2gtbox_*.json")
    assert path.name == f"test_frameid2gtbox_{TEST}_{len(boxes)}.json"
    annotated = {}
    for frame_id, frame in boxes.items():
        clip_id, number = frame_id.rsplit("-", 1)
        annotated.setdefault(clip_id, []).append((int(number), frame))
        assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in frame)
    assert set(annotated) == set(truth)
    for clip_id, frames in annotated.items():
        count = len(list((raw / "frames" / clip_id).iterdir()))
        assert [number for number, _ in frames] == list(range(0, count, 3))
        assert any(frame for _, frame in frames)

    for name, known in (("asr", set(truth)), ("title", set(images))):
        (path,) = raw.glob(f"test_*_{name}_*.txt")
        keys = [line.split("\t")[0] for line in path.read_text().splitlines()]
        assert path.stem.endswith(f"_{len(keys)}") and len(set(keys)) == len(keys) and set(keys) <= known
    (path,) = raw.glob("test_image_category.txt")
    assert {line.split("\t")[0] for line in path.read_text().splitlines()} == set(images)


def test_training_and_test_share_no_product_and_no_live(raw):
    with (raw / "attribution.csv").open(newline="") as file:
        product_of = {row["image_id"]: row["product_id"] for row in csv.DictReader(file)}
    rows = training_rows(raw)
    _, galleries = read_test(raw, "test_liveid_to_gallery_*.json")
    train = {product_of[row[3]] for row in rows}
    test = {product_of[i] for gallery in galleries.values() for i in gallery}
    assert len(train) == TRAIN and len(test) == TEST and not train & test
    assert not {row[0].rsplit("-", 2)[0] for row in rows} & set(galleries)


def test_seed_alone_decides_every_byte(raw, tmp_path):
    flags = [*SMALL, "--test_clips_per_product=1", "--categories"]
    assert simulate(SAMPLE, tmp_path / "same", *flags, "--workers=1").returncode == 0
    assert files_of(tmp_path / "same") == files_of(raw)


def test_another_seed_keeps_the_split(raw, tmp_path):
    flags = [*SMALL, "--test_clips_per_product=1", "--min_frames=1", "--max_frames=1", "--seed=5", "--all_titles"]
    assert simulate(SAMPLE, tmp_path / "other", *flags).returncode == 0
    titles = (tmp_path / "other" / f"test_image_title_{TEST}.txt").read_text(encoding="utf-8").splitlines()
    _, galleries = read_test(tmp_path / "other", "test_liveid_to_gallery_*.json")
    assert {line.split("\t")[0] for line in titles} == {image for gallery in galleries.values() for image in gallery}

    def trained_on(directory):
        with (directory / "attribution.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {row["product_id"] for row in rows[:TRAIN]}, {row["image_id"] for row in rows}

    products, images = trained_on(raw)
    other_products, other_images = trained_on(tmp_path / "other")
    assert products == other_products and not images & other_images


def test_every_type_occurs(tmp_path):
    flags = ("--train_products=50", "--test_products=20", "--clips_per_product=1", "--test_clips_per_product=1")
    assert simulate(SAMPLE, tmp_path / "raw", *flags, "--max_frames=5").returncode == 0
    rows = training_rows(tmp_path / "raw")
    assert {row[8] for row in rows} == {"small", "medium", "large"}
    assert {row[9] for row in rows} == {"short", "medium", "long"}
    assert {row[10] for row in rows} == {"few", "medium", "abundant"}


@pytest.fixture
def products(tmp_path):
    """A copy of the sample's first 22 products, to be damaged."""
    directory = tmp_path / "products"
    for part in ("images", "views", "backgrounds"):
        (directory / part).mkdir(parents=True)
    lines = (SAMPLE / "products.csv").read_text().splitlines()[:23]
    (directory / "products.csv").write_text("\n".join(lines) + "\n")
    for line in lines[1:]:
        name = line.split(",")[0]
        shutil.copy(SAMPLE / "images" / f"{name}.jpg", directory / "images")
        shutil.copy(SAMPLE / "views" / f"{name}.webp", directory / "views")
    shutil.copy(SAMPLE / "backgrounds" / "b00.jpg", directory / "backgrounds")
    return directory


def edit_csv(directory, old, new):
    path = directory / "products.csv"
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda d: (d / "products.csv").unlink(), ["products.csv", "not found"]),
        (lambda d: edit_csv(d, "category", "kind"), ["products.csv:1", "category"]),
        (lambda d: edit_csv(d, "p001,", "p000,"), ["products.csv:3", "p000", "line 2"]),
        (lambda d: edit_csv(d, "p001,", ""), ["products.csv:3", "fields"]),
        (lambda d: (d / "images" / "p002.jpg").unlink(), ["products.csv:4", "p002.jpg"]),
        (lambda d: (d / "views" / "p003.webp").unlink(), ["products.csv:5", "p003.webp"]),
        (lambda d: (d / "views" / "p003.webp").write_bytes(b"no picture"), ["p003.webp", "not a readable"]),
        (lambda d: shutil.copy(d / "images" / "p003.jpg", d / "views" / "p003.webp"), ["p003.webp", "RGBA"]),
        (lambda d: (d / "backgrounds" / "b00.jpg").unlink(), ["backgrounds", "at least one"]),
    ],
)
def test_bad_products_are_named(products, tmp_path, capsys, damage, expected):
    damage(products)
    flags = ["--train_products=2", "--test_products=20", "--max_frames=5"]
    errors = refused(program.main, capsys, "--products", products, "--out", tmp_path / "raw", *flags)
    assert errors.startswith("error: ") and all(word in errors for word in expected), errors
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--train_products=3", "--test_products=20"], ["23 products", "found 22"]),
        (["--test_products=12"], ["12 to 12 images", "20 to 40"]),
        (["--test_products=22"], ["--train_products=0", "at least 1"]),
        (["--test_products=20", "--min_frames=9", "--max_frames=8"], ["--max_frames=8"]),
        (["--test_products=20", "--clutter=2"], ["--clutter"]),
    ],
)
def test_bad_flags_are_named(products, tmp_path, capsys, flags, expected):
    errors = refused(program.main, capsys, "--products", products, "--out", tmp_path / "raw", *flags)
    assert all(word in errors for word in expected), errors
    assert not (tmp_path / "raw").exists()


def test_does_not_mix_with_earlier_files(products, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "old.txt").write_text("x")
    done = simulate(products, tmp_path / "raw", "--test_products=20")
    assert done.returncode == 1 and "not empty" in done.stderr

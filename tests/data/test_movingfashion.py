"""MovingFashion's builder and frame extraction, and the program on what they make."""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data.build import main
from data.movingfashion.annotations import read_pairs
from data.movingfashion.movingfashion_dataset_builder import choose_frames
from tests import fixtures
from tests.data.raw_movingfashion import edit, frame_of, image_of, video_of, write, write_raw

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "extract_movingfashion.sh"


class Encoded(tfds.decode.SkipDecoding):
    """Leaves pictures as bytes, also in a sequence."""

    def decode_batch_example_np(self, pictures):
        return list(pictures)


def build(raw_dir: Path, data_dir: Path, *arguments: str) -> None:
    main(["movingfashion", "--raw_dir", str(raw_dir), "--data_dir", str(data_dir), *arguments])


def open_set(data_dir: Path, config: str):
    builder = tfds.builder_from_directory(data_dir / "movingfashion" / config / "1.0.0")
    (split,) = builder.info.splits
    decoders = {name: Encoded() for name in ("frames", "image") if name in builder.info.features}
    return builder.as_data_source(split, decoders=decoders), dict(builder.info.metadata)


def report_of(data_dir: Path, config: str) -> list[tuple[str, str, str]]:
    path = data_dir / "movingfashion" / config / "skipped.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["kind"], line["id"], line["reason"]) for line in lines]


def texts(values) -> list[str]:
    return [value.decode() for value in values]


def id_of(path: str) -> str:
    return Path(path).stem


# What is written


def test_a_training_example_is_a_video_and_its_products_image(tmp_path):
    raw = write_raw(tmp_path / "raw", num_frames=lambda product: 13)
    build(raw, tmp_path / "data")
    source, metadata = open_set(tmp_path / "data", "train")
    assert metadata == {"num_rows": 7, "skipped": 0}
    # In the order of the file; the product of two videos gives two pairs.
    pairs = [(example["product_id"].decode(), example["clip_id"].decode()) for example in source]
    videos = [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (4, 0), (5, 0)]
    assert pairs == [(str(product), id_of(video_of(product, number))) for product, number in videos]

    example, kept = source[2], [0, 1, 2, 3, 5, 6, 7, 9, 10, 11]  # of 13, linspace(0, 13, 10, endpoint=False)
    assert texts(example["frame_ids"]) == [f"{frame:04}" for frame in kept]
    assert example["frames"] == [frame_of(raw, video_of(1, 1), frame).read_bytes() for frame in kept]
    assert example["image"] == (raw / image_of(1)).read_bytes()
    assert (example["image_id"].decode(), example["source"].decode()) == (id_of(image_of(1)), "regular")
    assert source[0]["source"].decode() == "hard"
    np.testing.assert_array_equal(np.stack(example["boxes"]), np.zeros((10, 4)))


def test_a_query_keeps_all_its_ground_truths(tmp_path):
    raw = write_raw(tmp_path / "raw")
    build(raw, tmp_path / "data", "--configs", "query")
    source, metadata = open_set(tmp_path / "data", "query")
    assert metadata == {"num_queries": 3, "skipped": {}}  # of 4 products, two of which share a video
    found = [(texts([row["clip_id"]])[0], texts(row["image_ids"]), row["source"].decode()) for row in source]
    assert found == [
        # a hard product and a regular one in one video: it is of neither subset
        (id_of(video_of(6)), [id_of(image_of(6)), id_of(image_of(7))], ""),
        (id_of(video_of(8)), [id_of(image_of(8))], "hard"),
        (id_of(video_of(9)), [id_of(image_of(9))], "regular"),
    ]
    assert {row["gallery_id"].decode() for row in source} == {"movingfashion"}
    assert [len(row["frames"]) for row in source] == [3, 10, 3]
    assert all(row[name] == b"" for row in source for name in ("title", "category", "scale", "duration", "number"))


def test_there_is_one_gallery_with_every_image_once(tmp_path):
    raw = write_raw(tmp_path / "raw")
    edit(raw, "test", lambda products: products["9"].update(img_path=image_of(6)))
    build(raw, tmp_path / "data", "--configs", "gallery")
    source, metadata = open_set(tmp_path / "data", "gallery")
    assert metadata == {"num_images": 3, "skipped": {}}
    entries = [(row["gallery_id"].decode(), row["image_id"].decode(), row["image"]) for row in source]
    images = [image_of(product) for product in (6, 7, 8)]
    assert entries == [("movingfashion", id_of(image), (raw / image).read_bytes()) for image in images]


def test_png_images_are_kept_as_they_are_unless_too_large(tmp_path):
    raw = write_raw(tmp_path / "raw")
    buffer = io.BytesIO()
    Image.new("RGBA", (20, 30), (200, 10, 10, 255)).save(buffer, "PNG")
    write(raw / "imgs" / "shop.png", buffer.getvalue())
    edit(raw, "test", lambda products: products["8"].update(img_path="imgs/shop.png"))
    build(raw, tmp_path / "data", "--configs", "gallery")
    row = open_set(tmp_path / "data", "gallery")[0][2]
    assert (row["image_id"].decode(), row["image"]) == ("shop", buffer.getvalue())
    build(raw, tmp_path / "small", "--configs", "gallery", "--max_short_side", "10")
    row = open_set(tmp_path / "small", "gallery")[0][2]
    assert Image.open(io.BytesIO(row["image"])).size == (10, 15)


def test_tracklets_change_nothing(tmp_path):
    for name, tracklets in (("with", True), ("without", False)):
        raw = write_raw(tmp_path / "raw" / name, tracklets=tracklets)
        build(raw, tmp_path / name, "--configs", "train,query")
    records = [path.relative_to(tmp_path / "with") for path in (tmp_path / "with").rglob("*array_record*")]
    assert len(records) == 2
    assert all(
        (tmp_path / "with" / path).read_bytes() == (tmp_path / "without" / path).read_bytes() for path in records
    )


def test_frames_are_those_of_a_linspace_without_its_end():
    for num_frames in range(1, 400):
        indices = np.linspace(0, num_frames, 10, endpoint=False).astype(int) if num_frames > 10 else range(num_frames)
        assert choose_frames(range(num_frames), 10) == list(indices)


@pytest.mark.parametrize(("source", "subset"), [(1, "regular"), (0, "hard"), (2, "hard"), (-1, "hard")])
def test_source_1_is_regular_and_any_other_number_hard(tmp_path, source, subset):
    raw = write_raw(tmp_path / "raw")
    edit(raw, "test", lambda products: products["8"].update(source=source))
    pairs = read_pairs(raw / "test.json")
    assert [pair.source for pair in pairs] == ["hard", "regular", subset, "regular"]


def test_the_dummy_data_shows_the_layout(tmp_path):
    build(REPOSITORY / "data/movingfashion/dummy_data", tmp_path)
    assert [len(open_set(tmp_path, config)[0]) for config in ("train", "query", "gallery")] == [3, 1, 2]
    assert len(open_set(tmp_path, "query")[0][0]["image_ids"]) == 2


# What is skipped


def test_a_missing_video_is_a_query_that_counts(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw")
    frame_of(raw, video_of(8), 0).parent.rename(tmp_path / "away")
    with pytest.raises(SystemExit, match="found 1 of 3 queries skipped .*expected at most 1 %"):
        build(raw, tmp_path / "data", "--configs", "query")
    build(raw, tmp_path / "data", "--configs", "query", "--max_skipped_percent", "40")
    source, metadata = open_set(tmp_path / "data", "query")
    video = id_of(video_of(8))
    assert (len(source), metadata) == (2, {"num_queries": 3, "skipped": {video: "no frames"}})
    assert report_of(tmp_path / "data", "query") == [("queries", video, "no frames")]
    assert "1 of 3 queries skipped (1 no frames)" in capsys.readouterr().out


def test_bad_pictures_are_left_out_and_reported(tmp_path):
    raw = write_raw(tmp_path / "raw", num_frames=lambda product: 3)
    frames = [frame_of(raw, video_of(0), frame) for frame in range(3)]
    frames[0].write_bytes(b"")
    frames[1].write_bytes(frames[1].read_bytes()[:-40])
    (raw / image_of(1)).unlink()  # of two videos
    (raw / image_of(7)).write_bytes(b"<html>404</html>")
    build(raw, tmp_path / "data", "--max_skipped_percent", "50")
    source, metadata = open_set(tmp_path / "data", "train")
    assert metadata == {"num_rows": 7, "skipped": 2}
    assert source[0]["frames"] == [frames[2].read_bytes()]
    assert [row["product_id"].decode() for row in source] == ["0", "2", "3", "4", "5"]
    image = id_of(image_of(1))
    assert report_of(tmp_path / "data", "train") == [
        ("pictures", "0000", "zero bytes"),
        ("pictures", "0001", "undecodable"),
        *[
            line
            for number in range(2)
            for line in [("pictures", image, "missing"), ("pairs", id_of(video_of(1, number)), "image missing")]
        ],
    ]
    assert open_set(tmp_path / "data", "gallery")[1] == {
        "num_images": 4,
        "skipped": {f"movingfashion/{id_of(image_of(7))}": "image undecodable"},
    }


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update({"2": []}), r"train.json: 2: found \[\], expected an object with video_paths, img_path, "),
        (lambda p: p["2"].pop("source"), r"train.json: 2: found .*expected an object with .*source"),
        (lambda p: p["2"].update(source="1"), r"train.json: 2 source: found '1', expected a whole number"),
        (lambda p: p["2"].update(source=True), r"train.json: 2 source: found True, expected a whole number"),
        (lambda p: p["2"].update(video_paths="videos/a.mp4"), r"2 video_paths: found 'videos/a.mp4', expected a list"),
        (lambda p: p["2"].update(video_paths=[]), r"2 video_paths: found \[\], expected a list of paths"),
        (lambda p: p["2"].update(video_paths=[3]), r"2 video_paths: found 3, expected a path that starts with videos/"),
        (lambda p: p["2"].update(img_path="imgs/../../a.jpg"), r"expected a path inside the raw directory"),
        (lambda p: p["2"].update(img_path="/imgs/a.jpg"), r"2 img_path: found '/imgs/a.jpg', expected a path that"),
        (lambda p: p["2"].update(img_path=image_of(0).replace("jpg", "png")), r"2: found imgs/.*png and imgs/.*jpg"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named(tmp_path, change, message):
    raw = write_raw(tmp_path / "raw")
    edit(raw, "train", change)
    with pytest.raises(SystemExit, match=message):
        build(raw, tmp_path / "data", "--configs", "train")
    assert not list((tmp_path / "data").rglob("1.0.0"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"train.json:1: found list, expected a JSON object"),
        ('{"1":\n{', r"train.json:2: found .*expected JSON"),
        ('{"1": {}, "1": {}}', r"train.json: found key '1' twice"),
        (None, r"found no train.json"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    raw = write_raw(tmp_path / "raw")
    path = raw / "train.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        build(raw, tmp_path / "data")


# Extraction

FAKE_FFMPEG = """#!/usr/bin/env bash
# Writes as many frames as the video's file says, and fails after them if it says so.
printf '%s\\n' "$@" > "$ARGUMENTS/$$" # a file each, since two may run side by side
while [ $# -gt 1 ]; do
    [ "$1" != -i ] || video=$2
    shift
done
read -r count end < "$video"
for ((frame = 0; frame < count; frame++)); do printf '%d' $frame > "$(printf "$1" $frame)"; done
[ -z "$end" ] || { echo "moov atom not found" >&2; exit 1; }
"""


def extract(tmp_path: Path, *arguments: str, fake: str = FAKE_FFMPEG) -> subprocess.CompletedProcess:
    if fake:
        write(tmp_path / "bin" / "ffmpeg", fake.encode())
        (tmp_path / "bin" / "ffmpeg").chmod(0o755)
    (tmp_path / "arguments").mkdir(exist_ok=True)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ARGUMENTS": str(tmp_path / "arguments")}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def test_extraction_can_be_resumed_and_keeps_no_half_video(tmp_path):
    raw = tmp_path / "raw data"
    for name, content in (("a", "3"), ("b.c", "2"), ("broken", "1 fails"), ("empty", "0")):
        write(raw / "videos" / f"{name}.mp4", f"{content}\n".encode())
    write(raw / "frames" / ".a.partial" / "0007.jpg", b"left by a run that was killed")
    done = extract(tmp_path, str(raw), "2")
    assert done.returncode == 1
    assert "broken.mp4: no frames; ffmpeg says: moov atom not found" in done.stderr
    assert "empty.mp4: no frames" in done.stderr
    assert "2 of 4 videos have frames" in done.stderr
    files = sorted(str(path.relative_to(raw / "frames")) for path in (raw / "frames").rglob("*"))
    assert files == ["a", "a/0000.jpg", "a/0001.jpg", "a/0002.jpg", "b.c", "b.c/0000.jpg", "b.c/0001.jpg"]
    calls = [path.read_text().split("\n") for path in (tmp_path / "arguments").iterdir()]
    assert all(call[call.index("-vf") + 1] == "fps=1" and "-nostdin" in call for call in calls) and len(calls) == 4

    for name in ("broken", "empty"):
        write(raw / "videos" / f"{name}.mp4", b"1\n")
    shutil.rmtree(tmp_path / "arguments")
    done = extract(tmp_path, str(raw))
    assert (done.returncode, done.stderr) == (0, f"{raw}/frames: 4 of 4 videos have frames\n")
    assert len(list((tmp_path / "arguments").iterdir())) == 2, "only what was left"


def test_extraction_without_ffmpeg_or_videos(tmp_path):
    write(tmp_path / "raw" / "videos" / "a.mp4", b"1\n")
    for tool in ("bash", "basename", "dirname", "getconf"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    command = [SCRIPT, tmp_path / "raw"]
    done = subprocess.run(command, env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True)
    assert done.returncode == 1 and "found no ffmpeg on PATH; install it" in done.stderr
    done = extract(tmp_path, str(tmp_path / "nowhere"))
    assert done.returncode == 1 and "nowhere/videos: found no such directory" in done.stderr
    done = extract(tmp_path)
    assert done.returncode == 1 and "expected RAW" in done.stderr


# The program


@pytest.mark.slow
def test_the_program_trains_and_evaluates_the_gallery(tmp_path):
    raw = write_raw(tmp_path / "raw", num_train=10, num_test=8)
    frame_of(raw, video_of(17), 0).parent.rename(tmp_path / "away")  # the video that the archive lacks
    build(raw, tmp_path / "data", "--max_skipped_percent", "20")
    overrides = dict(data__num_workers=0, model__dtype="float32", loss__pmd_weight=0, train__total_steps=3)
    config = "configs/movingfashion.py"
    done = fixtures.run(fixtures.command(tmp_path / "data", tmp_path / "run", config=config, **overrides))
    assert done.returncode == 0, done.stderr
    assert sorted(fixtures.losses(tmp_path / "run")) == [1, 2, 3]
    result = json.loads((tmp_path / "run" / "results.json").read_text())["results"][-1]
    assert (result["step"], result["ranking"]) == (3, "embedding")
    assert (result["score"]["num_queries"], result["num_missing"]) == (7, 1)
    assert result["galleries"] == {"num": 1, "min_size": 8, "mean_size": 8.0, "max_size": 8}
    assert list(result["subsets"]) == ["source"], "the other labels are not in this data set"
    sizes = {value: score["num_queries"] for value, score in result["subsets"]["source"].items()}
    assert sizes == {"hard": 3, "regular": 2}
    assert "1 gallery of 8 products" in done.stdout and "  regular" in done.stdout

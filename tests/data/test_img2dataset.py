"""Pictures that img2dataset downloaded: found by name, whole or refused, failures told."""

import json
import shutil
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.errors import FormatError
from data.img2dataset import ENTRY, Index, build_index, find_outputs, open_index
from tests.data.raw_img2dataset import download
from tests.data.raw_lpr4m import clip_id_of, image_id_of, jpeg, write_raw
from tests.data.test_lpr4m import build, open_set, report_of


def files_of(data_dir):
    return {str(path.relative_to(data_dir)): path.read_bytes() for path in data_dir.glob("lpr4m/*/1.0.0/*record*")}


def index_of(raw_dir, directory):
    return Index(build_index(find_outputs(raw_dir), directory))


@pytest.fixture
def pictures(tmp_path):
    """Twenty-five pictures in a raw directory, and their bytes."""
    folder = tmp_path / "raw" / "images"
    folder.mkdir(parents=True)
    encoded = {f"picture-{number}": jpeg(number, (20, 30)) for number in range(25)}
    for name, content in encoded.items():
        (folder / f"{name}.jpg").write_bytes(content)
    return encoded


@pytest.mark.parametrize("is_tar", [True, False])
def test_a_set_is_the_same_from_files_and_from_img2dataset(tmp_path, is_tar):
    raw = write_raw(tmp_path / "raw", frames_per_clip=lambda clip: 13)
    build(raw, tmp_path / "files")
    for folder in ("frames", "images"):
        download(raw, folder, is_tar=is_tar)
    build(raw, tmp_path / "downloaded")
    assert files_of(tmp_path / "downloaded") == files_of(tmp_path / "files")
    assert len(files_of(tmp_path / "files")) == 4
    assert len(list((tmp_path / "downloaded/lpr4m/pictures_index").iterdir())) == 2


def test_the_subset_too(tmp_path):
    raw = write_raw(tmp_path / "raw", num_columns=13)
    build(raw, tmp_path / "files", "--configs", "train_750k")
    download(raw, "training_video_00", is_tar=True)
    build(raw, tmp_path / "downloaded", "--configs", "train_750k")
    assert files_of(tmp_path / "downloaded") == files_of(tmp_path / "files")


def test_pixel_boxes_are_of_the_frame_before_it_was_resized(tmp_path):
    raw = write_raw(tmp_path / "raw")
    download(raw, "frames", is_tar=True, resize=54)  # twice its size: img2dataset makes small pictures larger
    build(raw, tmp_path / "data", "--configs", "train")
    example = open_set(tmp_path / "data", "train")[0][0]
    np.testing.assert_allclose(example["boxes"][0], [6 / 48, 3 / 27, 36 / 48, 24 / 27], rtol=1e-6)


def test_a_failed_download_is_reported_and_not_replaced(tmp_path):
    raw = write_raw(tmp_path / "raw", frames_per_clip=lambda clip: 13)
    frames = [f"{clip_id_of(0)}-0002", f"{clip_id_of(6, live=1000)}-0002"]
    output = download(raw, "frames", is_tar=True, failures=frames)
    download(raw, "images", is_tar=False, failures=[image_id_of(1)])
    build(raw, tmp_path / "data", "--max_skipped_percent", "40")
    for config, frame in zip(("train", "query"), frames, strict=True):
        example = open_set(tmp_path / "data", config)[0][0]
        numbers = [int(name.decode()[-4:]) for name in example["frame_ids"]]
        assert numbers == [0, 1, 4, 5, 6, 8, 9, 10, 12]
        line = report_of(tmp_path / "data", config)[0]
        assert (line["kind"], line["id"], line["reason"]) == ("pictures", frame, "failed_to_download")
        assert line["file"].startswith(str(output)) and line["file"].endswith(".parquet")
    reasons = {line["id"]: line["reason"] for line in report_of(tmp_path / "data", "train") if line["kind"] == "clips"}
    assert reasons == {clip_id_of(clip): "image failed_to_download" for clip in (1, 4)}


@pytest.mark.parametrize("is_tar", [True, False])
def test_a_cut_picture_in_a_shard_is_reported(tmp_path, is_tar):
    raw = write_raw(tmp_path / "raw")
    frame = raw / "frames" / clip_id_of(0) / f"{clip_id_of(0)}-0000.jpg"
    frame.write_bytes(frame.read_bytes()[:-60])
    download(raw, "frames", is_tar=is_tar)
    build(raw, tmp_path / "data", "--configs", "train", "--max_skipped_percent", "10")
    (line,) = report_of(tmp_path / "data", "train")
    assert (line["id"], line["reason"]) == (frame.stem, "undecodable")
    assert "00000.tar at byte " in line["file"] if is_tar else line["file"].endswith("00000/0000000000.jpg")


def test_the_json_of_a_failed_download_makes_no_success_of_it(tmp_path, pictures):
    out = download(tmp_path / "raw", "images", is_tar=False, failures=["picture-0"])
    (out / "00000" / "0000000000.json").write_text('{"status": "failed_to_download", "url": "picture-0.jpg"}')
    assert index_of(tmp_path / "raw", tmp_path / "index").read("picture-0").status == "failed_to_download"


@pytest.mark.parametrize("is_tar", [True, False])
def test_every_picture_is_found_and_no_other(tmp_path, pictures, is_tar):
    download(tmp_path / "raw", "images", is_tar=is_tar, failures=["picture-7"])
    index = index_of(tmp_path / "raw", tmp_path / "index")
    for name, encoded in pictures.items():
        found = index.read(name)
        if name == "picture-7":
            assert (found.status, found.encoded) == ("failed_to_download", b"")
        else:
            assert (found.status, found.encoded, found.width, found.height) == ("success", encoded, 20, 30)
        assert name in index
    assert index.read("picture-25") is None and "picture-" not in index


def test_of_a_url_that_comes_twice_the_first_success_is_taken(tmp_path, pictures):
    raw = tmp_path / "raw"
    shutil.copytree(raw / "images", raw / "again")
    download(raw, "images", is_tar=True, failures=["picture-3"])
    for name in pictures:
        (raw / "again" / f"{name}.jpg").write_bytes(jpeg(99, (20, 30)))
    download(raw, "again", is_tar=False, output="retried")
    index = index_of(raw, tmp_path / "index")
    assert index.read("picture-3").encoded == jpeg(99, (20, 30))
    assert index.read("picture-4").encoded == pictures["picture-4"]


@pytest.mark.parametrize("is_tar", [True, False])
def test_a_url_without_a_name_leaves_the_rest_of_its_shard_usable(tmp_path, pictures, is_tar):
    out = download(tmp_path / "raw", "images", is_tar=is_tar, failures=["picture-0"])
    rename_url(out / "00000.parquet", "picture-0")
    rename_url(out / "00001.parquet", "picture-20")
    index = index_of(tmp_path / "raw", tmp_path / "index")
    found = {name: index.read(name).encoded for name in pictures if name in index}
    assert found == {name: pictures[name] for name in pictures.keys() - {"picture-0", "picture-20"}}


def test_a_picture_of_any_size_is_indexed(tmp_path, pictures):
    out = download(tmp_path / "raw", "images", is_tar=True)
    table = pq.read_table(out / "00000.parquet")
    sizes = [[70_000] * len(table)]
    pq.write_table(
        table.set_column(table.schema.get_field_index("original_height"), "original_height", sizes),
        out / "00000.parquet",
    )
    found = index_of(tmp_path / "raw", tmp_path / "index").read("picture-0")
    assert (found.width, found.height) == (20, 70_000)


def rename_url(path, name):
    """Gives the picture a URL that ends in no file name."""
    table = pq.read_table(path)
    urls = ["https://example.org/" if f"/{name}." in url else url for url in table["url"].to_pylist()]
    assert "https://example.org/" in urls
    pq.write_table(table.set_column(table.schema.get_field_index("url"), "url", [urls]), path)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def without_last_picture(path):
    cut(path, path.stat().st_size // 2 // 512 * 512)


def with_status(path):
    table = pq.read_table(path)
    statuses = ["lost" if row == "success" else row for row in table["status"].to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("status"), "status", [statuses]), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "00001_stats.json").unlink(), r"out: found shard 00001 without 00001_stats\.json, exp"),
        (lambda out: (out / "00001.parquet").unlink(), r"out: found shard 00001 without 00001\.parquet, expected"),
        (lambda out: (out / "00001.tar").unlink(), r"out: found shard 00001 without 00001\.tar or 00001/, expected"),
        (lambda out: [path.unlink() for path in out.glob("*.parquet")], r"found shard 00000 .*, shard 00002 without"),
        (lambda out: cut(out / "00001.tar", 3000), r"00001\.tar: found (a truncated tar|no 00001\d{5}\.jpg)"),
        (lambda out: cut(out / "00001.tar", 0), r"00001\.tar: found a truncated tar"),
        (
            lambda out: without_last_picture(out / "00001.tar"),
            r"00001\.tar: found (a truncated tar|no 00001\d{5}\.jpg)",
        ),
        (lambda out: cut(out / "00001.parquet", 100), r"00001\.parquet: found .*, expected columns url, key"),
        (lambda out: with_status(out / "00001.parquet"), r"00001\.parquet: found status 'lost' for https"),
    ],
)
def test_a_shard_that_is_not_whole_is_named(tmp_path, pictures, damage, message):
    out = download(tmp_path / "raw", "images", is_tar=True, output="out")
    damage(out)
    with pytest.raises(FormatError, match=message):
        build_index(find_outputs(tmp_path / "raw"), tmp_path / "index")
    assert not list(tmp_path.glob("index/*.index"))


def test_the_error_of_another_process_arrives(tmp_path, pictures):
    out = download(tmp_path / "raw", "images", is_tar=True, output="out")
    cut(out / "00002.tar", 700)
    with pytest.raises(FormatError, match=r"00002\.tar: found a truncated tar"):
        build_index([out], tmp_path / "index", workers=2)


def test_an_index_is_made_once_and_again_when_a_shard_changes(tmp_path, pictures):
    raw = tmp_path / "raw"
    out = download(raw, "images", is_tar=True)
    first = build_index([out], tmp_path / "index")
    made = first.stat().st_mtime_ns
    assert build_index([out], tmp_path / "index") == first and first.stat().st_mtime_ns == made
    stats = out / "00000_stats.json"
    stats.write_text(json.dumps({"count": 10, "again": True}))
    second = build_index([out], tmp_path / "index")
    assert second != first and second.exists() and not first.exists()


def test_a_picture_that_is_taken_away_later_is_reported(tmp_path):
    raw = write_raw(tmp_path / "raw")
    out = download(raw, "images", is_tar=False)
    build(raw, tmp_path / "data", "--configs", "gallery")
    file = out / "00000" / "0000000000.jpg"
    file.unlink()
    build(raw, tmp_path / "data", "--configs", "train", "--max_skipped_percent", "50")
    report = report_of(tmp_path / "data", "train")
    assert (report[0]["file"], report[0]["reason"]) == (str(file), "missing")
    assert {line["reason"] for line in report if line["kind"] == "clips"} == {"image missing"}


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    """An index of a million names, written as `build_index` writes it, is searched without being read."""
    entries = np.zeros(1_000_000, ENTRY)
    entries["name"] = np.sort(np.frombuffer(np.random.default_rng(0).bytes(16 * len(entries)), "S16"))
    entries.tofile(tmp_path / "a.index")
    (tmp_path / "a.json").write_text("[]")
    tracemalloc.start()
    index = open_index(tmp_path / "a.index")
    assert all(f"picture-{number}" not in index for number in range(100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000

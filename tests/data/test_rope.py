"""ROPE's builder: lines, joins, what is skipped and what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import builder, external_sort
from data.build import main
from data.external_sort import sort_lines
from data.rope import items
from tests import fixtures
from tests.data.raw_img2dataset import download
from tests.data.raw_rope import FILES, TEXT, edit, item_of, picture_of, product_of, write_raw
from tests.data.test_movingfashion import Encoded, texts

REPOSITORY = Path(__file__).resolve().parents[2]
DOMAINS = list(FILES)


def build(raw_dir: Path, data_dir: Path, *arguments: str) -> None:
    main(["rope", "--raw_dir", str(raw_dir), "--data_dir", str(data_dir), *arguments])


def open_set(data_dir: Path, config: str, split: str = "train"):
    built = tfds.builder_from_directory(data_dir / "rope" / config / "1.0.0")
    return built.as_data_source(split, decoders={"frames": Encoded()}), dict(built.info.metadata)


def index_of(data_dir: Path, config: str, split: str = "train") -> np.ndarray:
    return np.load(data_dir / "rope" / config / "1.0.0" / f"{split}_index.npy")


def report_of(data_dir: Path, config: str) -> set[tuple[str, str, str]]:
    path = data_dir / "rope" / config / "skipped.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(line["kind"], line["id"], line["reason"]) for line in lines}


def ids(source) -> set[tuple[str, str]]:
    return {(row["product_id"].decode(), row["item_id"].decode()) for row in source}


# What is written


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_example_is_an_item_with_its_product_text_and_pictures(tmp_path, domain):
    raw = write_raw(tmp_path / "raw")
    build(raw, tmp_path / "data", "--configs", domain)
    for split, products in (("train", range(6)), ("test", range(6, 10))):
        source, metadata = open_set(tmp_path / "data", domain, split)
        expected = {(p, item_of(domain, p, number)) for p in products for number in range(1 + p % 2)}
        assert ids(source) == {(product_of(product), item) for product, item in expected}
        skipped = {} if split == "test" else 0
        assert metadata[split] == {"num_rows": len(expected), "skipped": skipped}
        by_item = {row["item_id"].decode(): row for row in source}
        for product, item in expected:
            count, row = 2 + 5 * (product % 3), by_item[item]
            # Of 12, linspace(0, 11, 10); in the order of their numbers, whatever the order of the lines.
            kept = [0, 1, 2, 3, 4, 6, 7, 8, 9, 11] if count == 12 else range(count)
            names = [picture_of(domain, item, frame) for frame in kept]
            assert texts(row["frame_ids"]) == [Path(name).stem for name in names]
            assert row["frames"] == [(raw / domain / name).read_bytes() for name in names]
            assert row["text"].decode() == f"{TEXT}{item}"
    assert report_of(tmp_path / "data", domain) == set()


def test_examples_are_shuffled_by_a_hash_of_their_id(tmp_path):
    raw = write_raw(tmp_path / "raw", num_train=20)
    build(raw, tmp_path / "data", "--configs", "pages")
    found = [row["item_id"].decode() for row in open_set(tmp_path / "data", "pages")[0]]
    assert found == sorted(found, key=lambda item: hashlib.blake2b(item.encode(), digest_size=8).digest())
    assert found != sorted(found) and found != sorted(found, key=int)


def test_an_index_tells_the_rows_of_a_product(tmp_path):
    raw = write_raw(tmp_path / "raw")
    (raw / "videos" / picture_of("videos", item_of("videos", 0), 0)).unlink()
    (raw / "videos" / picture_of("videos", item_of("videos", 0), 1)).unlink()  # its only frames
    build(raw, tmp_path / "data", "--configs", "videos", "--max_skipped_percent", "20")
    for split, num_rows in (("train", 8), ("test", 6)):
        source, index = open_set(tmp_path / "data", "videos", split)[0], index_of(tmp_path / "data", "videos", split)
        assert index.dtype.names == ("product_id", "item_id", "row") and len(index) == num_rows
        assert sorted(index["row"]) == list(range(num_rows))
        assert (np.sort(index["product_id"]) == index["product_id"]).all()
        for entry in index:
            row = source[int(entry["row"])]
            assert (row["product_id"], row["item_id"]) == (entry["product_id"], entry["item_id"])


def test_shards_and_workers_change_nothing(tmp_path, monkeypatch):
    raw = write_raw(tmp_path / "raw", num_train=12)
    build(raw, tmp_path / "one", "--configs", "lives", "--workers", "2")
    monkeypatch.setattr(items, "EXAMPLES_PER_SHARD", 5)
    monkeypatch.setattr(external_sort, "RUN_BYTES", 700)
    monkeypatch.setattr(external_sort, "MAX_OPEN_RUNS", 3)
    build(raw, tmp_path / "many", "--configs", "lives")
    shards = list((tmp_path / "many").rglob("*train.array_record*"))
    assert len(shards) == 4  # 18 items
    one, many = (list(open_set(tmp_path / name, "lives")[0]) for name in ("one", "many"))
    for first, second in zip(one, many, strict=True):
        assert {name: list(value) for name, value in first.items()} == {
            name: list(value) for name, value in second.items()
        }
    np.testing.assert_array_equal(*(index_of(tmp_path / name, "lives") for name in ("one", "many")))


@pytest.mark.parametrize("is_tar", [True, False])
def test_pictures_of_img2dataset(tmp_path, is_tar):
    raw = write_raw(tmp_path / "raw")
    build(raw, tmp_path / "files")
    for domain in DOMAINS:
        download(raw, domain, is_tar=is_tar)
    build(raw, tmp_path / "downloaded")
    for domain in DOMAINS:
        files, downloaded = (list(open_set(tmp_path / name, domain)[0]) for name in ("files", "downloaded"))
        assert [row["frames"] for row in files] == [row["frames"] for row in downloaded]


def test_a_failed_download_is_reported(tmp_path):
    raw = write_raw(tmp_path / "raw")
    item = item_of("pages", 1)
    failures = [Path(picture_of("pages", item, frame)).stem for frame in range(3)]
    download(raw, "pages", is_tar=True, failures=failures)
    build(raw, tmp_path / "data", "--configs", "pages", "--max_skipped_percent", "20")
    row = next(row for row in open_set(tmp_path / "data", "pages")[0] if row["item_id"].decode() == item)
    assert len(row["frames"]) == 4
    assert report_of(tmp_path / "data", "pages") == {("pictures", name, "failed_to_download") for name in failures}


def test_files_of_other_names(tmp_path):
    raw = write_raw(tmp_path / "raw")
    (raw / "elsewhere").mkdir()
    (raw / "test_page_titles.txt").rename(raw / "elsewhere" / "titles.csv")
    with pytest.raises(SystemExit, match=r"found no test_page_titles.txt, expected it here, or its name in names.json"):
        build(raw, tmp_path / "data")
    (raw / "names.json").write_text(json.dumps({"test_page_titles.txt": "elsewhere/titles.csv"}))
    build(raw, tmp_path / "data", "--configs", "pages")
    assert all(row["text"] for row in open_set(tmp_path / "data", "pages", "test")[0])
    (raw / "names.json").write_text(json.dumps({"test_titles.txt": "elsewhere/titles.csv"}))
    with pytest.raises(
        SystemExit, match=r"names.json: test_titles.txt: found an unknown name, expected one of training_"
    ):
        build(raw, tmp_path / "other", "--configs", "pages")
    (raw / "names.json").write_text(json.dumps({"test_page_titles.txt": "../titles.csv"}))
    with pytest.raises(SystemExit, match=r'found "../titles.csv", expected a file in the raw directory'):
        build(raw, tmp_path / "other", "--configs", "pages")


def test_training_alone(tmp_path):
    raw = write_raw(tmp_path / "raw")
    for path in raw.glob("test_*"):
        path.unlink()
    with pytest.raises(
        SystemExit, match=r"found no test_product_pages_pair.txt, .*--option splits=train leaves out all test sets"
    ):
        build(raw, tmp_path / "data", "--configs", "pages")
    build(raw, tmp_path / "data", "--configs", "pages", "--option", "splits=train", "--option", "max_frames=3")
    source, metadata = open_set(tmp_path / "data", "pages")
    assert metadata == {"train": {"num_rows": 9, "skipped": 0}}
    assert max(len(row["frames"]) for row in source) == 3
    for option, message in (("splits=dev", "found 'dev', expected some of train, test"), ("max_frames=0", "found '0'")):
        with pytest.raises(SystemExit, match=message):
            build(raw, tmp_path / "data", "--option", option)


def test_the_dummy_data_shows_the_layout(tmp_path):
    build(REPOSITORY / "data/rope/dummy_data", tmp_path)
    lengths = {
        (domain, split): len(open_set(tmp_path, domain, split)[0]) for domain in DOMAINS for split in ("train", "test")
    }
    assert lengths == {(domain, split): 2 for domain in DOMAINS for split in ("train", "test")}


# What is skipped


def test_what_cannot_be_used_is_left_out_and_reported(tmp_path):
    raw = write_raw(tmp_path / "raw", num_train=12, num_pictures=lambda domain, product: 3)
    item = {product: item_of("videos", product) for product in range(16)}
    edit(raw, "training_product_videos_pair", lambda lines: lines.remove(f"{product_of(0)}, {item[0]}"))
    edit(raw, "training_product_videos_pair", lambda lines: lines.append(f"{product_of(0)}, {item[1]}"))
    edit(raw, "training_product_videos_pair", lambda lines: lines.append(f"{product_of(2)},{item[2]}"))
    edit(raw, "training_product_videos_pair", lambda lines: lines.append(f"{product_of(3)}, 77777"))
    edit(raw, "training_video_asrs", lambda lines: lines.append(f"{item[3]}, another text"))
    edit(raw, "training_video_asrs", lambda lines: lines.remove(f"{item[4]},  {TEXT}{item[4]} "))
    edit(raw, "training_video_frames", lambda lines: lines.append(f"{item[5]}, 80, another.jpg"))
    edit(
        raw,
        "training_video_frames",
        lambda lines: lines.append(f"{item[6]}, 7, {picture_of('videos', item[6], 2)[:-4]}"),
    )
    first = raw / "videos" / picture_of("videos", item[7], 0)
    first.write_bytes(first.read_bytes()[:-60])
    for frame in range(3):
        (raw / "videos" / picture_of("videos", item[14], frame)).write_bytes(b"")
    build(raw, tmp_path / "data", "--configs", "videos", "--max_skipped_percent", "50")
    test_item = f"{product_of(14)}/{item[14]}"
    assert report_of(tmp_path / "data", "videos") == {
        ("training videos", item[0], "in no pair file"),
        ("training videos", item[1], "several products"),
        ("lines", item[2], "again"),
        ("training videos", f"{product_of(3)}/77777", "no pictures"),
        ("lines", item[3], "again"),
        ("lines", item[5], "again"),
        ("pictures", first.stem, "undecodable"),
        *[("pictures", Path(picture_of("videos", item[14], frame)).stem, "zero bytes") for frame in range(3)],
        ("test videos", test_item, "no usable picture"),
    }
    source, metadata = open_set(tmp_path / "data", "videos")
    rows = {row["item_id"].decode(): row for row in source}
    assert not rows.keys() & {item[0], item[1], "77777"} and len(rows) == 18 - 2
    assert rows[item[3]]["text"].decode() == f"{TEXT}{item[3]}" and rows[item[4]]["text"] == b""
    frames = {product: texts(rows[item[product]]["frame_ids"]) for product in (5, 6, 7)}
    expected = {
        product: [Path(picture_of("videos", item[product], frame)).stem for frame in range(3)] for product in (5, 6, 7)
    }
    expected[6].insert(1, expected[6][2])  # without its extension, at 7 between 0 and 80
    assert frames == expected | {7: expected[7][1:]}
    assert metadata == {
        "train": {"num_rows": 19, "skipped": 3},
        "test": {"num_rows": 6, "skipped": {test_item: "no usable picture"}},
    }
    with pytest.raises(SystemExit, match=r"found .*3 of 19 training videos skipped .*expected at most 1 %"):
        build(raw, tmp_path / "other", "--configs", "videos")


def test_an_image_twice_on_a_page(tmp_path):
    raw = write_raw(tmp_path / "raw")
    edit(raw, "training_page_images", lambda lines: lines.append(lines[0]))
    build(raw, tmp_path / "data", "--configs", "pages", "--max_skipped_percent", "5")
    assert report_of(tmp_path / "data", "pages") == {("lines", item_of("pages", 0), "again")}
    row = next(row for row in open_set(tmp_path / "data", "pages")[0] if row["item_id"].decode() == item_of("pages", 0))
    assert len(row["frames"]) == 2


# What is refused


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("training_product_videos_pair", "99000", r"_pair.txt:3: found '99000', expected 2 columns: product, item"),
        ("training_product_videos_pair", "99000, 5, 6", r"_pair.txt:3: found '99000, 5, 6', expected 2 columns"),
        ("training_product_videos_pair", "99000, ", r"_pair.txt:3: found '99000, ', expected 2 columns"),
        ("training_product_videos_pair", "99000\t5", r"_pair.txt:3: found '99000\\t5', expected 2 columns"),
        ("training_product_videos_pair", "", r"_pair.txt:3: found '', expected 2 columns"),
        ("training_video_asrs", "12", r"_asrs.txt:3: found '12', expected 2 columns: item, text"),
        ("training_video_frames", "12, a.jpg", r"_frames.txt:3: found '12, a.jpg', expected 3 columns: item, num"),
        ("training_video_frames", "12, a, a.jpg", r"_frames.txt:3: found '12, a, a.jpg', expected 3 columns"),
        ("training_video_frames", "12, -3, a.jpg", r"_frames.txt:3: found '12, -3, a.jpg', expected 3 columns"),
        ("training_video_frames", "12, 1, 2, a.jpg", r"_frames.txt:3: found '12, 1, 2, a.jpg', expected 3 columns"),
        ("training_video_frames", f"{item_of('videos', 0)}, 1, ../a.jpg", r"found 'videos/../a.jpg', expected a path"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path, name, line, message):
    raw = write_raw(tmp_path / "raw")
    edit(raw, name, lambda lines: lines.insert(2, line))
    with pytest.raises(SystemExit, match=message):
        build(raw, tmp_path / "data", "--configs", "videos")
    assert not list((tmp_path / "data").rglob("1.0.0"))


def test_bytes_that_are_not_utf_8(tmp_path):
    raw = write_raw(tmp_path / "raw")
    path = raw / "test_live_asrs.txt"
    path.write_bytes(b"1, \xff\n" + path.read_bytes())
    with pytest.raises(SystemExit, match=r"test_live_asrs.txt:1: found bytes that are not UTF-8"):
        build(raw, tmp_path / "data", "--configs", "lives")


# Restart, and memory


def test_a_build_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(items, "EXAMPLES_PER_SHARD", 5)
    raw = write_raw(tmp_path / "raw", num_train=12)
    target = tmp_path / "data" / "rope" / "lives"
    with monkeypatch.context() as patch:
        written = []

        def write_two(*arguments):
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(arguments)
            return real(*arguments)

        real = builder._write
        patch.setattr(builder, "_write", write_two)
        with pytest.raises(KeyboardInterrupt):
            build(raw, tmp_path / "data", "--configs", "lives")
    assert not (target / "1.0.0").exists()

    def joined(*arguments):
        raise AssertionError("the files were joined already")

    with monkeypatch.context() as patch:
        patch.setattr(items, "read_items", joined)
        build(raw, tmp_path / "data", "--configs", "lives")
    assert "2 of 6 shards already exist" in capsys.readouterr().err
    assert len(open_set(tmp_path / "data", "lives")[0]) == 18
    assert sorted(path.name for path in target.iterdir()) == ["1.0.0", "skipped.jsonl"]


def test_a_mended_text_writes_one_shard_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(items, "EXAMPLES_PER_SHARD", 5)
    raw = write_raw(tmp_path / "raw", num_train=12)
    broken = raw / "lives" / picture_of("lives", item_of("lives", 12), 0)
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(SystemExit, match="1 of .* pictures skipped"):
        build(raw, tmp_path / "data", "--configs", "lives", "--max_skipped_percent", "0.1")
    broken.write_bytes(whole)
    edit(raw, "training_live_asrs", lambda lines: lines.__setitem__(4, lines[4] + " and more"))
    build(raw, tmp_path / "data", "--configs", "lives")
    assert "5 of 6 shards already exist" in capsys.readouterr().err
    rows = list(open_set(tmp_path / "data", "lives")[0])
    assert sum(row["text"].decode().endswith(" and more") for row in rows) == 1


def test_sorting_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(external_sort, "RUN_BYTES", 1000)
    monkeypatch.setattr(external_sort, "MAX_OPEN_RUNS", 4)
    numbers = np.random.default_rng(0).integers(0, 10**6, 3000)
    lines = [f"{number}\0\xff{number % 7}\n".encode("latin-1") for number in numbers]
    found = sort_lines(iter(lines), tmp_path)
    assert [next(found) for _ in range(2)] == sorted(lines)[:2] and len(list(tmp_path.iterdir())) == 1
    assert list(found) == sorted(lines)[2:]
    assert list(sort_lines(iter([]), tmp_path)) == []
    assert not list(tmp_path.iterdir())


# The program


@pytest.mark.slow
def test_the_program_trains_on_pairs_and_evaluates_between_domains(tmp_path):
    raw = write_raw(tmp_path / "raw", num_train=10, num_test=6)
    for frame in range(12):  # of 16 * 3 items this one cannot be read
        (raw / "lives" / picture_of("lives", item_of("lives", 14), frame)).unlink()
    build(raw, tmp_path / "data", "--max_skipped_percent", "20")
    overrides = dict(data__num_workers=0, model__dtype="float32", loss__pmd_weight=0, train__total_steps=3)
    command = fixtures.command(tmp_path / "data", tmp_path / "run", config="configs/rope.py", **overrides)
    done = fixtures.run(command)
    assert done.returncode == 0, done.stderr
    assert sorted(fixtures.losses(tmp_path / "run")) == [1, 2, 3]
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert [(result["step"], result["ranking"]) for result in results] == [(0, "embedding"), (3, "embedding")]
    sizes = {
        task: {
            pair: (result["score"]["num_queries"], result["num_missing"], result["galleries"]["max_size"])
            for pair, result in pairs.items()
        }
        for task, pairs in results[-1].items()
        if task in ("retrieval", "one_shot")
    }
    # Six products with 1, 2, 1, 2, 1 and 2 items: 9 in each domain; the one that is missing is a miss, and so are
    # those that look for it.
    assert sizes == {
        "retrieval": {
            "pages to videos": (9, 0, 9),
            "pages to lives": (9, 1, 8),
            "videos to pages": (9, 0, 9),
            "videos to lives": (9, 1, 8),
            "lives to pages": (9, 1, 9),
            "lives to videos": (9, 1, 9),
        },
        "one_shot": {
            "pages to videos": (9, 0, 6),
            "pages to lives": (9, 1, 5),
            "videos to pages": (9, 0, 6),
            "videos to lives": (9, 1, 5),
            "lives to pages": (9, 1, 6),
            "lives to videos": (9, 1, 6),
        },
    }
    assert "pages-to-lives-one-shot" in done.stderr and "After 3 steps." in done.stdout
    assert done.stdout.count("  lives to videos") == 0 and done.stdout.count("\nlives to videos ") == 3
    again = fixtures.run([*command, "--mode=eval"])
    assert again.returncode == 0 and again.stdout == done.stdout
    assert "pages to lives" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    lines = (tmp_path / "run" / "rankings.jsonl").read_text().splitlines()
    assert len(lines) == 2 * (6 * 9 - 4), "the item that is missing neither asks nor is asked for"

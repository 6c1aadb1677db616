"""Tests of data/sample/film.py, run as its users run it; its plan is also drawn many times."""

import collections
import csv
import hashlib
import json
import re
import subprocess
import sys
import types

import av
import numpy as np
import pytest
from PIL import Image

from data.sample import film as program
from data.sample.phrases import ENGLISH
from rice_jax.index.catalog import read_shop
from tests.data.test_simulate import SAMPLE, refused

SHORT = ("--videos=2", "--products_per_video=2", "--shown_seconds", "6", "8", "--gap_seconds", "2", "3")


def film(out, *flags):
    command = [sys.executable, SAMPLE / "film.py", "--products", SAMPLE, "--out", out, "--workers=2", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def made(out, *flags):
    done = film(out, *flags)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Videos in which nothing moves but what is shown."""
    return made(tmp_path_factory.mktemp("film") / "films", *SHORT, "--clutter=0", "--distractors=0", "--seed=3")


def truth_of(out):
    return [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]


def shop_of(out):
    with (out / "shop.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def seconds_of(path, frame_rate=4):
    """A picture of each second, from its middle, and how long the file says it is."""
    with av.open(str(path)) as file:
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        return np.array(pictures[frame_rate // 2 :: frame_rate], np.int16), file.duration / 1e6


def test_truth_covers_the_video(plain):
    videos = truth_of(plain)
    assert [v["gallery"] for v in videos] == ["test-1", "test-2"], "the shops in turn"
    for video in videos:
        segments = video["segments"]
        assert segments[0]["start"] == 0 and segments[-1]["end"] == video["seconds"]
        assert all(a["end"] == b["start"] for a, b in zip(segments, segments[1:], strict=False))
        assert segments[0]["product"] is None and segments[-1]["product"] is None
        for segment in segments:
            least, most = (2, 3) if segment["product"] is None else (6, 8)
            assert least <= segment["end"] - segment["start"] <= most
        shown = [s["product"] for s in segments if s["product"]]
        gallery = {row["id"] for row in shop_of(plain) if row["gallery"] == video["gallery"]}
        assert len(set(shown)) == 2 and set(shown) <= gallery and len(gallery) == 30


def test_a_second_of_video_shows_what_the_truth_says(plain):
    compared = 0
    for video in truth_of(plain):
        pictures, duration = seconds_of(plain / video["video"])
        assert duration == pytest.approx(video["seconds"]) and pictures.shape == (video["seconds"], 480, 270, 3)
        empty = np.zeros(len(pictures), bool)
        for segment in video["segments"]:
            empty[segment["start"] : segment["end"]] = segment.get("gap") == "empty"
        if not empty.any():
            continue
        changed = (np.abs(pictures - np.median(pictures[empty], axis=0)).max(axis=3) > 40).mean(axis=(1, 2))
        assert (changed[empty] < 0.001).all(), "nobody shows anything"
        for segment in video["segments"]:
            here = changed[segment["start"] : segment["end"]]
            if segment["product"]:
                assert (here > 0.003).sum() == segment["seen"] >= 3
            elif segment["gap"] == "other":
                assert (here > 0.003).any()
        compared += 1
    assert compared, "choose a seed with such a gap"


def test_shop_can_be_indexed(plain):
    rows = shop_of(plain)
    assert [r["gallery"] for r in rows].count("test-1") == 30 and len(rows) == len({r["id"] for r in rows}) == 60
    for row in rows:
        copy = plain / row["path"]
        assert copy == plain / "shop" / row["gallery"] / f"{row['id']}.jpg" and row["title"]
        assert copy.read_bytes() == (SAMPLE / "images" / f"{row['id']}.jpg").read_bytes()
    with (plain / "attribution.csv").open(newline="") as file:
        credits = {row["product_id"]: row for row in csv.DictReader(file)}
    assert set(credits) == {r["id"] for r in rows} and all(row["licence"] for row in credits.values())


def test_products_of_several_pictures_can_be_indexed(tmp_path):
    flags = ["--videos=1", "--products_per_video=1", "--shown_seconds", "1", "1", "--gap_seconds", "1", "1"]
    out = made(tmp_path / "several", *flags, "--pictures", "2", "4")
    found = read_shop(out / "shop.csv")
    assert list(map(as_in_both, found)) == list(map(as_in_both, read_shop(out / "shop")))
    counts = collections.Counter(own.product for own in found)
    assert len(counts) == 30 and set(counts.values()) == {2, 3, 4}
    for own in found:
        with Image.open(own.path) as picture:
            assert own.id == own.product or picture.size == (240, 240)
        if own.id == own.product:
            assert own.path.read_bytes() == (SAMPLE / "images" / f"{own.product}.jpg").read_bytes()


def as_in_both(picture):
    """What a picture is, whether a CSV or a directory says it."""
    return picture.gallery, picture.product, picture.id, picture.path.resolve()


def test_speech_is_timed(plain):
    """Each video has subtitles in the order of time, within the video; the shops' languages differ."""
    letters = []
    for video in truth_of(plain):
        text = (plain / video["video"]).with_suffix(".srt").read_text(encoding="utf-8")
        clock = r"(\d\d):(\d\d):(\d\d),(\d{3})"
        blocks = re.findall(rf"^\d+\n{clock} --> {clock}\n(.+)\n$", text, re.MULTILINE)
        assert len(blocks) == text.count("-->") > 3
        times = []
        for *numbers, _ in blocks:
            for hours, minutes, seconds, milliseconds in (numbers[:4], numbers[4:]):
                times.append(3600 * int(hours) + 60 * int(minutes) + int(seconds) + int(milliseconds) / 1000)
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= video["seconds"] + 2
        letters.append(sum("\u4e00" <= letter <= "\u9fff" for letter in text) > 20)
    assert letters == [False, True]


def test_seed_alone_decides_every_byte(plain, tmp_path):
    def digests(out):
        return {p.relative_to(out): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}

    flags = [*SHORT, "--clutter=0", "--distractors=0"]
    assert digests(made(tmp_path / "same", *flags, "--seed=3", "--workers=1")) == digests(plain)
    other = made(tmp_path / "other", *flags, "--seed=4")
    assert truth_of(other) != truth_of(plain)
    assert {r["id"] for r in shop_of(other)} == {r["id"] for r in shop_of(plain)}, "the split has a seed of its own"


def test_training_shops_are_of_other_products(plain, tmp_path):
    flags = ["--videos=16", "--products_per_video=1", "--shown_seconds", "1", "1", "--gap_seconds", "1", "1"]
    train = made(tmp_path / "train", *flags, "--split=train", "--frame_rate=1")
    assert len(shop_of(train)) == 491
    assert not {r["id"] for r in shop_of(train)} & {r["id"] for r in shop_of(plain)}
    video = truth_of(train)[0]
    assert video["gallery"] == "train-1" and len(seconds_of(train / video["video"], 1)[0]) == video["seconds"] == 3


def test_a_small_shop(tmp_path):
    flags = ["--videos=1", "--products_per_video=3", "--shop_products=10", "--lives=2"]
    small = made(tmp_path / "small", *flags, "--shown_seconds", "1", "1", "--gap_seconds", "1", "1")
    (video,) = truth_of(small)
    gallery = {r["id"] for r in shop_of(small)}
    assert {r["gallery"] for r in shop_of(small)} == {"test-1"}, "of the other shop nothing is shown"
    assert len(gallery) == 10 and len([s for s in video["segments"] if s["product"] in gallery]) == 3


def test_gaps_show_nothing_of_the_shop():
    own, other = [f"own{i}" for i in range(12)], [f"o{i}" for i in range(9)]
    products = [[types.SimpleNamespace(product_id=name) for name in names] for names in (own, other)]
    store = program.Shop("s", tuple(products[0]), products[1], ENGLISH)
    flags = types.SimpleNamespace(
        products_per_video=5, shown_seconds=(8, 40), gap_seconds=(5, 20), distractors=8, clutter=1.0
    )
    kinds, follows, beside = {}, 0, set()
    for seed in range(200):
        segments = program.plan_video(store, flags, np.random.default_rng(seed))
        for before, segment in zip([None, *segments], segments, strict=False):
            around = set(segment.distractors)
            assert len(around) == len(segment.distractors) <= 8
            if segment.product:
                follows += bool(before.product)
                beside |= around
                assert segment.presented == segment.product not in around and segment.gap is None
                continue
            kinds[segment.gap] = kinds.get(segment.gap, 0) + 1
            assert not (around | {segment.presented}) & set(own)
            assert (segment.presented is not None) == (segment.gap == "other") and segment.presented not in around
            assert bool(around) >= (segment.gap == "around") and not (segment.gap == "empty" and around)
    assert min(kinds[k] for k in ("empty", "around", "other")) > 150
    assert 0.15 < follows / (200 * 4) < 0.35, "a quarter of the products follow without a gap"
    assert beside >= set(own) and beside & set(other), "as in clips"


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--products_per_video=31"], ["--products_per_video=31", "found 30"]),
        (["--shop_products=5"], ["--products_per_video=8", "found 5"]),
        (["--lives=1", "--test_products=30"], ["--lives=1", "another shop"]),
        (["--gap_seconds", "5", "4"], ["--gap_seconds 5 4"]),
        (["--pictures", "0", "4"], ["--pictures 0 4", "at least 1"]),
        (["--videos=0"], ["--videos=0"]),
        (["--clutter=2"], ["--clutter=2"]),
        (["--products=nowhere"], ["nowhere/products.csv", "not found"]),
    ],
)
def test_bad_flags_are_named(tmp_path, capsys, flags, expected):
    errors = refused(program.main, capsys, "--products", SAMPLE, "--out", tmp_path / "films", *flags)
    assert all(word in errors for word in expected), errors
    assert not (tmp_path / "films").exists()


def test_does_not_mix_with_earlier_files(tmp_path):
    (tmp_path / "old.txt").write_text("x")
    done = film(tmp_path)
    assert done.returncode == 1 and "not empty" in done.stderr

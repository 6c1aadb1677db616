"""What all builders share: sizes of pictures, Beam."""

import io
import os
import struct
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from data import builder
from data.box_units import box_as_shown, relative_box
from data.errors import Unusable
from data.pictures import RawPictures
from data.skip_report import SkipReport
from tests.data.raw_lpr4m import image_id_of, jpeg, write_raw
from tests.data.test_lpr4m import build, edit_row, open_set


@pytest.mark.parametrize(("size", "stored"), [((60, 80), (30, 40)), ((200, 33), (182, 30)), ((30, 400), (30, 400))])
def test_a_picture_is_made_smaller_by_its_short_side_only_where_it_is_larger(tmp_path, size, stored):
    encoded = jpeg(3, size)
    (tmp_path / "a.jpg").write_bytes(encoded)
    picture = RawPictures(tmp_path, max_short_side=30).read("a.jpg", SkipReport())
    assert (picture.width, picture.height) == size  # boxes in pixels are of the picture that was published
    image = Image.open(io.BytesIO(picture.encoded))
    assert image.size == stored and (picture.encoded == encoded) == (size == stored)
    colors = [np.asarray(Image.open(io.BytesIO(one))).mean((0, 1)) for one in (encoded, picture.encoded)]
    np.testing.assert_allclose(*colors, atol=3)
    assert RawPictures(tmp_path).read("a.jpg", SkipReport()).encoded == encoded


def test_the_smallest_jpeg_and_the_longest_exif_are_read(tmp_path):
    for number, size in enumerate([(7, 200), (200, 7), (5, 5)]):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(3, size))
        picture = RawPictures(tmp_path, max_short_side=30).read(f"{number}.jpg", SkipReport())
        assert (picture.width, picture.height) == size
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    for suffix in ("PNG", "WEBP"):
        Image.new("RGB", (60, 80)).save(tmp_path / f"a.{suffix.lower()}", suffix, exif=exif)
        stored = (tmp_path / f"a.{suffix.lower()}").read_bytes()
        picture = RawPictures(tmp_path, max_short_side=30).read(f"a.{suffix.lower()}", SkipReport())
        assert picture.encoded == stored, "a JPEG has no place for it"
    chunks, end = (tmp_path / "a.png").read_bytes(), b"\0\0\0\0IEND"
    start = chunks.index(b"eXIf") - 4
    length = 12 + int.from_bytes(chunks[start : start + 4], "big")
    moved = chunks[:start] + chunks[start + length :].replace(end, chunks[start : start + length] + end)
    (tmp_path / "late.png").write_bytes(moved)
    assert RawPictures(tmp_path, max_short_side=30).read("late.png", SkipReport()).encoded == moved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_short_side", "-5"], "--max_short_side=-5: expected 0 or more"),
        (["--workers", "0"], "--workers=0: expected 1 or more"),
        (["--max_skipped_percent", "101"], "--max_skipped_percent=101.0: expected 0 to 100"),
        (["--option", "workers=4"], "--option: found workers, expected some of"),
    ],
)
def test_what_a_build_cannot_be_told(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        build(write_raw(tmp_path / "raw"), tmp_path / "data", *arguments)
    assert message in f"{ended.value} {capsys.readouterr().err}"


def test_boxes_stay_where_they_are_in_a_smaller_picture(tmp_path):
    raw = write_raw(tmp_path / "raw")
    build(raw, tmp_path / "data", "--configs", "train", "--max_short_side", "9")
    example = open_set(tmp_path / "data", "train")[0][0]
    assert Image.open(io.BytesIO(example["frames"][0])).size == (9, 16)
    box = relative_box((3, 6, 24, 36), "pixels", (27, 48), "x")
    np.testing.assert_allclose(example["boxes"][0], list(box), rtol=1e-6)


def turned(picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(file := io.BytesIO(), "JPEG", quality=95, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_turned_with_its_picture(orientation):
    stored = Image.new("RGB", (80, 40))
    stored.paste("white", (16, 8, 48, 16))
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(turned(stored, orientation))))
    left, top, right, bottom = shown.convert("L").point(lambda level: 255 * (level > 127)).getbbox()
    expected = top / shown.height, left / shown.width, bottom / shown.height, right / shown.width
    box = tfds.features.BBox(ymin=0.2, xmin=0.2, ymax=0.4, xmax=0.6)
    np.testing.assert_allclose(box_as_shown(box, orientation), expected, atol=1e-9)
    assert not any(box_as_shown(tfds.features.BBox(0.0, 0.0, 0.0, 0.0), orientation)), "no box"


def test_boxes_of_a_turned_frame_are_turned_in_all_sets(tmp_path):
    raw = write_raw(tmp_path / "raw")
    plain, other = tmp_path / "plain", tmp_path / "turned"
    configs = "train,query,detection_train,detection_test"
    build(raw, plain, "--configs", configs)
    for file in (raw / "frames").rglob("*.jpg"):
        file.write_bytes(turned(Image.open(file), 6))  # a viewer turns it clockwise: what is left comes to the top
    build(raw, other, "--configs", configs)
    for config in configs.split(","):
        for before, after in zip(open_set(plain, config)[0], open_set(other, config)[0], strict=True):
            assert len(before["boxes"]) == len(after["boxes"])
            for (top, left, bottom, right), found in zip(before["boxes"], after["boxes"], strict=True):
                expected = (left, 1 - bottom, right, 1 - top) if bottom else (0, 0, 0, 0)
                np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_smaller_picture_is_shown_as_the_larger_one(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 80)).save(tmp_path / "turned.jpg", exif=exif, icc_profile=srgb)
    picture = RawPictures(tmp_path, max_short_side=30).read("turned.jpg", SkipReport())
    smaller = Image.open(io.BytesIO(picture.encoded))
    assert (smaller.size, smaller.getexif()[0x0112], smaller.info["icc_profile"]) == ((30, 40), 6, srgb)
    assert picture.orientation == 6
    for name, mode in (("clear.png", "RGBA"), ("gray.png", "I;16")):  # a JPEG cannot hold them
        Image.new(mode, (60, 80)).save(tmp_path / name)
        kept = RawPictures(tmp_path, max_short_side=30).read(name, SkipReport())
        assert kept.encoded == (tmp_path / name).read_bytes()
    for gamma, is_smaller in ((100_000, False), (45_455, True)):
        chunks = PngImagePlugin.PngInfo()
        chunks.add(b"gAMA", struct.pack(">I", gamma))
        Image.new("RGB", (60, 80)).save(tmp_path / "gamma.png", pnginfo=chunks)
        read = RawPictures(tmp_path, max_short_side=30).read("gamma.png", SkipReport())
        assert (read.encoded != (tmp_path / "gamma.png").read_bytes()) == is_smaller


def test_pictures_are_found_by_other_spellings_and_hidden_files_are_left_out(tmp_path):
    for name in ("2.jpg", "1.JPG", "3.jpeg", "4.JPEG", "big.PNG"):
        (tmp_path / name).write_bytes(jpeg(3, (8, 8)))
    for name in ("._1.JPG", "._2.jpg", ".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / name).write_bytes(b"no picture")
    pictures = RawPictures(tmp_path)
    assert pictures.stems(".") == ["1", "2", "3", "4"] and pictures.stems("nowhere") == []
    for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg", "big.png"):
        assert pictures.read(name, SkipReport()).encoded == jpeg(3, (8, 8))


def test_what_is_no_picture_is_neither_waited_for_nor_run(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "script.jpg", "EPS")
    for name, reason in (("pipe.jpg", "missing"), ("script.jpg", "undecodable")):
        with pytest.raises(Unusable, match=reason):
            RawPictures(tmp_path).read(name, SkipReport())


def test_numbers_without_a_white_are_no_picture(tmp_path):
    for mode in ("I", "F"):
        Image.new(mode, (8, 8)).save(tmp_path / "numbers.jpg", "TIFF")
        with pytest.raises(Unusable, match="undecodable"):
            RawPictures(tmp_path).read("numbers.jpg", SkipReport())


def test_a_long_text_does_not_cost_a_png(tmp_path):
    history = PngImagePlugin.PngInfo()
    history.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "long.png", pnginfo=history)
    assert RawPictures(tmp_path).read("long.png", SkipReport()).width == 8


def test_beam_writes_what_one_machine_writes(tmp_path, monkeypatch):
    pytest.importorskip("apache_beam", reason="the extra 'beam' is not installed")
    raw = write_raw(tmp_path / "raw", parts=3)
    (raw / "images" / f"{image_id_of(1)}.jpg").unlink()
    arguments = ["--configs", "train,query", "--max_skipped_percent", "50"]
    options = "direct_num_workers=2,direct_running_mode=multi_processing"
    build(raw, tmp_path / "one", *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(builder, "ArrayRecordWriter", None)  # in this process: what is written Beam's workers write
        build(raw, tmp_path / "beam", *arguments, "--beam_runner", "DirectRunner", "--beam_options", options)
    one, beam = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "beam"))
    assert [path.relative_to(tmp_path / "one") for path in one] == [
        path.relative_to(tmp_path / "beam") for path in beam
    ]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in beam]
    assert len(open_set(tmp_path / "beam", "train")[0]) == 4
    edit_row(raw, 1, column=0, text="clip")
    with pytest.raises(SystemExit, match=r"part_00\.txt:2 column 0: found 'clip'"):
        build(raw, tmp_path / "wrong", *arguments, "--beam_runner", "DirectRunner", "--beam_options", options)


def test_without_beam_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    raw = write_raw(tmp_path / "raw", num_train=2)
    with pytest.raises(SystemExit, match=r"--beam_runner: found no apache-beam, expected the extra"):
        build(raw, tmp_path / "data", "--beam_runner", "DirectRunner")

"""What all builders share: sizes of pictures, Beam."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from data import builder
from data.box_units import relative_box
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


def test_boxes_stay_where_they_are_in_a_smaller_picture(tmp_path):
    raw = write_raw(tmp_path / "raw")
    build(raw, tmp_path / "data", "--configs", "train", "--max_short_side", "9")
    example = open_set(tmp_path / "data", "train")[0][0]
    assert Image.open(io.BytesIO(example["frames"][0])).size == (9, 16)
    box = relative_box((3, 6, 24, 36), "pixels", (27, 48), "x")
    np.testing.assert_allclose(example["boxes"][0], list(box), rtol=1e-6)


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

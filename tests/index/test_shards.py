"""A large catalog, embedded in shards by several processes."""

import dataclasses
import io
import json
import os
import re
import tarfile
import unicodedata

import numpy as np
import pyarrow.parquet as pq
import pytest

from rice_jax import cli
from rice_jax.eval.calibration import Calibration
from rice_jax.index import shards
from rice_jax.index.shards import build_shards, merge_shards
from rice_jax.index.store import FILE, read_index, write_index
from rice_jax.index.tars import read_pack
from rice_jax.models.weights import CheckpointError
from rice_jax.parallel import compilation
from rice_jax.types import DataError
from tests.index.test_store import assert_equal
from tests.index.updates import assert_same_rows, load
from tests.input.tiny_shop import picture


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def sample(number, **told):
    """The files of a picture as img2dataset writes them into its tars."""
    stem = f"{number:09}"
    row = {"key": stem, "url": f"https://example.com/{number}.jpg", "status": "success", "width": 40, "exif": "{}"}
    return {f"{stem}.jpg": picture(number, size=(40, 30)), f"{stem}.json": json.dumps(row | told).encode()}


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert not stop.value.code


@pytest.fixture
def tars(tmp_path):
    """Three tars of seven pictures; one of the second is broken, and one could not be downloaded."""
    directory = tmp_path / "tars"
    directory.mkdir()
    write_tar(directory / "00000.tar", sample(1, id="b") | sample(2, product="sofa", price=5, caption="A sofa"))
    broken = {"000000004.jpg": b"no picture", "000000004.json": b"{}"}
    write_tar(directory / "00001.tar", sample(3, product="sofa", gallery="live", Stock=None) | broken)
    write_tar(directory / "00002.tar", sample(5) | sample(6, id="a", title="Mug") | {"000000007.txt": b"no picture"})
    (directory / "00001_stats.json").write_text('{"count": 3, "successes": 2}')
    return directory


def test_ids_that_differ_in_their_accents_encoding_are_one(tmp_path):
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_tar(tmp_path / "0.tar", sample(1, id=one) | sample(2, id=two))
    found = read_pack(tmp_path / "0.tar")
    assert [picture.id for picture in found.pictures] == [one]
    assert [problem.endswith("a second time, expected every id once") for problem in found.problems] == [True]


def build(made, images, out, worker=(0, 1), **changes):
    return build_shards(images, out, load(made.weights), worker=worker, batch_size=8, num_threads=1, **changes)


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_shards_are_read_as_one_index(made, tmp_path, num_workers):
    made.write(d=4, e=5)
    whole = made.update()
    for worker in range(num_workers):
        build(made, made.pictures, tmp_path / "shards", (worker, num_workers), shard_size=2)
    assert sorted(os.listdir(tmp_path / "shards")) == [f"part-0000{number}.parquet" for number in range(3)]
    found = read_index(tmp_path / "shards")
    assert_same_rows(found, whole, atol=1e-6)
    assert found.sources == whole.sources


def test_a_job_that_was_killed_continues(made, tmp_path, embedded, monkeypatch):
    made.write(d=4, e=5, f=6)
    out, write = tmp_path / "shards", shards.write_index

    def killed(directory, index, shard):
        if shard.number == 1:
            raise KeyboardInterrupt
        write(directory, index, shard)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "write_index", killed)
        build(made, made.pictures, out, shard_size=2)
    assert embedded == ["a", "b", "c", "d"] and os.listdir(out) == ["part-00000.parquet"]
    with pytest.raises(DataError, match="found 1 of 3 shards, the first that is missing is part-00001.parquet; run"):
        read_index(out)
    embedded.clear()
    done = build(made, made.pictures, out, (1, 2), shard_size=2)
    assert embedded == ["c", "d"] and (done.num_embedded, done.num_shards, done.num_finished) == (2, 1, 0)
    done = build(made, made.pictures, out, shard_size=2)
    assert embedded == ["c", "d", "e", "f"] and (done.num_shards, done.num_finished) == (1, 2)
    assert build(made, made.pictures, out, shard_size=2).num_finished == 3
    assert read_index(out).image_ids == ["a", "b", "c", "d", "e", "f"]


def test_only_a_shard_whose_pictures_have_changed_is_embedded_again(made, tmp_path, embedded):
    build(made, made.pictures, tmp_path / "shards", shard_size=2)
    embedded.clear()
    made.write(c=30)
    os.utime(made.pictures / "c.jpg", (1, 1))
    build(made, made.pictures, tmp_path / "shards", shard_size=2)
    assert embedded == ["c"]


def test_pictures_of_tars(made, tmp_path, tars, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "shards"
    done = build(made, tars, out)
    assert (done.num_embedded, done.num_shards, done.num_unusable, done.num_missing) == (5, 3, 1, 1)
    index = read_index(out)
    names = list(zip(index.gallery_ids, index.image_ids, index.product_ids, index.titles, strict=True))
    assert names == [
        ("", "000000002", "sofa", "A sofa"),
        ("", "000000005", "000000005", ""),
        ("", "a", "a", "Mug"),
        ("", "b", "b", ""),
        ("live", "000000003", "sofa", ""),
    ]
    assert index.fields[0] == {"url": "https://example.com/2.jpg", "price": "5"}
    assert index.fields[4] == {"url": "https://example.com/3.jpg"}
    assert index.paths[2] == str(tars / "00002.tar" / "000000006.jpg")
    [line] = (out / "part-00001.txt").read_text().splitlines()
    assert line.startswith(f"{tars / '00001.tar' / '000000004.jpg'}: it is not a picture that can be read")
    assert "1 cannot be used, see part-00001.txt" in caplog.text
    made.write(**{name: number for number, name in enumerate(["c", "b"])})
    (made.pictures / "b.jpg").write_bytes(picture(1, size=(40, 30)))
    whole = made.update()
    np.testing.assert_allclose(index.vectors[3], whole.vectors[whole.image_ids.index("b")], atol=1e-6)
    assert index.digests[3] == whole.digests[whole.image_ids.index("b")]


def test_folders_that_img2dataset_writes_are_read_as_tars(tars, tmp_path):
    folders = tmp_path / "folders"
    for path in sorted(tars.glob("*.tar")):
        with tarfile.open(path) as tar:
            tar.extractall(folders / path.stem, filter="data")
        (folders / f"{path.stem}_stats.json").write_text('{"count": 2, "successes": 2}')
    pieces = shards.find_pieces(folders)
    assert len(pieces) == 3
    for piece, path in zip(pieces, sorted(tars.glob("*.tar")), strict=True):
        expected = read_pack(path)
        found = piece.read()
        assert [own.read() for own in found.pictures] == [own.read() for own in expected.pictures]
        assert [own[:3] for own in found.pictures] == [own[:3] for own in expected.pictures]


def test_what_is_wrong_with_a_tar_is_told(tmp_path):
    path = tmp_path / "00000.tar"
    write_tar(path, sample(1, id="a") | sample(2, id="a") | sample(3) | {"000000004.jpg": b"", "000000004.json": b"[1"})
    found = read_pack(path)
    assert [own.id for own in found.pictures] == ["000000003", "a"]
    assert f"{path}/000000002.jpg: found the id 'a' a second time, expected every id once" in found.problems
    assert any(
        re.match(rf"{path}/000000004.json: .*; expected names and values as JSON", text) for text in found.problems
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    found = read_pack(path)
    assert any(f"{path}: is damaged after" in text and "download it again" in text for text in found.problems)


def test_texts_and_names_that_are_not_utf_8(made, tmp_path):
    directory = tmp_path / "tars"
    directory.mkdir()
    good = sample(1, id="a", title="half an emoji \ud83d", **{"na\ud83dme": "more \ud83d"})
    bad = {name.replace("000000002", "\udcff"): content for name, content in sample(2).items()}
    write_tar(directory / "00000.tar", good | bad)
    done = build(made, directory, tmp_path / "shards")
    assert (done.num_embedded, done.num_unusable) == (1, 1)
    index = read_index(tmp_path / "shards")
    assert index.titles == ["half an emoji ?"] and index.fields[0]["na?me"] == "more ?"
    listed = (tmp_path / "shards" / "part-00000.txt").read_text()
    assert "00000.tar/?.jpg: found a name that is not UTF-8; rename the file" in listed


def test_another_type_is_embedded_again(made, tmp_path, tars):
    out = tmp_path / "shards"
    build(made, tars, out)
    assert build(made, tars, out, store_as="float32").num_finished == 3
    assert build(made, tars, out, store_as="int8").num_finished == 0
    assert build(made, tars, out, store_as="int8").num_finished == 3 and read_index(out).dtype == "int8"


def test_a_shard_without_a_usable_picture_is_finished(made, tmp_path, tars):
    for number, files in enumerate([{"1.jpg": b"broken"}, {"readme.txt": b""}]):
        write_tar(tars / f"0000{number}.tar", files)
    done = build(made, tars, tmp_path / "shards")
    assert done.num_embedded == 2 and build(made, tars, tmp_path / "shards").num_finished == 3
    assert read_index(tmp_path / "shards").image_ids == ["000000005", "a"]


def test_an_id_of_two_shards(made, tmp_path, tars):
    write_tar(tars / "00001.tar", sample(9, id="a"))
    build(made, tars, tmp_path / "shards")
    with pytest.raises(DataError, match="000000006.jpg: found the id 'a' of gallery '', which .*000000009.jpg has too"):
        read_index(tmp_path / "shards")


def test_shards_are_merged(made, tmp_path, caplog):
    caplog.set_level("INFO")
    made.write(d=4, e=5)
    build(made, made.pictures, tmp_path / "shards", shard_size=2)
    index = merge_shards(tmp_path / "shards", tmp_path / "shop", dimensions=3, store_as="int8")
    assert "5 pictures of 5 products from 3 shards; 0 could not be used, and 0 not be downloaded" in caplog.text
    assert_equal(read_index(tmp_path / "shop"), index)
    assert index.vectors.shape == (5, 3) and index.dtype == "int8"
    with pytest.raises(DataError, match="shards: holds the shards, expected another directory for the index"):
        merge_shards(tmp_path / "shards", tmp_path / "shards")
    with pytest.raises(FileNotFoundError, match="shop: found no shards"):
        merge_shards(tmp_path / "shop", tmp_path / "other")


def test_only_the_shards_that_a_catalog_has_got_are_embedded(made, tmp_path, tars):
    last = (tars / "00002.tar").rename(tmp_path / "00002.tar")
    out = tmp_path / "shards"
    assert build(made, tars, out).num_embedded == 3
    last.rename(tars / last.name)
    done = build(made, tars, out)
    assert (done.num_embedded, done.num_shards, done.num_finished) == (2, 1, 2)
    assert len(read_index(out).image_ids) == 5
    assert build(made, tars, out).num_finished == 3


def test_merging_again_keeps_a_calibration_of_own_clips_and_no_other_index(made, tmp_path):
    build(made, made.pictures, tmp_path / "shards", shard_size=2)
    shop = tmp_path / "shop"
    index = merge_shards(tmp_path / "shards", shop)
    own = Calibration(30.0, 9.0, 0.6, 40, 4, index.about.fingerprint, source="clips.csv")
    write_index(shop, dataclasses.replace(index, about=dataclasses.replace(index.about, calibration=own)))
    assert merge_shards(tmp_path / "shards", shop).about.calibration == own == read_index(shop).about.calibration
    write_index(shop, dataclasses.replace(index, sources=("/another/shop.csv",)))
    with pytest.raises(DataError, match="shop: holds an index of /another/shop.csv, and the shards are of .*pictures"):
        merge_shards(tmp_path / "shards", shop)
    write_index(shop, dataclasses.replace(index, about=dataclasses.replace(index.about, fingerprint="f" * 64)))
    with pytest.raises(CheckpointError, match="shop: another model made this index"):
        merge_shards(tmp_path / "shards", shop)


def test_shards_and_an_index_have_directories_of_their_own(made, tmp_path):
    build(made, made.pictures, made.directory)
    with pytest.raises(DataError, match="holds shards, expected an index in one file; make one: rice index merge"):
        made.update()
    with pytest.raises(DataError, match="holds shards, expected an index in one file"):
        write_index(made.directory, read_index(made.directory))
    for path in made.directory.iterdir():
        path.unlink()
    made.update()
    with pytest.raises(DataError, match="holds an index, expected a directory of its own for shards"):
        build(made, made.pictures, made.directory)


def test_shards_of_another_model_or_job(made, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    build(made, made.pictures, out, shard_size=2)
    other = load(made.weights, resize=24)
    with pytest.raises(CheckpointError, match="part-00000.parquet: another model made this shard"):
        build_shards(made.pictures, out, other, shard_size=2)
    build(made, made.pictures, out)
    with pytest.raises(DataError, match="found shards of several jobs, which have 1 and 2 shards; delete those of the"):
        read_index(out)
    (out / "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="part-00001.parquet: is damaged, or no shard; delete it, and run"):
        read_index(out)


def test_the_command_embeds_a_share(made, tmp_path, tars, monkeypatch, capsys):
    monkeypatch.setattr(compilation, "keep_compiled", lambda: None)
    monkeypatch.setattr("rice_jax.index.model.load_model", load)
    out = tmp_path / "shards"
    for worker, told in (("1/2", "1 picture in 1 shard"), ("0/2", "4 pictures in 2 shards")):
        run("index", str(tars), f"--out={out}", f"--model={made.weights}", f"--worker={worker}")
        assert capsys.readouterr().out.startswith(f"{out}: {told}; shards finished before: 0; ")
    run("index", "merge", str(out), f"--out={tmp_path / 'shop'}", "--store_as=int8")
    assert capsys.readouterr().out == f"{tmp_path / 'shop' / FILE}\n"
    assert len(read_index(tmp_path / "shop").image_ids) == 5
    assert pq.read_schema(out / "part-00000.parquet").metadata[b"rice_jax_shard"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--worker=2/2", "--model=run"], "found '2/2', expected I/N with I from 0 to N - 1, such as 0/8"),
        (["--worker=0/2"], "expected --model with --worker"),
        (["--worker=0/2", "--model=run", "--dimensions=8"], "rice index merge reduces, exports, and copies all shards"),
        (["--change=remove", "--store_as=int8"], "expected no --dimensions and no --store_as with --change=remove"),
    ],
)
def test_flags_that_belong_together(flags, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["index", "pictures", "--out=shop", *flags])
    assert message in capsys.readouterr().err


def test_tars_without_shards_are_explained(made, tars):
    with pytest.raises(DataError, match="found no picture, expected pictures .*, or --worker=0/1, which embeds the"):
        made.update(tars)

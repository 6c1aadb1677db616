"""Tests of data/sample/pictures.py and of what data/sample/teacher.py reads and writes."""

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from data.build import main as build
from data.sample import pictures, teacher
from rice_jax.input.text_embeddings import read_kind
from tests.fixtures import ROOT

SAMPLE = ROOT / "data" / "sample"
PRODUCTS, PAIRS = 3, 4


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pictures") / "shop"
    for folder in ("images", "views", "backgrounds"):
        (directory / folder).mkdir(parents=True)
    lines = (SAMPLE / "products.csv").read_text().splitlines()[: PRODUCTS + 1]
    (directory / "products.csv").write_text("\n".join(lines) + "\n")
    for name in (line.split(",")[0] for line in lines[1:]):
        shutil.copy(SAMPLE / "images" / f"{name}.jpg", directory / "images")
        shutil.copy(SAMPLE / "views" / f"{name}.webp", directory / "views")
    shutil.copy(next((SAMPLE / "backgrounds").glob("*.jpg")), directory / "backgrounds")
    return directory


def make(shop, out, seed: int = 0):
    pictures.main(["--products", str(shop), "--out", str(out), f"--pairs={PAIRS}", f"--seed={seed}"])
    return out


@pytest.fixture(scope="module")
def made(shop):
    return make(shop, shop.parent / "made")


def test_every_pair_has_ids_of_its_own_and_two_pictures(made):
    rows = [line.split("\t") for line in (made / "training_videoinfo_full_part_00.txt").read_text().splitlines()]
    assert len(rows) == PRODUCTS * PAIRS and {len(row) for row in rows} == {11}
    for column in (0, 3):
        assert len({row[column] for row in rows}) == len(rows)
    clips = dict(teacher.single_frames(made))
    assert list(clips) == [row[0] for row in rows]
    for row in rows:
        for path in (clips[row[0]], made / "images" / f"{row[3]}.jpg"):
            with Image.open(path) as picture:
                assert picture.size == (160, 160) and np.asarray(picture).std() > 5


def test_the_builder_reads_it(made, tmp_path):
    build(["lpr4m", "--raw_dir", str(made), "--data_dir", str(tmp_path), "--configs", "train"])
    assert list(tmp_path.glob("lpr4m/train/*/lpr4m-train.array_record*"))


def test_equal_seeds_give_equal_bytes(shop, made, tmp_path):
    def digest(directory):
        paths = sorted(path for path in directory.rglob("*.*") if path.is_file())
        return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]

    assert digest(make(shop, tmp_path / "same")) == digest(made) != digest(make(shop, tmp_path / "other", seed=1))


def test_vectors_are_written_as_training_reads_them(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((3, 5))
    teacher.write(tmp_path / "images.parquet", ["a", "b", "c"], vectors)
    found = read_kind(tmp_path, "images")
    np.testing.assert_allclose(found.get("b"), vectors[1] / np.linalg.norm(vectors[1]), rtol=1e-6)


def test_pairs_are_added_to_other_training_rows(shop, made, tmp_path):
    out = shutil.copytree(made, tmp_path / "raw")
    make(shop, out, seed=1)
    parts = [path.read_text() for path in sorted(out.glob("training_videoinfo_full_part_*.txt"))]
    (out / "training_videoinfo_full_part_01.txt").unlink()  # as if the program had been stopped
    make(shop, out, seed=1)
    assert parts == [path.read_text() for path in sorted(out.glob("training_videoinfo_full_part_*.txt"))]
    assert len(parts) == 2 and parts[0] == (made / "training_videoinfo_full_part_00.txt").read_text()
    assert len(dict(teacher.single_frames(out))) == len(list((out / "images").iterdir())) == 2 * PRODUCTS * PAIRS


def test_errors(shop, made, tmp_path):
    (tmp_path / "file").touch()
    for flags, message in (
        (("--out", str(made)), "has pairs of --seed=0 already"),
        (("--out", str(tmp_path)), "is not empty and has no training rows"),
        (("--out", "x", "--pairs=0"), "--pairs=0: expected"),
    ):
        with pytest.raises(SystemExit, match=message):
            pictures.main(["--products", str(shop), *flags])

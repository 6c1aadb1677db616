"""A teacher's embeddings in training batches."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rice_jax.input.digest import training_digests
from rice_jax.input.pipeline import train_batches
from rice_jax.input.teacher import read_teacher
from rice_jax.types import DataError
from tests.input import tiny_shop

IMAGES = {f"image-{number}": [1.0, number, 2.0] for number in (0, 2, 3)}
VIDEOS = {"clip-1": [0.0, 0.0, 3.0], "clip-2": [0.0, 4.0, 0.0]}


def write(folder, kind: str, vectors: dict) -> None:
    folder.mkdir(exist_ok=True)
    table = pa.table({"id": list(vectors), "embedding": list(vectors.values())})
    pq.write_table(table, folder / f"{kind}.parquet")


def settings(config, folder, **changes):
    return dataclasses.replace(config, teacher=str(folder), teacher_dim=3, batch_size=11, **changes)


def unit(vector) -> np.ndarray:
    return np.array(vector, np.float32) / np.linalg.norm(vector)


@pytest.mark.parametrize("with_videos", [True, False])
def test_a_batch_has_the_vectors_of_its_images_and_clips(config, tmp_path, with_videos):
    write(tmp_path, "images", IMAGES)
    if with_videos:
        write(tmp_path, "videos", VIDEOS)
    batch = next(train_batches(settings(config, tmp_path)))
    assert batch["teacher"].shape == (11, 2, 3) and batch["teacher"].dtype == np.float32
    for row, index in enumerate(batch["index"]):
        clip = tiny_shop.TRAIN[index]
        image = IMAGES.get(clip["image_id"])
        video = VIDEOS.get(clip["clip_id"], image) if with_videos else image
        for side, vector in enumerate((image, video)):
            assert batch["teacher_mask"][row, side] == (vector is not None)
            np.testing.assert_allclose(batch["teacher"][row, side], 0 if vector is None else unit(vector), rtol=1e-6)
    assert 0 < batch["teacher_mask"].mean() < 1
    without = next(train_batches(dataclasses.replace(config, batch_size=11)))
    assert without.keys() == batch.keys() - {"teacher", "teacher_mask"}
    for name, values in without.items():
        np.testing.assert_array_equal(values, batch[name], "a teacher leaves the other draws alone")


def test_a_run_knows_its_teacher(config, tmp_path):
    found = []
    for number in range(2):
        write(tmp_path / str(number), "images", IMAGES | {"image-9": [number, 1.0, 0.0]})
        found.append(training_digests(settings(config, tmp_path / str(number))))
    write(tmp_path / "0", "videos", VIDEOS)
    read_teacher.cache_clear()
    found.append(training_digests(settings(config, tmp_path / "0")))
    assert found[0]["images of config.data.teacher"] != found[1]["images of config.data.teacher"]
    assert found[2].keys() - found[0].keys() == {"videos of config.data.teacher"}


def test_errors(config, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="found no images.parquet .*, expected a teacher's embeddings of images"
    ):
        train_batches(settings(config, tmp_path / "none"))
    write(tmp_path, "images", IMAGES)
    with pytest.raises(DataError, match=r"found images with embeddings of 3 numbers, expected config.loss.distill_dim"):
        train_batches(dataclasses.replace(settings(config, tmp_path), teacher_dim=4))
    write(tmp_path / "bad", "images", {"image-0": [0.0, 0.0]})
    with pytest.raises(DataError, match="images.parquet: is damaged, or no file of embeddings"):
        train_batches(settings(config, tmp_path / "bad"))

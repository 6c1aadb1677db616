"""Updates of an index: what is embedded, what is kept, what is refused."""

import dataclasses
import logging
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from rice_jax import main
from rice_jax.config import ConfigError, MeshConfig
from rice_jax.eval.calibration import Calibration, read_calibration, write_calibration
from rice_jax.eval.embed import compile_embedder, compute_rows, model_embedder
from rice_jax.files import locked
from rice_jax.index import update as indexing
from rice_jax.index.calibrate import calibrate_index
from rice_jax.index.model import load_index_model
from rice_jax.index.store import read_index
from rice_jax.index.update import remove_pictures, update_index
from rice_jax.input.pipeline import eval_batches
from rice_jax.input.source import Source
from rice_jax.models.weights import CheckpointError, embedding_fingerprint, load_weights, save_weights
from rice_jax.parallel.mesh import create_mesh, parameter_shardings
from rice_jax.parallel.processes import LOCK
from rice_jax.tasks import TASKS
from rice_jax.types import DataError
from tests.fixtures import command, run, start
from tests.index.updates import assert_same_rows, load
from tests.input.tiny_shop import picture
from tests.settings import small_config


def test_embeds_as_the_evaluation_does(made, shop):
    data = dataclasses.replace(made.config.eval_input, data_dir=str(shop))
    rows = list(Source(data.data_dir, data.gallery, ("gallery_id", "image_id", "image")))
    for row in rows:
        file = made.pictures / "shop" / row["gallery_id"].decode() / f"{row['image_id'].decode()}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["image"])
    index, model = made.update(made.pictures / "shop"), load(made.weights)
    embedder = compile_embedder(model_embedder(model.graphdef, with_queries=True), model.params, model.mesh)
    batches = eval_batches(data, "gallery", 8)
    expected = compute_rows(embedder.image, model.params, batches, len(rows), model.mesh)
    order = sorted(range(len(rows)), key=lambda row: (rows[row]["gallery_id"], rows[row]["image_id"]))
    assert index.gallery_ids == [rows[row]["gallery_id"].decode() for row in order]
    assert index.image_ids == [rows[row]["image_id"].decode() for row in order]
    np.testing.assert_allclose(index.vectors, expected.embedding[order], atol=1e-6)
    np.testing.assert_allclose(np.float32(index.queries), np.float32(expected.queries[order]), atol=2e-2)
    np.testing.assert_allclose(np.linalg.norm(index.vectors, axis=1), 1, rtol=1e-6)
    assert index.about.fingerprint == embedding_fingerprint(model.params, model.config, data.resize)
    assert (index.about.resize, index.about.num_frames) == (20, 10)


def test_adds_replaces_and_keeps(made, embedded):
    first = made.update()
    assert sorted(embedded) == first.image_ids == ["a", "b", "c"]
    embedded.clear()
    made.write(b=20, d=4)
    (made.pictures / "a.jpg").unlink()
    second = made.update()
    assert sorted(embedded) == ["b", "d"] and second.image_ids == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(second.vectors[[0, 2]], first.vectors[[0, 2]])
    assert np.abs(second.vectors[1] - first.vectors[1]).max() > 1e-3
    embedded.clear()
    mirrored = made.update(change="mirror")
    assert not embedded and mirrored.image_ids == ["b", "c", "d"]
    shutil.rmtree(made.directory)
    assert_same_rows(mirrored, made.update(), atol=1e-6)


def test_titles_and_galleries_come_from_a_csv(made, embedded):
    path = made.pictures.parent / "shop.csv"
    path.write_text("id,path,gallery,title\n1,pictures/a.jpg,x,red\n1,pictures/a.jpg,y,red\n2,pictures/b.jpg,x,\n")
    index = made.update(path)
    assert list(zip(index.gallery_ids, index.image_ids, index.titles, strict=True)) == [
        ("x", "1", "red"),
        ("x", "2", ""),
        ("y", "1", "red"),
    ]
    assert index.paths[0] == str(made.pictures / "a.jpg")
    np.testing.assert_array_equal(index.vectors[0], index.vectors[2])
    embedded.clear()
    path.write_text("id,path,gallery,title\n1,pictures/a.jpg,x,blue\n")
    assert made.update(path).titles == ["blue", "", "red"] and not embedded


def test_two_updates_at_once_both_count(made, caplog):
    """Each reads the index, embeds, and writes it again; without a lock the later one loses the other's change."""
    made.update()
    more = {name: made.workdir / f"{name}.csv" for name in ("new1", "new2")}
    for name, path in more.items():
        made.write(**{name: 7})
        path.write_text(f"id,path\n{name},{made.pictures / name}.jpg\n")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(made.update, more.values()))
    assert {"new1", "new2"} <= set(read_index(made.directory).image_ids)
    assert [path.name for path in made.directory.iterdir()] == ["index.parquet"]
    with ThreadPoolExecutor(1) as pool, locked(made.directory / LOCK):
        removing = pool.submit(remove_pictures, made.directory, more["new1"])
        while "waiting until that one is done" not in caplog.text:
            assert not removing.done()
    assert "new1" not in removing.result().image_ids


def test_a_failed_update_leaves_no_directory(made, tmp_path):
    with pytest.raises(FileNotFoundError):
        update_index(tmp_path / "a" / "b", tmp_path / "nowhere", load(made.weights))
    assert not (tmp_path / "a").exists()


def test_removes(made):
    index, gone = made.update(), made.pictures.parent / "gone.csv"
    gone.write_text("id\nb\nz\n")
    remove_pictures(made.directory, str(gone))
    assert_same_rows(read_index(made.directory), index.take([0, 2]))
    with pytest.raises(DataError, match="none of its 2 pictures, e.g. 'b', is in"):
        remove_pictures(made.directory, str(gone))
    gone.write_text("id\na\nc\n")
    remove_pictures(made.directory, str(gone))
    assert read_index(made.directory).image_ids == []
    assert_same_rows(made.update(), index, atol=1e-6)


def test_broken_pictures_do_not_keep_others_out(made, embedded):
    before = made.update()
    made.write(d=4)
    (made.pictures / "b.jpg").write_bytes(b"no picture")
    (made.pictures / "e.jpg").write_bytes(picture(5)[:-300])
    (made.pictures / "f.jpg").symlink_to("nowhere")
    embedded.clear()
    with pytest.raises(DataError) as error:
        made.update()
    for line in (
        "3 of 6 pictures cannot be used:",
        f"  {made.pictures / 'b.jpg'}: it is not a picture",
        f"  {made.pictures / 'e.jpg'}: image file is truncated",
        f"  {made.pictures / 'f.jpg'}: No such file",
    ):
        assert line in str(error.value)
    assert {*embedded} == {"b", "d", "e", "f"}
    index = read_index(made.directory)
    assert index.image_ids == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(index.vectors[:3], before.vectors)  # of b what it was
    made.write(b=20, e=5, f=6)
    embedded.clear()
    assert made.update().image_ids == ["a", "b", "c", "d", "e", "f"]
    assert sorted(embedded) == ["b", "e", "f"]


def test_without_a_usable_picture_no_index_is_written(made):
    for name in "abc":
        (made.pictures / f"{name}.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"3 of 3 pictures cannot .*(?s:.*)\nNo index is written to {made.directory}.$"):
        made.update()
    assert not made.directory.exists()
    made.write(d=4)
    with pytest.raises(DataError, match="3 of 4 pictures(?s:.*)\nAll others are in"):
        made.update()
    (made.pictures / "d.jpg").unlink()
    with pytest.raises(DataError, match="3 of 3 pictures(?s:.*)\nNo index is written"):
        made.update(change="mirror")
    assert read_index(made.directory).image_ids == ["d"], "what was there"


def test_names_some_of_many_broken_pictures_by_line(made):
    path = made.pictures.parent / "shop.csv"
    path.write_text("id,path\n" + "".join(f"{i:02d},x{i}.jpg\n" for i in range(12)) + "a,pictures/a.jpg\n")
    with pytest.raises(DataError) as error:
        made.update(path)
    assert f"{path}:2: {path.parent / 'x0.jpg'}: No such file" in str(error.value)
    assert "x9.jpg" in str(error.value) and "x10.jpg" not in str(error.value) and "and 2 more" in str(error.value)
    assert read_index(made.directory).image_ids == ["a"]


def test_a_picture_that_changes_meanwhile_is_indexed_next_time(made, monkeypatch):
    digest = indexing.digest_of

    def change_later(shop_picture):
        found = digest(shop_picture)
        if shop_picture.id == "b":
            made.write(b=20)
        return found

    with monkeypatch.context() as patch, pytest.raises(DataError, match="b.jpg: it has changed since"):
        patch.setattr(indexing, "digest_of", change_later)
        made.update()
    assert read_index(made.directory).image_ids == ["a", "c"]
    assert made.update().image_ids == ["a", "b", "c"]


def test_an_index_of_another_model(made, tmp_path):
    index = made.update()
    before = (made.directory / "index.parquet").read_bytes()
    other = tmp_path / "other"
    save_weights(other, jax.tree.map(lambda x: x * 1.01, load(made.weights).params), made.config.to_dict())
    with pytest.raises(CheckpointError, match="another model made this index"):
        made._replace(weights=other).update()
    with pytest.raises(CheckpointError, match="another model made this index"):
        made.update(data=dataclasses.replace(made.config.data, resize=24))
    with pytest.raises(CheckpointError, match=r"another model made this index .*decoder \w+ PmdConfig.* no decoder"):
        made.update(with_decoder=False)
    assert (made.directory / "index.parquet").read_bytes() == before
    with pytest.raises(CheckpointError, match="is not the model that made the index"):
        load_index_model(index.about, other)


def test_the_model_of_an_index(made, tmp_path):
    index = made.update()
    model = load_index_model(index.about)
    assert model.about == index.about and model.about.checkpoint == str(made.weights)
    assert model.config.encoder.dtype == "float32" and (model.about.resize, model.about.num_frames) == (20, 10)
    assert set(model.params) == {"encoder", "logit_scale", "pmd"} and model.mesh.size == 1
    moved = shutil.copytree(made.weights, tmp_path / "moved")
    assert load_index_model(index.about, moved).about.fingerprint == index.about.fingerprint
    with pytest.raises(CheckpointError, match="found no checkpoint"):
        load_index_model(index.about, tmp_path / "nowhere")


def test_a_checkpoint_without_the_indexs_decoder_is_refused(made, tmp_path):
    index = made.update()
    params, config = load_weights(made.weights)
    save_weights(tmp_path / "encoder", {"encoder": params["encoder"], "logit_scale": params["logit_scale"]}, config)
    with pytest.raises(CheckpointError, match="is not the model that made the index .*no decoder.*PmdConfig"):
        load_index_model(index.about, tmp_path / "encoder")


def test_a_calibration_is_copied_if_it_is_of_this_model(made, caplog):
    with caplog.at_level(logging.INFO, "rice_jax"):
        index = made.update()
    assert index.about.calibration is None and "no calibration of this model" in caplog.text
    assert "rice eval CLIPS.csv --index=" in caplog.text, "a converted model is no run that can be evaluated"
    calibration = Calibration(30.0, 20.0, 0.5, 5, 10, "of another")
    write_calibration(made.workdir, calibration)
    assert made.update().about.calibration is None
    calibration = dataclasses.replace(calibration, fingerprint=index.about.fingerprint)
    write_calibration(made.workdir, calibration)
    caplog.clear()
    with caplog.at_level(logging.INFO, "rice_jax"):
        assert made.update().about.calibration == calibration
    (made.workdir / "calibration.json").unlink()
    assert made.update().about.calibration == calibration and "no calibration" not in caplog.text
    own = dataclasses.replace(calibration, scale=40.0, source="clips.csv")
    calibrate_index(made.directory, own)
    weights = {"match_weight": 0.3, "match_weight_by_frames": 0.2, "match_fingerprint": "of the decoder"}
    write_calibration(made.workdir, dataclasses.replace(calibration, **weights))
    assert made.update().about.calibration == dataclasses.replace(own, **weights), "that of own clips stays"


def test_a_diverged_model_makes_no_index(made, tmp_path):
    params = jax.tree.map(lambda x: x * np.nan, load(made.weights).params)
    save_weights(tmp_path / "diverged", params, made.config.to_dict())
    with pytest.raises(DataError, match="not finite. Has the training diverged"):
        made._replace(weights=tmp_path / "diverged").update()
    assert not made.directory.exists()


def test_eight_devices_make_the_index_of_one(made):
    made.write(**{f"p{i}": 10 + i for i in range(8)})
    one = made.update()
    shutil.rmtree(made.directory)
    assert_same_rows(made.update(num_devices=8), one, atol=1e-6)


def with_encoder(config, **changes):
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **changes))


def test_fingerprints(made):
    model = load(made.weights)
    config, params = model.config, model.params
    found = embedding_fingerprint(params, config, 20)
    assert len(found) == 64
    assert embedding_fingerprint(params, with_encoder(config, dtype="bfloat16"), 20) == found
    wide = create_mesh(MeshConfig(2, 4), jax.devices())
    placed = jax.device_put(params, parameter_shardings(wide, params))
    assert embedding_fingerprint(placed, config, 20) == found
    own = params["encoder"]
    assert embedding_fingerprint({"encoder": own, "logit_scale": 0}, config, 20) == found
    changed = own | {"class_embedding": own["class_embedding"].at[3].add(1e-6)}
    assert embedding_fingerprint({"encoder": changed}, config, 20) != found
    assert embedding_fingerprint(params, config, 21) != found
    assert embedding_fingerprint(params, with_encoder(config, heads=4), 20) != found


def test_the_command_line_even_if_it_is_killed(reference, shop, made):
    workdir, _ = reference
    calibration = read_calibration(workdir)
    assert calibration.num_clips == 4 and calibration.num_frames == 10
    program = command(shop, workdir, "--mode=index", index__directory=made.directory, index__images=made.pictures)
    result = run([*program, "--export=faiss"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(made.directory / "index.faiss")]
    index = read_index(made.directory)
    assert index.image_ids == ["a", "b", "c"] and index.about.checkpoint == str(workdir)
    assert index.about.calibration == calibration and index.queries is not None

    made.write(a=10, **{f"p{i}": 100 + i for i in range(200)})
    process = start([*program, "--config.eval.batch_size=1"])
    for line in process.stderr:
        if "203 pictures; new or changed: 201" in line:
            break
    time.sleep(0.1)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert_same_rows(read_index(made.directory), index)

    (made.pictures / "d.jpg").write_bytes(b"")
    with Image.open(made.pictures / "a.jpg") as picture:
        picture.save(made.pictures / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")  # damaged
    result = run(program)
    assert result.returncode == 1 and "Traceback" not in result.stderr and "Warning" not in result.stderr
    assert f"{made.directory}: 203 pictures in 1 gallery\n" in result.stderr
    message = f"UnusablePictures: 1 of 204 pictures cannot be used:\n  {made.pictures / 'd.jpg'}: it is empty; expected"
    assert message in result.stderr
    assert len(read_index(made.directory).image_ids) == 203


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "found config.index.images='', expected a directory or CSV"),
        ({"index__images": "x", "task": "detection"}, "found config.task='detection', expected 'retrieval', 'domains'"),
    ],
)
def test_what_cannot_be_indexed(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(main, "EXPORT", SimpleNamespace(value=None))
    config, mesh = small_config(**changes), create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    with pytest.raises(ConfigError, match=f"index: {message}"):
        main.index(config, TASKS[config.task], tmp_path, mesh)

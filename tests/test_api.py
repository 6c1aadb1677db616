"""The names that `import rice_jax` gives: lazily, as their examples say, and with errors that say what is wrong."""

import doctest
import importlib
import io
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from PIL import Image

import rice_jax
from rice_jax.convert import clip, reference
from rice_jax.convert.tensors import ConvertError
from rice_jax.input.transforms import sample_frames
from rice_jax.models.weights import load_weights, save_weights
from tests.fixtures import ROOT
from tests.shop import draw, png, show


@pytest.fixture(scope="module")
def model(live_shop):
    return rice_jax.load(live_shop.index.about.checkpoint)


def test_nothing_is_imported_before_it_is_used():
    code = "import sys, rice_jax; rice_jax.__version__; dir(rice_jax); assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_name_is_there():
    assert set(rice_jax.__all__) <= set(dir(rice_jax))
    for name in rice_jax.__all__:
        assert getattr(rice_jax, name)
    with pytest.raises(AttributeError, match="module 'rice_jax' has no attribute 'nothing'"):
        rice_jax.nothing  # noqa: B018


NOT_FOR_INFERENCE = {
    *("rice_jax.train", "rice_jax.tasks", "tensorflow", "tensorflow_datasets", "grain", "torch", "transformers"),
    *("tokenizers", "matplotlib", "pandas", "sklearn", "scipy.optimize", "pymilvus", "rice_jax.pages.timeline"),
}


def test_inference_imports_neither_training_nor_other_slow_modules():
    code = "import sys, rice_jax; rice_jax.load, rice_jax.build_index, rice_jax.Recognizer; "
    code += f"import rice_jax.recognize; assert not {NOT_FOR_INFERENCE} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_images_are_embedded_as_in_evaluation(model, live_shop, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png(live_shop.pictures[2]))
    pictures = [live_shop.pictures[0], png(live_shop.pictures[1]), path, Image.fromarray(live_shop.pictures[3])]
    found = model.embed_images(pictures)
    assert found.dtype == np.float32 and found.shape == (4, model.embed_dim)
    np.testing.assert_allclose(found, live_shop.index.vectors[:4], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["str", "bytearray", "memoryview", "BytesIO", "read to its end", "file", "PIL", "opened"]
)
def test_pictures_of_any_kind_are_embedded(model, live_shop, tmp_path, kind):
    path = tmp_path / "picture.png"
    path.write_bytes(png(live_shop.pictures[1]))
    at_end = io.BytesIO(path.read_bytes())
    at_end.read()
    with path.open("rb") as file:
        given = {
            "str": str(path),
            "bytearray": bytearray(path.read_bytes()),
            "memoryview": memoryview(path.read_bytes()),
            "BytesIO": io.BytesIO(path.read_bytes()),
            "read to its end": at_end,
            "file": file,
            "PIL": Image.fromarray(live_shop.pictures[1]),
            "opened": Image.open(path),
        }[kind]
        for _ in range(2):  # nothing is used up
            np.testing.assert_allclose(model.embed_images([given])[0], live_shop.index.vectors[1], atol=1e-6)


def test_an_open_picture_is_seen_as_a_viewer_shows_it(model, live_shop, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it clockwise
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(live_shop.pictures[1])))
    stored.save(tmp_path / "turned.png", exif=exif)
    clear = Image.fromarray(live_shop.pictures[1])
    clear.putalpha(0)
    white = Image.new("RGB", clear.size, "white")
    found = model.embed_images([Image.open(tmp_path / "turned.png"), tmp_path / "turned.png", clear, white])
    assert (found[:2] @ live_shop.index.vectors[1] > 0.9999).all()
    np.testing.assert_array_equal(found[2], found[3])


def test_any_number_of_images_is_embedded(model, monkeypatch):
    monkeypatch.setattr("rice_jax.api.MAX_BATCH_SIZE", 4)
    pictures = np.stack([draw(seed) for seed in range(7)])
    together = model.embed_images(pictures)
    np.testing.assert_allclose(together, [model.embed_images([picture])[0] for picture in pictures], atol=1e-6)


@pytest.mark.parametrize("num", [1, 3, 17])
def test_a_video_is_embedded_as_in_evaluation(model, live_shop, num):
    frames = [draw(seed) for seed in range(num)]
    found = model.embed_video(iter(frames))
    chosen = [frames[place] for place in sample_frames(num, model.num_frames)]
    video = jnp.asarray(np.stack([show(png(frame), live_shop.config) for frame in chosen]))[None]
    expected = live_shop.model.embed_video({"video": video, "frame_mask": jnp.ones(video.shape[:2], bool)})[0]
    assert found.dtype == np.float32 and model.num_frames == live_shop.config.eval.num_frames
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "found none, expected at least one"),
        ("a.jpg", "found one str, expected a list of pictures"),
        (
            draw(0),
            r"\[0\]: found an array of type uint8 and shape \[48, 3\], expected .* RGB as an array of type uint8",
        ),
        ([draw(0), draw(1)[..., :1]], r"\[1\]: found an array of type uint8 and shape \[48, 48, 1\]"),
        ([draw(0) / 255], r"\[0\]: found an array of type float64"),
        ([np.zeros((0, 0, 3), np.uint8)], r"\[0\]: found an array of type uint8 and shape \[0, 0, 3\]"),
        ([np.zeros((48, 48))], r"\[0\]: found an array of type float64 and shape \[48, 48\]"),
        ([draw(0).astype(np.int64)], r"\[0\]: found an array of type int64"),
        ([draw(0).astype(np.uint16)], r"\[0\]: found an array of type uint16"),
        ([None], r"\[0\]: found NoneType, expected a path, the content of a file"),
        ([7], r"\[0\]: found int, expected a path"),
        ([draw(0).tolist()], r"\[0\]: found list, expected a path"),
        ([io.StringIO("text")], r"\[0\]: found a file open for text, expected a path"),
        ([Image.new("RGB", (0, 3))], r"\[0\]: found a picture of 0 × 3 pixels, expected at least one"),
        ([Image.new("RGB", (65_536, 1))], r"\[0\]: a picture of 65536 × 1 pixels cannot be decoded: it has 65,536 × 1"),
        (
            [np.zeros((65_536, 1, 3), np.uint8)],
            r"\[0\]: a picture of 1 × 65536 pixels cannot be decoded: it has 1 × 65",
        ),
        (
            [Image.new("F", (9, 9))],
            r"\[0\]: a picture of 9 × 9 pixels cannot be decoded: its pixels are numbers of 32 bits",
        ),
        ([b""], r"\[0\]: a picture of 0 bytes cannot be decoded: it is empty"),
        (io.BytesIO(png(draw(0))), "found one BytesIO, expected a list of pictures"),
        (
            [b"no picture"],
            r"\[0\]: a picture of 10 bytes cannot be decoded: it is not a picture that can be read; expected",
        ),
        ([png(draw(0))[:60]], r"\[0\]: a picture of 60 bytes cannot be decoded"),
    ],
)
def test_what_cannot_be_embedded(model, pictures, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside tests
    with pytest.raises(rice_jax.DataError, match=f"pictures.*{message}"):
        model.embed_images(pictures)
    with pytest.raises(rice_jax.DataError, match=f"frames.*{message}"):
        model.embed_video(pictures)


def test_a_missing_file_is_named(model):
    with pytest.raises(FileNotFoundError, match="nowhere.jpg"):
        model.embed_images(["nowhere.jpg"])


def test_a_detector_is_refused(live_shop, tmp_path):
    params, config = load_weights(live_shop.index.about.checkpoint)
    config["task"] = "detection"
    save_weights(tmp_path / "detector", {"encoder": params["encoder"], "detector": {"x": np.zeros(1)}}, config)
    with pytest.raises(rice_jax.CheckpointError, match="detector: holds a detector, expected a model of task"):
        rice_jax.load(tmp_path / "detector")


def test_a_text_tower_is_no_encoder(tmp_path):
    tower = tmp_path / "tower"
    save_weights(tower, {"text": {"bias": np.zeros(3, np.float32)}}, {"text": {}})
    with pytest.raises(rice_jax.CheckpointError, match="tower: holds a text tower, expected a run or a converted enc"):
        rice_jax.load(tower)
    for export in (clip.export, reference.export_file):
        with pytest.raises(ConvertError, match="tower: found no encoder, expected a run or a converted encoder"):
            export(tower, tmp_path / "out.safetensors")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(rice_jax.CheckpointError, match="found no checkpoint"):
        rice_jax.load(tmp_path)


def test_build_index_adds_mirrors_and_removes(live_shop, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "shop"
    pictures.mkdir()
    for name, seed in (("mug", 1), ("sofa", 2)):
        (pictures / f"{name}.png").write_bytes(png(draw(seed)))
    index = rice_jax.build_index(str(pictures), model=live_shop.index.about.checkpoint, out=str(out))
    assert index.image_ids == rice_jax.read_index(out).image_ids == ["mug", "sofa"]
    np.testing.assert_allclose(index.vectors, live_shop.index.vectors[1:3], atol=1e-6)
    assert index.queries is not None and index.about.num_frames == live_shop.config.eval.num_frames
    (pictures / "mug.png").unlink()
    assert rice_jax.build_index(pictures, out=out).image_ids == ["mug", "sofa"]
    assert rice_jax.build_index(pictures, out=out, change="mirror").image_ids == ["sofa"]
    (pictures / "bad.png").write_bytes(b"no picture")
    (pictures / "vase.png").write_bytes(png(draw(3)))
    with pytest.raises(rice_jax.DataError, match="1 of 3 pictures cannot be used:\n.*bad.png: it is not a picture"):
        rice_jax.build_index(pictures, out=out)
    assert rice_jax.read_index(out).image_ids == ["sofa", "vase"]
    assert rice_jax.build_index(pictures, out=out, change="remove").image_ids == []
    with pytest.raises(rice_jax.DataError, match="change: found 'delete', expected one of 'add', 'mirror', 'remove'"):
        rice_jax.build_index(pictures, out=out, change="delete")
    with pytest.raises(FileNotFoundError, match="found no index"):
        rice_jax.build_index(pictures, out=tmp_path / "nowhere")


@pytest.fixture
def examples(live_shop, tmp_path, monkeypatch):
    """The directory that the examples of the docstrings run in."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/lpr4m").symlink_to(live_shop.index.about.checkpoint)
    for directory, names in (("pictures", ("mug", "sofa")), ("frames", ("0", "1"))):
        Path(directory).mkdir()
        for seed, name in enumerate(names):
            Image.fromarray(live_shop.pictures[seed if directory == "pictures" else 0]).save(f"{directory}/{name}.jpg")
    Path("frame.jpg").write_bytes(Path("frames/0.jpg").read_bytes())
    Path("sold_out.csv").write_text("id\nsofa\n")


# In this order: each module's examples need what those before them have written.
MODULES = "rice_jax", "rice_jax.api", "rice_jax.recognition.recognizer", "rice_jax.index.store", "rice_jax.index.update"


def test_the_examples_of_the_docstrings(examples):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    found = [test for name in MODULES for test in doctest.DocTestFinder().find(importlib.import_module(name))]
    results = {test.name: runner.run(test) for test in found if test.examples}
    assert len(results) == 5 and not any(result.failed for result in results.values()), results

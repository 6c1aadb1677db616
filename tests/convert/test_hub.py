"""Models as folders for transformers, and read back."""

import dataclasses
import json
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from flax.traverse_util import unflatten_dict
from PIL import Image

import rice_jax
from rice_jax import cli
from rice_jax.commands import export
from rice_jax.config import PIXEL_STATISTICS, VitConfig
from rice_jax.convert import clip, hub
from rice_jax.convert.hub_families import find_export
from rice_jax.convert.hugging_face import SIGLIP_PARTS
from rice_jax.convert.tensors import parameter_shapes
from rice_jax.eval.calibration import Calibration, write_calibration
from rice_jax.eval.domains import DomainResult
from rice_jax.eval.metrics import Galleries, Result, Score
from rice_jax.eval.results import PIXELS, Row, write_results
from rice_jax.index.model import load_model
from rice_jax.index.pictures import show
from rice_jax.models.create import model_class
from rice_jax.models.weights import load_weights, save_weights
from tests.settings import model_of, small_config
from tests.shop import draw

SCORE = Score(
    240,
    {"rank-1": 0.329, "rank-5": 0.7},
    {"rank-1": 0.033, "rank-5": 0.167},
    {"rank-1": (0.27, 0.391), "rank-5": (0.64, 0.76)},
    "queries",
)
RESULT = Result(SCORE, 0, Galleries(2, 28, 30.0, 32), {}, {})
ABOUT = {"step": 6, "data_dir": "/private/built", "query": "lpr4m/query", "gallery": "lpr4m/gallery"}


def make_run(directory, step=6, **overrides):
    """The workdir of a run whose weights are random."""
    config, rng = small_config(loss__pfr_weight=0.0, **overrides), np.random.default_rng(3)
    parts = model_of(config)
    shapes = parameter_shapes(lambda: model_class(parts)(parts, rngs=nnx.Rngs(0)))
    flat = {
        name: np.float32(0.1 * rng.standard_normal(shape) + name.endswith("scale")) for name, shape in shapes.items()
    }
    save_weights(directory / "checkpoints" / str(step), unflatten_dict(flat, sep="/"), config.to_dict())
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a decoder, results, and a calibration."""
    run = make_run(tmp_path_factory.mktemp("hub") / "run", data__resize=22)
    about = load_model(run).about
    weights = {"match_weight": 0.2, "match_fingerprint": about.match_fingerprint}
    write_calibration(run, Calibration(10.5, 4.9, 0.62, 240, 3, about.fingerprint, **weights))
    rows = {PIXELS: RESULT, Row(0): RESULT, Row(4): RESULT, Row(6): RESULT, Row(6, source="/private/w"): RESULT}
    write_results(run / "results.json", rows, ABOUT | {"evaluation": {"query": "lpr4m/query", "weights": ""}})
    return run


@pytest.fixture(scope="module")
def folder(run):
    export.main(["hf", str(run), str(run.parent / "mugs")])
    return run.parent / "mugs"


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def snippets(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)


def test_the_folder_read_back_is_the_same_model(run, folder, tmp_path):
    clip.main([str(folder), str(tmp_path / "back")])
    expected, _ = load_weights(run)
    params, _ = load_weights(tmp_path / "back")
    assert params.keys() == {"encoder", "pmd"}
    for part in params:
        jax.tree.map(np.testing.assert_array_equal, params[part], expected[part])
    ours, back = load_model(run).about, load_model(tmp_path / "back").about
    assert back.calibration and back.match_fingerprint
    assert back.model.encoder == dataclasses.replace(ours.model.encoder, dtype=back.model.encoder.dtype)
    for name in ("fingerprint", "match_fingerprint", "calibration", "resize", "num_frames", "ipd"):
        assert getattr(back, name) == getattr(ours, name), name
    assert back.model.pmd.num_heads == ours.model.pmd.num_heads


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_weights(run, folder, tmp_path, dtype):
    out = tmp_path / "out"
    export.main(["hf", str(run), str(out), f"--dtype={dtype}"])
    assert read_json(out / "config.json")["dtype"] == dtype
    for file in ("model.safetensors", "decoder.safetensors"):
        whole = safetensors.numpy.load_file(folder / file)
        for name, x in safetensors.numpy.load_file(out / file).items():
            assert x.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
            np.testing.assert_array_equal(x, whole[name].astype(x.dtype))
    clip.main([str(out), str(tmp_path / "back")])
    back = load_model(tmp_path / "back").about
    rice, exact = read_json(out / "rice.json"), read_json(folder / "rice.json")
    assert back.fingerprint == rice["fingerprint"] != exact["fingerprint"]
    assert back.match_fingerprint == rice["match_fingerprint"] != exact["match_fingerprint"]
    assert back.calibration.threshold == exact["calibration"]["threshold"]
    assert back.calibration.match_fingerprint == back.match_fingerprint, "its weight is used after rounding, too"
    assert f"before they were rounded to {dtype}" in (out / "README.md").read_text()


def test_a_value_beyond_float16():
    params = {"encoder": {"blocks": {"up": {"bias": np.array([1.0, -70_000.0], np.float32)}}}}
    with pytest.raises(hub.ConvertError, match="encoder/blocks/up/bias: found a value beyond float16, up to 70000.0"):
        hub.round_params(params, "float16")
    jax.tree.map(np.testing.assert_array_equal, hub.round_params(params, "float32"), params)


def test_the_files_say_what_transformers_needs(folder):
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    config = read_json(folder / "config.json")
    assert config["architectures"] == ["CLIPVisionModelWithProjection"] and config["dtype"] == "float32"
    assert (config["image_size"], config["projection_dim"]) == (16, 16)
    preprocessor = read_json(folder / "preprocessor_config.json")
    assert preprocessor["size"] == {"height": 22, "width": 22}
    assert preprocessor["crop_size"] == {"height": 16, "width": 16}


def test_what_rice_json_holds(folder):
    rice = read_json(folder / "rice.json")
    assert rice["decoder"] == {"file": "decoder.safetensors", "num_pairs": 1, "num_heads": 2}
    assert (rice["aggregation"], rice["num_frames"], rice["step"]) == ("features", 10, 6)
    assert rice["calibration"]["fingerprint"] == rice["fingerprint"]
    [evaluation] = rice["evaluation"]
    assert evaluation["about"]["query"] == "lpr4m/query"
    [row] = evaluation["results"]
    assert row["step"] == 6 and Result.from_dict({key: row[key] for key in RESULT.to_dict()}) == RESULT
    for file in ("rice.json", "README.md"):
        assert "/private" not in (folder / file).read_text()


def test_what_images_and_products_are_ranked_by(run, folder, tmp_path):
    """The run's own setting, what each evaluation used, and what recognition uses."""
    rice, card = read_json(folder / "rice.json"), (folder / "README.md").read_text(encoding="utf-8")
    assert (rice["score"], rice["evaluation"][0]["about"]["score"], rice["recognition_score"]) == ("mean",) * 3
    assert "gallery in lpr4m/gallery, ranked by the cosine of their embeddings. Rank-k" in card
    assert (
        "rank products by the cosine of the embeddings; the scores of a\nproduct's pictures are pooled" in card
        and "by frames" not in card.lower()
    )

    other = shutil.copytree(run, tmp_path / "run")
    write_results(other / "results.json", {Row(6): RESULT}, ABOUT | {"score": "frames"})
    fitted = Calibration(10.5, 4.9, 0.62, 240, 3, rice["fingerprint"], scale_by_frames=12.0)
    write_calibration(other, fitted)
    export.main(["hf", str(other), str(tmp_path / "out")])
    rice, card = read_json(tmp_path / "out" / "rice.json"), (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    found = rice["score"], rice["evaluation"][0]["about"]["score"], rice["recognition_score"]
    assert found == ("mean", "frames", "frames") and rice["calibration"]["scale_by_frames"] == 12.0
    assert "gallery in lpr4m/gallery, ranked by frames. Rank-k" in card
    assert (
        "rank products by frames; the scores of a\nproduct's pictures are pooled" in card
        and "By frames, a picture's score is the largest" in card
    )
    clip.main([str(tmp_path / "out"), str(tmp_path / "back")])
    assert load_model(tmp_path / "back").about.calibration == fitted


def test_the_card_has_results_and_snippets(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    lines = card.splitlines()
    assert lines[0] == "---" and lines[lines.index("---", 1) + 2] == "# mugs"
    tables = [line for line in lines if line.startswith(("| chance", "| nearest", "| before", "| after"))]
    shown = "240 | 2 | 28–32 | 32.9 (27.0–39.1) | 70.0 (64.0–76.0) |"
    assert tables == ["| chance | 240 | 2 | 28–32 | 3.3 | 16.7 |"] + [
        f"| {label} | {shown}" for label in ("nearest raw pixels", "before training", "after 6 steps")
    ]
    assert "bootstrapped over queries" in card and "LPR4M's pictures belong to" in card and "PMD" in card
    picture, clip = snippets(folder)
    compile(picture, "picture", "exec"), compile(clip, "clip", "exec")
    assert "normalize(features.mean(dim=0), dim=-1)" in clip and "min(len(files), 10)" in clip
    assert not re.search(r"\n\n\n|\{[{%]| \n", card)


@pytest.mark.parametrize("side", [16, 19])
def test_transformers_shows_pictures_as_evaluation_does(run, tmp_path, side):
    """Squashed, and cropped alike, also where the margin is odd."""
    transformers = pytest.importorskip("transformers")
    about = load_model(run).about
    model = dataclasses.replace(about.model, encoder=dataclasses.replace(about.model.encoder, image_size=side))
    values = hub.preprocessor(about.resize, side, "clip")
    hub._write_json(tmp_path / "preprocessor_config.json", values)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    wide = Image.fromarray(draw(1)).resize((90, 40))
    found = np.asarray(processor(wide, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    levels = (found * values["image_std"] + values["image_mean"]) * 255
    expected = show(wide, dataclasses.replace(about, model=model))
    assert np.abs(levels - expected).max() < 2 and np.abs(levels - expected).mean() < 0.3


def follow_the_card(folder, monkeypatch):
    """Runs the card's snippets beside the exported folder and compares them with the run there."""
    monkeypatch.chdir(folder.parent)
    frames = [folder.parent / "frames" / f"{i:02}.jpg" for i in range(14)]
    frames[0].parent.mkdir()
    for i, path in enumerate([folder.parent / "mug.jpg", *frames]):
        Image.fromarray(draw(i)).resize((22, 22)).save(path, quality=95)
    names: dict = {}
    for code in snippets(folder):
        exec(code, names)
    model = rice_jax.load(folder.parent / "run")
    picture, clip = (names[name].detach().numpy() for name in ("picture", "clip"))
    np.testing.assert_allclose(picture, model.embed_images(["mug.jpg"]), atol=1e-4)
    np.testing.assert_allclose(clip, model.embed_video(frames), atol=1e-4)


def test_the_snippets_embed_as_the_index_does(family, monkeypatch):
    pytest.importorskip("torch")
    follow_the_card(family[2], monkeypatch)


def test_the_snippets_of_a_mean_of_embeddings(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    run = make_run(tmp_path / "run", model__aggregation__kind="embeddings", loss__pmd_weight=0.0, data__resize=22)
    export.main(["hf", str(run), str(tmp_path / "mugs")])
    follow_the_card(tmp_path / "mugs", monkeypatch)


def test_a_run_without_results_and_a_decoder(tmp_path):
    run = make_run(tmp_path / "run", loss__pmd_weight=0.0, model__aggregation__kind="embeddings", model__ipd="boxes")
    export.main(["hf", str(run / "checkpoints" / "6"), str(tmp_path / "out")])
    assert not (tmp_path / "out" / "decoder.safetensors").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "have not been evaluated" in card and "random weights" in card and "calibration" not in card
    assert "boxes, to mask frames" in card and "normalize(features, dim=-1).mean(dim=0)" in card
    clip.main([str(tmp_path / "out"), str(tmp_path / "back")])
    ours, back = load_model(run).about, load_model(tmp_path / "back").about
    assert (back.fingerprint, back.ipd, back.calibration) == (ours.fingerprint, "boxes", None)

    export.main(["hf", str(tmp_path / "back"), str(tmp_path / "again")])
    assert "not trained by rice_jax" in (tmp_path / "again" / "README.md").read_text()
    for file in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


def test_the_results_of_domains(tmp_path):
    domains = dict(task="domains", data__domains="rope/pages,rope/videos")
    names = dict(data__train="", data__query="", data__gallery="", data__crop_around_box=False, loss__pmd_weight=0.0)
    run = make_run(tmp_path / "run", **domains, **names)
    result = DomainResult({"pages to videos": RESULT}, {"pages to videos": RESULT})
    write_results(run / "results.json", {Row(6): result}, {"step": 6, "domains": "rope/pages,rope/videos"})
    export.main(["hf", str(run), str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| pages to videos, after 6 steps | 240 | 2 | 28–32 | 32.9 (27.0–39.1) | 70.0 (64.0–76.0) |" in card
    assert "ROPE's authors" in card and "rope/pages, rope/videos" in card


def damage(path, content=b"{"):
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(model__aggregation__kind="attention"), "aggregation.kind='attention', expected one of 'features'"),
        (dict(task="detection", data__train="lpr4m/detection_train", data__query="lpr4m/detection_test",
              data__gallery="", loss__pmd_weight=0.0), "run: holds a detector, expected a model of task"),
    ],
)  # fmt: skip
def test_a_model_that_transformers_cannot_compute(tmp_path, overrides, message):
    run = make_run(tmp_path / "run", **overrides)
    with pytest.raises(SystemExit, match=message) as stop:
        export.main(["hf", str(run), str(tmp_path / "out")])
    assert "\n" not in str(stop.value) and not (tmp_path / "out").exists()


def test_what_cannot_be_exported_gets_one_line(run, tmp_path):
    def stopped(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, arguments)])
        assert "\n" not in str(stop.value)
        return str(stop.value)

    out = tmp_path / "out"
    assert "nowhere: found no checkpoint" in stopped("export", "hf", tmp_path / "nowhere", out)
    assert "exists and is not empty" in stopped("export", "hf", run, run)
    damage(tmp_path / "file")
    assert "exists and is not empty" in stopped("export", "hf", run, tmp_path / "file")
    export.main(["hf", str(run), str(out)])
    for name, message in {
        "rice.json": "rice.json: is damaged, expected what `rice export hf` writes",
        "decoder.safetensors": "decoder.safetensors: not a safetensors file",
    }.items():
        whole = (out / name).read_bytes()
        damage(out / name)
        assert message in stopped("convert", "clip", out, tmp_path / "back")
        (out / name).write_bytes(whole)
    (out / "decoder.safetensors").unlink()
    assert "not found, though rice.json names a decoder" in stopped("convert", "clip", out, tmp_path / "back")
    assert not (tmp_path / "back").exists()


# Encoders of every class, as `config.model` says them; sizes that fit the pictures of `write_run`.
DINO = dict(pixels="imagenet", patch_bias=True, ln_pre=False, layer_scale=True, projection=False, embed_dim=32)
TIMESFORMER = dict(architecture="timesformer", pixels="kinetics", patch_bias=True, ln_pre=False, activation="gelu")
# A grid of 10, then of 5: both are filled up to windows of 4.
SWIN = {name: getattr(VitConfig, name) for name in ("patch_size", "width", "layers", "heads")} | {
    f"swin__{name}": value
    for name, value in dict(patch_size=2, width=8, depths="2,2", heads="2,4", window=4, mlp_ratio=2.0).items()
}
SWIN |= dict(architecture="swin", image_size=20, pixels="imagenet", embed_dim=16)
FAMILIES = {
    "CLIPVisionModelWithProjection": dict(activation="gelu", mlp_ratio=2.5, epsilon=1e-6, pixels="half"),
    "CLIPVisionModel": dict(projection=False, embed_dim=32),
    "SiglipVisionModel": SIGLIP_PARTS | dict(activation="gelu_tanh", mlp_ratio=3.0, embed_dim=32),
    "Dinov2Model": DINO | dict(activation="gelu", epsilon=1e-6),
    "Dinov2WithRegistersModel": DINO
    | dict(activation="silu", epsilon=1e-6, registers=3, gated_mlp=True, mlp_ratio=2.75),
    "DINOv3ViTModel": DINO
    | dict(activation="silu", epsilon=1e-5, registers=4, gated_mlp=True, positions="rotary", key_bias=False),
    "TimesformerModel": TIMESFORMER | dict(projection=False, embed_dim=32, epsilon=1e-6),
    "SwinModel": SWIN,
    # Our projection, for which their class has no place.
    "Dinov2Model, projected": DINO | dict(activation="gelu", projection=True, embed_dim=12),
    "TimesformerModel, projected": TIMESFORMER | dict(embed_dim=12, mlp_ratio=2.5),
    "SwinModel, projected": SWIN | dict(embed_dim=12),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A class of transformers and what is added to it, a run of its family, and its folder."""
    directory = tmp_path_factory.mktemp("family")
    changes = {f"model__{name}": value for name, value in FAMILIES[request.param].items()}
    run = make_run(directory / "run", data__resize=22, loss__pmd_weight=0.0, **changes)
    export.main(["hf", str(run), str(directory / "mugs")])
    return request.param, run, directory / "mugs"


@pytest.mark.parametrize("family", ["SwinModel, projected"], indirect=True)
def test_a_projection_that_is_missing_or_of_another_encoder_gets_one_line(family, tmp_path):
    shutil.copytree(family[2], tmp_path / "mugs")
    path = tmp_path / "mugs" / "projection.safetensors"
    for tensors, message in (
        ({"weight": np.ones((12, 15), np.float32)}, "found 15 inputs in projection.safetensors, expected 16"),
        ({"bias": np.ones((12, 16), np.float32)}, "found no matrix `weight`, expected what"),
        (None, "projection.safetensors: not found, though rice.json names a projection"),
    ):
        path.unlink() if tensors is None else safetensors.numpy.save_file(tensors, path)
        with pytest.raises(SystemExit, match=message):
            clip.main([str(tmp_path / "mugs"), str(tmp_path / "back")])
    assert not (tmp_path / "back").exists()


def test_every_family_has_its_class_and_reads_back_the_same(family, tmp_path):
    name, run, folder = family
    assert read_json(folder / "config.json")["architectures"] == [name.partition(",")[0]]
    assert (folder / "projection.safetensors").exists() == name.endswith("projected")
    videos, rice = name.startswith("TimesformerModel"), read_json(folder / "rice.json")
    assert (rice["aggregation"], rice["recognition_score"]) == ((None, None) if videos else ("features", "mean"))
    assert ("rice recognize" in (folder / "README.md").read_text(encoding="utf-8")) != videos
    pixels = FAMILIES[name].get("pixels", "clip")
    assert read_json(folder / "preprocessor_config.json")["image_mean"] == list(PIXEL_STATISTICS[pixels][0])
    clip.main([str(folder), str(tmp_path / "back")])
    expected, _ = load_weights(run)
    params, _ = load_weights(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], expected["encoder"])
    assert load_model(tmp_path / "back").about.fingerprint == read_json(folder / "rice.json")["fingerprint"]
    assert read_json(folder / "rice.json")["fingerprint"] == load_model(run).about.fingerprint


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (dict(pooling="mean"), "pooling='mean'"),
        (
            FAMILIES["Dinov2WithRegistersModel"] | dict(mlp_ratio=2.5),
            ".*mlp_ratio=2.5.*",
        ),  # transformers rounds to 2.75
    ],
)
def test_an_encoder_of_no_class(changes, found):
    config = small_config(**{f"model__{name}": value for name, value in changes.items()}).model.encoder
    with pytest.raises(hub.ConvertError, match=f"^found an encoder with {found}, expected one that a class of.*DINOv3"):
        find_export(config)

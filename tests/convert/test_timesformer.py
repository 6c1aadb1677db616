"""TimeSformer's folders: converted, trained, evaluated, indexed; and its runs that start from encoders of pictures."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from flax.traverse_util import flatten_dict

from rice_jax import load, main
from rice_jax.commands import export
from rice_jax.config import ConfigError, MeshConfig
from rice_jax.convert import clip
from rice_jax.convert.hub_families import find_export
from rice_jax.eval.embed import model_embedder
from rice_jax.eval.results import Row, read_results
from rice_jax.index.model import load_model
from rice_jax.index.store import read_index
from rice_jax.index.update import build_index
from rice_jax.models.create import create_model, create_params
from rice_jax.models.rice import embed
from rice_jax.models.start import start_from
from rice_jax.models.weights import CheckpointError, load_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.recognition.engine import Engine
from tests.convert.test_families import case, convert, family, write_folder
from tests.golden.cases import assert_close
from tests.settings import model_of, small_config
from tests.shop import draw, png

ONE = create_mesh(MeshConfig(1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("timesformer")
    convert(family(directory / "theirs", "timesformer"), directory / "ours")
    return directory / "ours"


def run_of(ours, **settings):
    """Settings of a run that starts from converted weights and takes its sizes from them."""
    sizes = dict(patch_size=32, width=768, layers=12, heads=12, embed_dim=512)  # the defaults
    sizes = {f"model__{name}": value for name, value in sizes.items()}
    frames = dict(data__num_frames=3, eval__num_frames=3)
    return small_config(model__init_from=str(ours), loss__pmd_weight=0.0, **sizes | frames | settings)


def test_a_converted_model_embeds_videos_as_transformers_does(converted):
    """Alone from its folder: pixels, positions of frames and their number are in it."""
    recorded, loaded = case("timesformer"), load_model(converted)

    @jax.jit
    def encode(params, pixels):
        return nnx.merge(loaded.graphdef, params).encoder(pixels, frame_mask)

    @jax.jit
    def embed_video(params, video):
        return nnx.merge(loaded.graphdef, params).embed_video({"video": video, "frame_mask": frame_mask})

    assert loaded.config.encoder.pixels == "kinetics"
    assert loaded.about.num_frames == load(converted).num_frames == 3
    pixels = jnp.moveaxis(recorded.arrays["in/pixel_values"], 2, -1)
    frame_mask = jnp.asarray(recorded.arrays["masked/frame_mask"])
    assert_close(encode(loaded.params, pixels), recorded.arrays["masked/cls"])
    video = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    expected = encode(loaded.params, jnp.asarray((video / 255 - 0.45) / 0.225, jnp.float32))
    assert_close(embed_video(loaded.params, jnp.asarray(video)), embed(expected))
    assert load(converted).embed_video([png(draw(0)), png(draw(1))]).shape == (32,)


def test_hub_names_behind_a_prefix_and_a_classifier(tmp_path, capsys):
    recorded = case("timesformer")
    state = {f"timesformer.{name}": x for name, x in recorded.under("params/").items()}
    state |= {"classifier.weight": np.ones((5, 32), np.float32), "classifier.bias": np.ones(5, np.float32)}
    convert(write_folder(tmp_path / "theirs", state, recorded.facts["config"]), tmp_path / "ours")
    assert "2 other tensors of" in capsys.readouterr().out
    expected = clip.from_hugging_face(recorded.under("params/"), recorded.facts["config"])[0]
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "ours")[0]["encoder"], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_type": "joint_space_time"}, "attention_type 'joint_space_time': expected 'divided_space_time'"),
        ({"qkv_bias": False}, "qkv_bias False: expected True"),
        ({"num_frames": 4}, r"embeddings\.time_embeddings: found shape \(1, 3, 32\), expected \(1, 4, 32\)"),
        ({"num_frames": 0}, "num_frames 0: expected a positive whole number"),
        ({"model_type": "dinov2"}, "not a DINOv2 vision transformer of 2 blocks:"),
    ],
)
def test_a_folder_of_another_kind_is_refused(tmp_path, changes, message):
    source = family(tmp_path / "theirs", "timesformer", **changes)
    with pytest.raises(SystemExit, match=message):
        convert(source, tmp_path / "out")


def test_a_missing_and_an_unknown_tensor_are_named(tmp_path):
    source = family(tmp_path / "theirs", "timesformer")
    state = safetensors.numpy.load_file(source / "model.safetensors")
    state["decoder.weight"] = state.pop("encoder.layer.1.temporal_dense.bias")
    safetensors.numpy.save_file(state, source / "model.safetensors")
    with pytest.raises(SystemExit, match=r"layer\.1\.temporal_dense\.bias\n.*unknown name:\n  decoder\.weight"):
        convert(source, tmp_path / "out")


def test_it_trains_evaluates_and_indexes_and_live_use_is_refused(converted, shop, tmp_path):
    steps = dict(train__total_steps=5, train__checkpoint_interval_steps=5, train__log_interval_steps=1)
    config = run_of(converted, data__data_dir=str(shop), **steps)
    saved = load_weights(converted)[1]["model"]
    assert {name: getattr(config.model, name) for name in saved} == saved and config.model.num_frames == 3
    workdir = tmp_path / "run"
    main.run(config, workdir, "train")
    assert list(read_results(workdir / "results.json")) == [Row(0), Row(5)]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 5 and np.isfinite(losses).all()
    before, after = (flatten_dict(load_weights(path)[0]["encoder"], sep="/") for path in (converted, workdir))
    assert all((before[name] != after[name]).any() for name in before)
    main.run(config, workdir, "eval")

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(3):
        (pictures / f"p{seed}.png").write_bytes(png(draw(seed)))
    index = build_index(pictures, out=tmp_path / "index", model=workdir)
    assert index.about == read_index(tmp_path / "index").about and index.vectors.shape == (3, 32)
    expected = load(workdir).embed_images([pictures / "p1.png"])
    np.testing.assert_allclose(index.vectors[index.image_ids.index("p1")], expected[0], atol=1e-5)
    with pytest.raises(
        ConfigError, match="^recognition needs a model that can encode a video frame by frame; VideoModel cannot"
    ):
        Engine(tmp_path / "index")


def test_the_export_is_the_folder_that_was_converted(converted, tmp_path):
    with pytest.raises(SystemExit, match="found architecture='timesformer', expected .* transformers' CLIP"):
        clip.main(["--export", str(converted), str(tmp_path / "out")])
    export.main(["hf", str(converted), str(tmp_path / "out")])
    recorded = case("timesformer")
    found, expected = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors"), recorded.under("params/")
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    values = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert values == {name: recorded.facts["config"][name] for name in values}


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        (dict(ln_pre=True), "ln_pre=False"),
        (dict(class_token=False, pooling="mean"), "class_token=True, pooling='cls'"),
        (dict(layer_scale=True, registers=2), "layer_scale=False, registers=0"),
    ],
)
def test_one_with_other_parts_than_transformers_has_is_not_exported(converted, changes, lacks):
    """As it is if a run started from CLIP, SigLIP, or DINO."""
    encoder = dataclasses.replace(load_model(converted).config.encoder, **changes)
    with pytest.raises(clip.ConvertError, match=f"='timesformer', .*; the closest, TimesformerModel, has {lacks}$"):
        find_export(encoder)


@pytest.mark.parametrize("name", ["clip_vision_gelu", "siglip_vision", "dinov2_registers_swiglu", "dinov3_vit"])
def test_a_run_starts_from_an_encoder_of_pictures(name, tmp_path):
    """With a number of frames of its own; images are embedded as by the encoder that it starts from."""
    convert(family(tmp_path / "theirs", name), tmp_path / "ours")
    config = run_of(tmp_path / "ours", model__architecture="timesformer", model__num_frames=5)
    parts = model_of(config)
    assert (parts.encoder.num_frames, parts.encoder.width) == (5, 32)
    params = start_from(tmp_path / "ours", create_params(parts, ONE, seed=0), parts)
    pictures = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8))
    loaded = load_model(tmp_path / "ours")
    expected, found = (
        jax.jit(model_embedder(graphdef).image)(weights, {"image": pictures}).embedding
        for graphdef, weights in ((loaded.graphdef, loaded.params), (create_model(parts, ONE), params))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_of_another_number_of_frames_are_refused(converted):
    with pytest.raises(ConfigError, match=r"^config\.model\.num_frames: found 8, expected 3 as in the weights "):
        run_of(converted, model__num_frames=8)
    parts = model_of(run_of(converted))
    other = dataclasses.replace(parts, encoder=dataclasses.replace(parts.encoder, num_frames=8))
    with pytest.raises(CheckpointError, match=r"found an encoder with num_frames=3, expected 8 \(config\.model\.num_f"):
        start_from(converted, create_params(other, ONE, seed=0), other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss__pmd_weight": 1.0}, r"loss\.pmd_weight: found 1\.0 with .*; PMD and PFR need the tokens of frames,"),
        (
            {"model__aggregation__kind": "embeddings"},
            r"model\.aggregation: found .*\(kind='embeddings'\) with .*leave",
        ),
        ({"model__ipd": "boxes"}, r"model\.ipd_use: found 'mask' with .* cannot leave out patches; set it to 'crop'"),
        (
            {"data__num_frames": 11},
            r"data\.num_frames and config\.eval\.num_frames: found 11 and 10, expected at most",
        ),
        (
            {"eval__num_frames": 12},
            r"data\.num_frames and .*: found 3 and 12, expected at most config\.model\.num_frames",
        ),
        ({"eval__score": "frames"}, r"eval\.score: found 'frames' with .*; set it to 'mean'"),
        ({"task": "detection"}, r"task: found 'detection' with .*; a detector needs an encoder of frames"),
    ],
)
def test_what_needs_frames_one_by_one_is_refused(settings, message):
    with pytest.raises(ConfigError, match=r"^config\." + message):
        small_config(**{"model__architecture": "timesformer", "loss__pmd_weight": 0.0} | settings)


def test_a_number_of_frames_without_their_positions_is_refused():
    with pytest.raises(ConfigError, match=r"^config\.model\.num_frames: found 8 with config\.model\.arch"):
        small_config(model__num_frames=8)

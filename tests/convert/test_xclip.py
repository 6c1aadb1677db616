"""X-CLIP's folders, and runs that start from them or from encoders of pictures."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax import load, main
from rice_jax.commands import export
from rice_jax.config import ConfigError, MeshConfig
from rice_jax.convert import names
from rice_jax.convert.tensors import to_theirs
from rice_jax.convert.vit import convert_vit, places, shapes
from rice_jax.eval.results import Row, read_results
from rice_jax.index.model import load_model
from rice_jax.index.update import build_index
from rice_jax.models.create import create_params
from rice_jax.models.rice import embed
from rice_jax.models.start import start_from
from rice_jax.models.weights import CheckpointError, load_weights, save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.recognition.engine import Engine
from scripts.parity import Case
from scripts.parity_xclip import encoder_config
from tests.convert.test_families import convert, family, write_folder
from tests.convert.test_timesformer import run_of
from tests.golden.cases import assert_close, find
from tests.settings import model_of, small_config
from tests.shop import draw, png

ONE = create_mesh(MeshConfig(1, 1), jax.devices()[:1])
VISION = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=24)
VISION |= dict(patch_size=8, num_frames=4, mit_hidden_size=24, mit_intermediate_size=96, mit_num_hidden_layers=2)
VISION |= dict(mit_num_attention_heads=3, hidden_act="quick_gelu", layer_norm_eps=1e-5)
# Of which nothing is left in an encoder of videos.
OTHERS = (
    *("logit_scale", "text_projection.weight", "text_model.embeddings.token_embedding.weight"),
    *("prompts_visual_layernorm.bias", "prompts_visual_projection", "prompts_generator.decoder.0.norm1.weight"),
)


@pytest.fixture(scope="module")
def recorded():
    return Case(find("xclip/visual"))


@pytest.fixture(scope="module")
def state(recorded):
    """The recorded weights under transformers' names, with tensors of other parts."""
    config = encoder_config(recorded)
    params = convert_vit(recorded.under("params/"), names.XCLIP_OWN, config, names.OPENAI_IGNORED, "X-CLIP")
    theirs = to_theirs(params, places(names.XCLIP, config), shapes(config), "X-CLIP")
    return theirs | {name: np.ones(3, np.float32) for name in OTHERS}


def folder(path, state, **changes):
    return write_folder(path, state, {"model_type": "xclip", "projection_dim": 24, "vision_config": VISION | changes})


@pytest.fixture(scope="module")
def converted(state, tmp_path_factory):
    directory = tmp_path_factory.mktemp("xclip")
    convert(folder(directory / "theirs", state), directory / "ours")
    return directory / "ours"


def test_a_converted_model_embeds_videos_and_pictures_as_recorded(converted, recorded):
    """Alone from its folder: pixels, positions of frames, their number, and the layers over the frames are in it."""
    loaded = load_model(converted)
    model = nnx.merge(loaded.graphdef, loaded.params)
    sizes = loaded.config.encoder
    assert (sizes.pixels, sizes.integration_layers, sizes.integration_heads) == ("imagenet", 2, 3)
    assert loaded.about.num_frames == load(converted).num_frames == 4
    for kind, num_frames in (("video", 4), ("page", 1)):
        pixels, frame_mask = jnp.moveaxis(recorded.arrays[f"in/{kind}"], 2, -1), jnp.ones((2, num_frames), bool)
        assert_close(model.encoder(pixels, frame_mask), recorded.arrays[f"out/{kind}/feature"])
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 24, 24, 3), np.uint8)
    frame_mask = jnp.asarray([[True, True, True], [True, True, False]])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = model.encoder(jnp.asarray((video / 255 - mean) / std, jnp.float32), frame_mask)
    assert_close(model.embed_video({"video": jnp.asarray(video), "frame_mask": frame_mask}), embed(expected))
    assert load(converted).embed_video([png(draw(0)), png(draw(1))]).shape == (24,)


def test_tensors_of_other_parts_are_counted(state, tmp_path, capsys):
    convert(folder(tmp_path / "theirs", state), tmp_path / "ours")
    assert f"{len(OTHERS)} other tensors of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 8}, r"mit\.position_embedding: found shape \(1, 4, 24\), expected \(1, 8, 24\)"),
        ({"mit_num_hidden_layers": 1}, r"16 tensors have an unknown name:\n  mit\.encoder\.layers\.1\.layer_norm1"),
        ({"mit_num_hidden_layers": 0}, "mit_num_hidden_layers 0: expected a positive whole number"),
        ({"mit_hidden_size": 48}, "mit_hidden_size 48: expected 24"),
        ({"mit_num_attention_heads": 5}, "mit_hidden_size 24 is no multiple of mit_num_attention_heads 5"),
        ({"mit_intermediate_size": 48}, r"mit\.encoder\.layers\.0\.mlp\.fc1\.weight: found shape \(96, 24\), expected"),
    ],
)
def test_a_folder_of_other_sizes_is_refused(state, tmp_path, changes, message):
    with pytest.raises(SystemExit, match=message):
        convert(folder(tmp_path / "theirs", state, **changes), tmp_path / "out")


def test_a_vision_tower_alone_and_a_missing_or_unknown_tensor_are_named(state, tmp_path):
    source = folder(tmp_path / "theirs", state)
    (source / "config.json").write_text(json.dumps(VISION | {"model_type": "xclip_vision_model"}))
    with pytest.raises(SystemExit, match=r"found model_type 'xclip_vision_model', .*; the layers over the frames are"):
        convert(source, tmp_path / "out")
    other = dict(state)
    other["decoder.weight"] = other.pop("vision_model.encoder.layers.1.message_fc.bias")
    with pytest.raises(SystemExit, match=r"layers\.1\.message_fc\.bias\n.*unknown name:\n  decoder\.weight"):
        convert(folder(tmp_path / "other", other), tmp_path / "out")


def test_a_run_starts_from_an_encoder_of_pictures_trains_indexes_and_live_use_is_refused(
    shop, tmp_path, caplog, one_device
):
    """The layers between frames are fresh, reported, and learn at the rate of new parts."""
    convert(family(tmp_path / "vit", "clip_vision_gelu"), tmp_path / "start")
    changes = dict(model__architecture="xclip", model__num_frames=5, model__integration_layers=2)
    changes |= dict(model__integration_heads=2, optimizer__between_frames="new", optimizer__encoder_learning_rate=0.0)
    steps = dict(train__total_steps=3, train__checkpoint_interval_steps=3)
    config = run_of(tmp_path / "start", data__data_dir=str(shop), **changes | steps)
    assert (config.model.num_frames, config.model.width) == (5, 32)
    workdir = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        main.run(config, workdir, "train")
    assert "start: has no encoder/blocks/message and no encoder/integration; they start from fresh" in caplog.text
    assert list(read_results(workdir / "results.json")) == [Row(0), Row(3)]
    before, after = (load_weights(path)[0]["encoder"] for path in (tmp_path / "start", workdir))
    assert np.abs(after["blocks"]["message"]["out"]["kernel"]).max() > 0, "0 in fresh weights"
    after["blocks"] = {name: value for name, value in after["blocks"].items() if name != "message"}
    del after["integration"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, before)

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(2):
        (pictures / f"p{seed}.png").write_bytes(png(draw(seed)))
    index = build_index(pictures, out=tmp_path / "index", model=workdir)
    expected = load(workdir).embed_images([pictures / "p1.png"])
    np.testing.assert_allclose(index.vectors[index.image_ids.index("p1")], expected[0], atol=1e-5)
    with pytest.raises(ConfigError, match="^recognition needs a model that can encode a video frame by frame; Video"):
        Engine(tmp_path / "index")
    with pytest.raises(SystemExit, match="architecture='xclip', .* expected one that a class of transformers computes"):
        export.main(["hf", str(workdir), str(tmp_path / "out")])


@pytest.mark.parametrize("name", ["siglip_vision", "dinov2_registers_swiglu", "dinov3_vit"])
def test_it_starts_from_encoders_of_every_kind(name, tmp_path):
    convert(family(tmp_path / "theirs", name), tmp_path / "ours")
    parts = model_of(run_of(tmp_path / "ours", model__architecture="xclip"))
    fresh = create_params(parts, ONE, seed=0)
    found = start_from(tmp_path / "ours", fresh, parts)["encoder"]
    assert jax.tree.structure(found) == jax.tree.structure(fresh["encoder"])
    expected = load_weights(tmp_path / "ours")[0]["encoder"]
    np.testing.assert_array_equal(found["blocks"]["up"]["kernel"], expected["blocks"]["up"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, found["integration"], fresh["encoder"]["integration"])


def test_weights_of_another_number_of_frames_are_interpolated_and_of_other_layers_refused(converted):
    parts = model_of(run_of(converted, data__resize=40, model__image_size=32, model__num_frames=8))
    found = start_from(converted, create_params(parts, ONE, seed=0), parts)["encoder"]
    assert found["integration"]["position"].shape == (8, 24) and found["position_embedding"].shape == (17, 32)
    assert model_of(run_of(converted, data__resize=28)).encoder.num_frames == 4, "that of the weights unless it is set"
    with pytest.raises(
        ConfigError, match=r"^config\.model\.integration_layers: found 4, expected 2 as in the weights "
    ):
        run_of(converted, data__resize=28, model__integration_layers=4)


def test_weights_that_lack_a_part_of_the_layers_between_frames_are_refused(converted, tmp_path):
    """Only weights of pictures may lack them."""
    params, config = load_weights(converted)
    del params["encoder"]["integration"]["position"]
    save_weights(tmp_path / "damaged", params, config)
    parts = model_of(run_of(converted))
    with pytest.raises(CheckpointError, match=r"  encoder/integration/position: missing"):
        start_from(tmp_path / "damaged", create_params(parts, ONE, seed=0), parts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss__pmd_weight": 1.0}, r"loss\.pmd_weight: found 1\.0 with .*'xclip'.*; PMD and PFR need the tokens"),
        ({"model__aggregation__kind": "embeddings"}, r"model\.aggregation: found .*'xclip'.*leave it out"),
        ({"model__ipd": "boxes"}, r"model\.ipd_use: found 'mask' with .* cannot leave out patches; set it to 'crop'"),
        ({"data__num_frames": 11}, r"data\.num_frames and config\.eval\.num_frames: found 11 and 10, expected at most"),
        ({"eval__score": "frames"}, r"eval\.score: found 'frames' with .*; set it to 'mean'"),
        ({"task": "detection"}, r"task: found 'detection' with .*; a detector needs an encoder of frames"),
        ({"model__integration_heads": 3}, r"model\.integration_heads: found 3, expected a divisor of embed_dim \(16\)"),
        (
            {"model__architecture": "vit", "optimizer__between_frames": "new"},
            r"optimizer\.between_frames: found 'new' with config\.model\.architecture='vit', which has no layers betw",
        ),
        (
            {"model__architecture": "timesformer", "model__integration_layers": 2},
            r"model\.integration_layers: found 2 with .*='timesformer', which has no blocks over the frames; leave it",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(settings, message):
    with pytest.raises(ConfigError, match=r"^config\." + message):
        small_config(**{"model__architecture": "xclip", "loss__pmd_weight": 0.0} | settings)


@pytest.mark.parametrize(
    ("vision", "dim"),
    [
        (VISION, 24),
        (VISION | dict(num_frames=2, mit_num_hidden_layers=1, mit_hidden_size=32, mit_intermediate_size=80), 32),
        (VISION | dict(image_size=32, hidden_act="gelu", num_attention_heads=2, intermediate_size=96), 24),
    ],
)
def test_transformers_computes_the_same(tmp_path, vision, dim):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    vision = vision | {"mit_num_attention_heads": 4 if dim == 32 else 3}
    text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
    config = transformers.XCLIPConfig(
        text_config=text, vision_config=vision, projection_dim=dim, prompt_num_attention_heads=dim // 8
    )
    model = transformers.XCLIPModel(config).eval()
    for parameter in model.parameters():  # away from zero biases and unit scales, which would hide a swap
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    size = vision["image_size"]
    videos = torch.randn(2, vision["num_frames"], 3, size, size)
    with torch.no_grad():
        expected = model.get_video_features(pixel_values=videos)
    expected = getattr(expected, "pooler_output", expected)
    loaded = load_model(tmp_path / "ours")
    encoder = nnx.merge(loaded.graphdef, loaded.params).encoder
    found = encoder(jnp.asarray(videos.movedim(2, -1).numpy()), jnp.ones(videos.shape[:2], bool))
    assert_close(found, expected.numpy())

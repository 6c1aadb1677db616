"""Folders of every family of encoders: converted, encoded, embedded, trained, and refused where they are damaged."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from rice_jax.config import ConfigError, MeshConfig
from rice_jax.convert import clip
from rice_jax.index.model import load_model, read_settings
from rice_jax.models.create import create_model, create_params
from rice_jax.models.encoders.vit import Vit
from rice_jax.models.rice import embed
from rice_jax.models.start import start_from
from rice_jax.models.weights import CheckpointError, load_weights, save_weights
from rice_jax.parallel.mesh import create_mesh, global_batch
from rice_jax.tasks import TASKS
from rice_jax.train.optimizer import create_optimizer
from rice_jax.train.state import create_state
from rice_jax.train.steps import compile_step, training_step
from scripts.parity import Case
from tests.convert.torch_archive import write_archive
from tests.golden.cases import assert_close, find
from tests.settings import model_of, small_config

# {case: (pooled output, prefix of the names in whole models)}
FAMILIES = {
    "clip_vision_gelu": ("image_embeds", ""),
    "siglip_vision": ("pooler_output", "vision_model."),
    "dinov2_registers_swiglu": ("pooler_output", ""),
    "dinov3_vit": ("pooler_output", ""),
}
SIZES = dict(image_size=16, patch_size=4, width=32, layers=2, heads=4)


def case(name):
    return Case(find(f"encoders/{name}"))


def write_folder(folder, state, config, name="model.safetensors", config_name="config.json"):
    folder.mkdir()
    safetensors.numpy.save_file(state, folder / name)
    (folder / config_name).write_text(json.dumps(config))
    return folder


def family(folder, name, prefix="", **changes):
    """A folder as transformers writes it."""
    recorded = case(name)
    state = {prefix + key: value for key, value in recorded.under("params/").items()}
    return write_folder(folder, state, recorded.facts["config"] | changes)


def convert(*arguments):
    clip.main([str(argument) for argument in arguments], prog="rice convert")


@pytest.fixture(scope="module", params=FAMILIES)
def converted(request, tmp_path_factory):
    """The name of a family, its folder and the converted model."""
    directory = tmp_path_factory.mktemp(request.param)
    source = family(directory / "theirs", request.param)
    convert(source, directory / "ours")
    return request.param, source, directory / "ours"


# The statistics as the families' own preprocessors have them.
STATISTICS = {
    "clip_vision_gelu": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip_vision": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "dinov2_registers_swiglu": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "dinov3_vit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def test_a_converted_model_embeds_pictures_as_its_family_does(converted):
    """Alone from its folder: its settings, the statistics of its pixels too, are in it."""
    name, _, ours = converted
    recorded, loaded = case(name), load_model(ours)
    params, config = clip.from_hugging_face(recorded.under("params/"), recorded.facts["config"])
    graphdef = nnx.split(nnx.eval_shape(lambda: Vit(config, rngs=nnx.Rngs(0))))[0]
    encode = jax.jit(lambda pictures: nnx.merge(graphdef, params)(pictures)[1])
    recorded_pictures = jnp.moveaxis(recorded.arrays["in/pixel_values"], 1, -1)
    assert_close(encode(recorded_pictures), recorded.arrays[f"out/{FAMILIES[name][0]}"])
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    mean, std = STATISTICS[name]
    expected = encode(jnp.asarray((pictures / 255 - mean) / std, jnp.float32))

    @jax.jit
    def results(params, pictures):
        model = nnx.merge(loaded.graphdef, params)
        return model.embed_image({"image": pictures}), model.encode_frames(pictures).tokens

    embedding, tokens = results(loaded.params, pictures)
    assert_close(embedding, embed(expected))
    assert tokens.shape == (3, 17, 32), "a summary and the patches"


PIXELS = {"clip_vision_gelu": "clip", "siglip_vision": "half"}


def test_pixel_statistics_are_the_familys_or_those_of_its_preprocessor(converted, tmp_path):
    name, source, ours = converted
    assert read_settings(ours).model.encoder.pixels == PIXELS.get(name, "imagenet")
    copy = shutil.copytree(source, tmp_path / "theirs")
    values = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (copy / "preprocessor_config.json").write_text(json.dumps(values))
    convert(copy, tmp_path / "half")
    assert read_settings(tmp_path / "half").model.encoder.pixels == "half"
    (copy / "preprocessor_config.json").write_text(json.dumps(values | {"image_std": [1, 1, 1]}))
    with pytest.raises(SystemExit, match=r"preprocessor_config\.json: found the mean .* of pixels, expected those of"):
        convert(copy, tmp_path / "other")


def run_of(ours, **settings):
    """Settings of a run that starts from a converted model and says nothing of its switches."""
    sizes = {f"model__{name}": value for name, value in (SIZES | {"embed_dim": 512}).items()}
    return small_config(model__init_from=str(ours), model__pmd__num_heads=4, **sizes | settings)


def started(ours):
    """Settings of a run, its devices, its model, and the parameters that it starts from."""
    config = run_of(ours, loss__num_negatives=1, loss__pfr_weight=0.0)
    mesh, model = create_mesh(MeshConfig(1, 1), jax.devices()[:1]), model_of(config)
    return config, mesh, model, start_from(ours, create_params(model, mesh, seed=0), model)


def test_a_run_takes_the_encoders_settings_from_the_weights(converted):
    _, _, ours = converted
    saved = load_weights(ours)[1]["model"]
    config, _, _, start = started(ours)
    assert {name: getattr(config.model, name) for name in saved} == saved
    for part, first in (("self_blocks", 0), ("cross_blocks", 1)):  # PMD starts from the encoder's own kind of blocks
        blocks = jax.tree.map(lambda x, first=first: x[first : first + 1], start["encoder"]["blocks"])
        jax.tree.map(np.testing.assert_array_equal, start["pmd"][part], blocks)


def test_a_run_trains_from_converted_weights(tmp_path):
    """Of one family: `tests/train/test_steps.py` trains with the parts of all."""
    convert(family(tmp_path / "theirs", "dinov3_vit"), tmp_path / "ours")
    config, mesh, model, start = started(tmp_path / "ours")
    optimizer = create_optimizer(config.optimizer, config.train.total_steps, ("encoder", "logit_scale"))
    state = create_state(start, optimizer, mesh)
    step = training_step(create_model(model, mesh), optimizer, TASKS["retrieval"].loss(config, mesh))
    step, losses = compile_step(step, state, mesh), []
    for _ in range(5):
        state, metrics = step(state, global_batch(mesh, batch()))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def batch(size=8):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, 16, 16, 3), np.uint8),
        "video": rng.integers(0, 256, (size, 3, 16, 16, 3), np.uint8),
        "frame_mask": np.arange(3) < rng.integers(1, 4, (size, 1)),
        "patch_mask": rng.random((size, 3, 16)) < 0.6,
        "image_key": np.arange(size, dtype=np.int32),
        "index": np.arange(size, dtype=np.int32),
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_hub_names_of_whole_models(name, tmp_path):
    recorded, prefix = case(name), FAMILIES[name][1]
    config, state = recorded.facts["config"], {prefix + k: x for k, x in recorded.under("params/").items()}
    kind = config["model_type"]
    if kind.endswith("_vision_model"):
        kind = kind.removesuffix("_vision_model")
        state |= {"text_model.final_layer_norm.weight": np.ones(8, np.float32), "logit_scale": np.ones(1, np.float32)}
        whole = {"model_type": kind, "vision_config": config, "projection_dim": config.get("projection_dim")}
        kinds = [kind, *(["chinese_clip"] if kind == "clip" else [])]
    else:
        whole, kinds = config, [kind]
    expected = clip.from_hugging_face(recorded.under("params/"), config)
    for kind in kinds:
        params, found = clip.from_hugging_face(state, whole | {"model_type": kind})
        assert found == expected[1]
        jax.tree.map(np.testing.assert_array_equal, params, expected[0])


def test_a_clip_without_projection(tmp_path):
    recorded = case("clip_vision_gelu")
    state = recorded.under("params/")
    del state["visual_projection.weight"]
    params, config = clip.from_hugging_face(state, recorded.facts["config"] | {"architectures": ["CLIPVisionModel"]})
    assert "projection" not in params and not config.projection and config.embed_dim == 32
    with pytest.raises(clip.ConvertError, match=r"1 tensors are missing:\n  visual_projection\.weight"):
        clip.from_hugging_face(state, recorded.facts["config"])


def test_weights_in_several_files(tmp_path):
    source = family(tmp_path / "theirs", "dinov3_vit")
    convert(source, tmp_path / "one")
    state = safetensors.numpy.load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(state)}
    for file in set(files.values()):
        safetensors.numpy.save_file({name: x for name, x in state.items() if files[name] == file}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    convert(source, tmp_path / "two")
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "one")[0], load_weights(tmp_path / "two")[0])
    (source / file).unlink()
    with pytest.raises(SystemExit, match=rf"{file}: not a safetensors file: No such file"):
        convert(source, tmp_path / "three")


def test_weights_as_pytorch_writes_them(tmp_path):
    source = family(tmp_path / "theirs", "siglip_vision")
    convert(source, tmp_path / "one")
    write_archive(source / "pytorch_model.bin", safetensors.numpy.load_file(source / "model.safetensors"))
    (source / "model.safetensors").unlink()
    convert(source, tmp_path / "two")
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "one")[0], load_weights(tmp_path / "two")[0])


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _without(name):
    def change(folder):
        state = safetensors.numpy.load_file(folder / "model.safetensors")
        del state[name]
        safetensors.numpy.save_file(state, folder / "model.safetensors")

    return change


def _config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("siglip_vision", _truncate, r"model\.safetensors: not a safetensors file"),
        ("siglip_vision", _without("head.probe"), r"1 tensors are missing:\n  head\.probe$"),
        ("siglip_vision", _config(vision_use_head=False), "vision_use_head False: expected True"),
        ("siglip_vision", _config(hidden_act="relu"), "hidden_act 'relu': expected one of"),
        (
            "siglip_vision",
            _config(model_type="dinov2"),
            r"not a DINOv2 vision transformer of 2 blocks:\n42 tensors",
        ),
        ("siglip_vision", _config(model_type="swin_v3"), r"config\.json: found model_type 'swin_v3', expected one of "),
        ("dinov2_registers_swiglu", _config(qkv_bias=False), "qkv_bias False: expected True"),
        ("dinov2_registers_swiglu", _config(use_swiglu_ffn=False), r"8 tensors are missing:\n  .*\.mlp\.fc1\.bias"),
        ("dinov2_registers_swiglu", _config(num_register_tokens=3), r"register_tokens: found shape \(1, 2, 32\)"),
        ("dinov3_vit", _config(rope_theta=10.0), "rope_theta 10.0: expected 100.0"),
        ("dinov3_vit", _config(key_bias=True), r"2 tensors are missing:\n  layer\.0\.attention\.k_proj\.bias"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(tmp_path, name, damage, message):
    source = family(tmp_path / "theirs", name)
    damage(source)
    with pytest.raises(SystemExit, match=message):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_activation_that_the_files_contradict_is_refused(tmp_path):
    source = family(tmp_path / "theirs", "clip_vision_gelu")
    with pytest.raises(SystemExit, match="its files say that it computes 'gelu', found --activation=quick_gelu"):
        convert(source, tmp_path / "out", "--quick_gelu")


def test_what_contradicts_the_weights_is_refused_in_a_line(converted):
    name, _, ours = converted
    with pytest.raises(
        ConfigError, match=r"^config\.model\.pooling: found 'mean', expected '\w+' as in the weights /.*"
    ):
        run_of(ours, model__pooling="mean")
    config = run_of(ours)
    for changes in ({"pixels": "imagenet" if name in PIXELS else "half"}, {"epsilon": 0.5}):
        model = model_of(config)
        other = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, **changes))
        params = create_params(other, create_mesh(MeshConfig(1, 1), jax.devices()[:1]), seed=0)
        with pytest.raises(CheckpointError, match=rf"found an encoder with {next(iter(changes))}=.*, expected "):
            start_from(ours, params, other)


def test_a_run_goes_on_without_the_weights_that_it_started_from(tmp_path):
    """Its own checkpoint says what they were; one of a run from random weights says nothing."""
    from rice_jax.tasks import resolve
    from tests.settings import small_values

    workdir, values = tmp_path / "run", small_values(model__init_from="")
    settings = {"activation": "gelu", "epsilon": 1e-6, "init_from": "weights"}
    save_weights(workdir / "checkpoints" / "4", {"encoder": {}}, {"model": values["model"] | settings})
    for init_from in ("", str(tmp_path / "gone")):
        values["model"]["init_from"] = init_from
        model = resolve(values, workdir).model
        assert (model.activation, model.epsilon, model.pixels) == ("gelu", 1e-6, "clip")
    save_weights(
        workdir / "checkpoints" / "5", {"encoder": {}}, {"model": values["model"] | settings | {"init_from": ""}}
    )
    values["model"]["init_from"] = ""
    assert resolve(values, workdir).model.activation == "quick_gelu"


@pytest.mark.parametrize("name", ["dinov3_vit"])
def test_export_of_a_family_that_is_no_clip_is_refused(tmp_path, name):
    convert(family(tmp_path / "theirs", name), tmp_path / "ours")
    with pytest.raises(SystemExit, match="found an encoder with gated_mlp=|found an encoder with key_bias=False, "):
        clip.main(["--export", str(tmp_path / "ours"), str(tmp_path / "out")])


def test_a_gelu_clip_is_exported_as_it_came(tmp_path):
    source = family(tmp_path / "theirs", "clip_vision_gelu")
    convert(source, tmp_path / "ours")
    clip.main(["--export", str(tmp_path / "ours"), str(tmp_path / "out")])
    state, config = clip.read_hugging_face(tmp_path / "out")
    theirs = json.loads((source / "config.json").read_text())
    assert all(config[name] == theirs[name] for name in config.keys() & theirs.keys() - {"dtype"})
    for name, x in safetensors.numpy.load_file(source / "model.safetensors").items():
        np.testing.assert_array_equal(state[name], x.astype(np.float16))
